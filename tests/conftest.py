"""Random-weight checkpoints of the published layout in both families, and small pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import ImageRef, Record

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def write_random_checkpoint(folder: Path, family: str, seed: int = 0) -> Path:
    """Grouped-query attention, odd sizes and tied embeddings, unlike the embedded policy."""
    import torch
    import transformers

    from sightline.scenes.tokenizer import build_tokenizer, write_tokenizer

    tokenizer = build_tokenizer()
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    special = {f"{name}_token_id": tokenizer.token_to_id(f"<|{mark}|>") for name, mark in marks.items()}
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    text: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size() + 7, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "initializer_range": 0.15,
        "tie_word_embeddings": True, "eos_token_id": end, "pad_token_id": pad, "bos_token_id": None,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 48, "initializer_range": 0.15,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4}
    torch.manual_seed(seed)
    if family == "qwen3_vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        text |= {"head_dim": 12, "rope_parameters": {**rope, "mrope_section": [2, 2, 2], "mrope_interleaved": True}}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
        model: Any = transformers.Qwen3VLForConditionalGeneration(config)
    else:
        vision |= {"fullatt_block_indexes": [1], "window_size": 32}
        text |= {"rope_parameters": {**rope, "mrope_section": [2, 2, 2]}}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True, **special
        )
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    processor = {
        "size": {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}, "patch_size": 8, "merge_size": 2,
        "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    (folder / "card.json").write_text(json.dumps({"prompt_style": "compact"}))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random-weight checkpoint folder per family."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_random_checkpoint(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def policy(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Policy:
    """A random-weight policy of each family. Tests must not change its weights."""
    from sightline.policy.load import load_policy

    return load_policy(checkpoints[request.param])


def picture(width: int, height: int, seed: int = 0) -> ImageRef:
    """A random picture held in memory."""
    from sightline.images import image_ref

    return image_ref(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_record(name: str = "r0", sizes: tuple[tuple[int, int], ...] = ((96, 64),), seed: int = 0) -> Record:
    """A record with random pictures and one gold box in the first."""
    from sightline.types import Box, Record, Region

    images = tuple(picture(w, h, seed + i) for i, (w, h) in enumerate(sizes))
    regions = (Region(box=Box(8.0, 10.0, 40.0, 44.0), label="red square"),) if images else ()
    question = "What color is the mark on the red square?"
    return Record(id=name, question=question, answer="green", images=images, regions=regions)
