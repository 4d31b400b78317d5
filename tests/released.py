"""Checkpoints as they were released, with random weights: names, depth, ties, spare rows, files; narrow layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sightline.policy.layouts import released_name
from sightline.policy.published import PROCESSORS, PUBLISHED, published_config
from sightline.scenes.tokenizer import build_tokenizer, write_tokenizer

CLASSES = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}
FILES = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 2, "Qwen/Qwen2.5-VL-7B-Instruct": 5, "Qwen/Qwen2.5-VL-32B-Instruct": 18,
    "Qwen/Qwen2.5-VL-72B-Instruct": 38, "Qwen/Qwen3-VL-2B-Instruct": 1, "Qwen/Qwen3-VL-4B-Instruct": 2,
    "Qwen/Qwen3-VL-8B-Instruct": 4, "Qwen/Qwen3-VL-32B-Instruct": 14,
}  # fmt: skip
"""Weight files of each."""

WORDS = {"qwen2_5_vl": 151665, "qwen3_vl": 151669}
"""Length of the released tokenizers; what a vocabulary has beyond it is spare."""


def shrunk_config(name: str, depth: int | None = None) -> dict[str, Any]:
    """The released config with narrow layers and the ids of the small tokenizer; `depth` cuts the layers too."""
    released, config = PUBLISHED[name], published_config(name)
    tokenizer = build_tokenizer()
    text, vision = config.get("text_config", config), config["vision_config"]
    spare = released.vocab - WORDS[released.family]
    heads = 4 if released.family == "qwen2_5_vl" else 6  # times 8 is the width, or more than it
    text |= {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": heads, "num_key_value_heads": 2}
    text |= {"vocab_size": tokenizer.get_vocab_size() + spare, "bos_token_id": None, "initializer_range": 0.2}
    text["eos_token_id"] = tokenizer.token_to_id("<|im_end|>")
    text["rope_scaling"] = {**text["rope_scaling"], "mrope_section": [2, 1, 1]}
    if "head_dim" in text:
        text["head_dim"] = 8
    vision |= {"hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 32}
    if depth is not None:
        text["num_hidden_layers"] = vision["depth"] = depth
        vision |= {"deepstack_visual_indexes": [0]} if released.family == "qwen3_vl" else {"fullatt_block_indexes": [1]}
    for key, mark in (
        ("image", "image_pad"),
        ("video", "video_pad"),
        *((f"vision_{e}",) * 2 for e in ("start", "end")),
    ):
        config[f"{key}_token_id"] = tokenizer.token_to_id(f"<|{mark}|>")
    config.pop("vision_token_id", None)
    return config


def random_model(config: Mapping[str, Any], seed: int = 0) -> Any:
    """A model of that config whose numbers are exact in bf16, so that a file in bf16 holds them as they are."""
    import transformers

    made = getattr(transformers, CLASSES[config["model_type"]])
    torch.manual_seed(seed)
    model = made(made.config_class.from_dict(dict(config))).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # norms of ones and biases of zeros would hide a mix-up
            if p.ndim == 1:
                p.copy_(torch.randn_like(p) * 0.2 + (1.0 if "norm" in name or "ln_q" in name else 0.0))
            p.copy_(p.bfloat16().float())
    return model


def write_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    files: int,
    rename: Callable[[str], str] = str,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """The tensors in so many files, in the manner of the Hub."""
    renamed = {rename(n): t.detach().to(dtype).contiguous() for n, t in tensors.items()}
    if files == 1:
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        return
    where = {n: f"model-{i * files // len(renamed) + 1:05d}-of-{files:05d}.safetensors" for i, n in enumerate(renamed)}
    for file in sorted(set(where.values())):
        part = {n: renamed[n] for n in renamed if where[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in renamed.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_released(
    folder: Path, name: str, *, newer: bool = False, files: int | None = None, depth: int | None = None
) -> Any:
    """Writes a random-weight checkpoint under its released layout; returns the model it was written from.

    Args:
        folder: made here.
        name: on the Hub.
        newer: the newer key layout in place of the released one.
        files: weight files; None for as many as were released.
        depth: layers of both halves; None for as many as were released.
    """
    family = PUBLISHED[name].family
    folder.mkdir(parents=True)
    config = shrunk_config(name, depth)
    (folder / "config.json").write_text(json.dumps(config))
    model = random_model(config)
    rename = str if newer else lambda n: released_name(n, family)
    write_weights(folder, dict(model.named_parameters()), files or FILES[name], rename)
    write_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(PROCESSORS[family])))
    ends = [build_tokenizer().token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[1]}))
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]  # and once more, as released
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return model
