"""The embedded policy's architecture: stock transformers classes with a tiny configuration, and its published files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sightline.errors import UserError
from sightline.scenes.tokenizer import build_tokenizer, number_ids, write_tokenizer
from sightline.scenes.world import VIEW

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["FAMILIES", "MAX_PIXELS", "MIN_PIXELS", "Family", "build_model", "lattice", "write_policy"]

Family = Literal["qwen3_vl", "qwen2_5_vl"]
FAMILIES: tuple[Family, ...] = ("qwen3_vl", "qwen2_5_vl")

MIN_PIXELS, MAX_PIXELS = 64 * 64, 96 * 96
PATCH, MERGE = 8, 2
WIDTH, LAYERS, HEADS, INNER = 128, 3, 4, 256
SPREAD = 0.06  # initializer_range


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    return {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
    }


def _text_settings(vocabulary: int, end: int | None, pad: int | None) -> dict[str, Any]:
    return {
        "vocab_size": math.ceil(vocabulary / 32) * 32,  # spare rows, as published checkpoints have them
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 4096,
        "initializer_range": SPREAD,
        "tie_word_embeddings": True,
        "eos_token_id": end,
        "pad_token_id": pad,
        "bos_token_id": None,
    }


def build_model(family: Family) -> Any:
    """A freshly initialised policy of one family; number words start as Fourier features of their value."""
    import torch

    tokenizer = build_tokenizer()
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    text = _text_settings(tokenizer.get_vocab_size(), end, pad)
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 192,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
        "initializer_range": SPREAD,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    shared = {**_special_ids(tokenizer), "tie_word_embeddings": True}
    if family == "qwen3_vl":
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        vision |= {"num_position_embeddings": (96 // PATCH) ** 2, "deepstack_visual_indexes": [0]}
        text |= {"head_dim": WIDTH // HEADS, "rope_parameters": {**rope, "mrope_interleaved": True}}
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **shared))
    elif family == "qwen2_5_vl":
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        vision |= {"fullatt_block_indexes": [0, 1], "window_size": 32}
        text |= {"rope_parameters": rope}
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **shared))
    else:
        raise UserError(f"unknown family {family!r}", where="scenes", hint=f"one of {', '.join(FAMILIES)}")
    top = lattice(family)[-1]
    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        ids = number_ids(tokenizer)[: top + 1]
        table[ids] = SPREAD * _fourier(top + 1, WIDTH, (0.5, 12.0)) + 0.3 * table[ids]
        _attend_to_alike(model)
        if family == "qwen3_vl":  # without this, answers are learned long before boxes
            places: Any = model.get_parameter("model.visual.pos_embed.weight")
            side = math.isqrt(len(places))
            line = _fourier(side, places.shape[1] // 2, (0.5, 5.0))
            rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
            places.copy_(0.5 * torch.cat([rows, columns], dim=-1).reshape(places.shape) + 0.3 * places)
    return model


def _attend_to_alike(model: Any) -> None:
    """Text layers begin by attending to tokens that resemble the asking one and by copying what they hold.

    Keys start near the queries and output maps near the transposed value maps (mimetic initialisation,
    arXiv 2305.09828): an object's name finds the visual tokens whose features the dense labels tie to its words.
    """
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        attention.k_proj.weight.copy_(0.8 * attention.q_proj.weight + 0.6 * attention.k_proj.weight)
        attention.o_proj.weight.copy_(0.8 * attention.v_proj.weight.T + 0.6 * attention.o_proj.weight)


def lattice(family: str) -> list[int]:
    """The coordinates the policy is taught to write: one for every pixel of its view, in the family's convention.

    Example:
        >>> lattice("qwen3_vl")[:4], lattice("qwen2_5_vl")[-1]
        ([0, 10, 21, 31], 96)
    """
    return [round(k * 1000 / VIEW) if family == "qwen3_vl" else k for k in range(VIEW + 1)]


def _fourier(rows: int, width: int, band: tuple[float, float]) -> Any:
    """Row v = [cos(2 pi f v / rows), sin(...)] for frequencies f spaced over `band`: near numbers look alike."""
    import torch

    frequencies = torch.logspace(math.log10(band[0]), math.log10(band[1]), width // 2)
    angles = 2 * math.pi * torch.arange(rows)[:, None] * frequencies[None] / rows
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def write_policy(model: Any, folder: Path) -> None:
    """Write weights (bf16, tied embedding once) and every file of the published layout."""
    import copy

    import torch

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    ids = model.config.text_config
    generation = {"eos_token_id": ids.eos_token_id, "pad_token_id": ids.pad_token_id, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
