"""What the GPU benchmark measures: published architectures with random weights, and one Group of iVGR's shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.types import Credit, Group, ImageSlot, Message, Prompt, Reading, Record, Rollout

if TYPE_CHECKING:
    import torch

    from sightline.policy.load import Policy

__all__ = ["IVGR", "MODELS", "TINY", "Shape", "make_group", "make_policy"]

PATCH, MERGE = 14, 2
MARKS = {"vision_start_token_id": -4, "vision_end_token_id": -3, "image_token_id": -2, "video_token_id": -1}
"""Special ids, counted from the end of the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens of one Group. `cells` are rows and columns of visual tokens; `text` counts the rest of the prompt."""

    cells: tuple[int, int]
    text: int
    reply: int
    streams: tuple[str, ...] = ("grounded", "textual")
    rollouts: int = 5

    @property
    def prompt(self) -> int:
        return self.cells[0] * self.cells[1] + self.text


IVGR = Shape(cells=(28, 36), text=292, reply=400)
TINY = Shape(cells=(6, 8), text=12, reply=16)

MODELS: dict[str, dict[str, Any]] = {
    "3B": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
                 "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        "vision": {"out_hidden_size": 2048},
    },
    "7B": {
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                 "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
        "vision": {"out_hidden_size": 3584},
    },
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
        "vision": {"depth": 2, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "out_hidden_size": 64,
                   "fullatt_block_indexes": [1]},
    },
}  # fmt: skip
"""Qwen2.5-VL as published, and a tiny one for runs without a GPU."""

TOWER = {
    "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": PATCH,
    "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip


def make_policy(name: str, device: torch.device, dtype: torch.dtype, shape: Shape) -> Policy:
    """A policy with random weights, built without files; its tokenizer only knows the pad id."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessorPil

    from sightline.geometry.frames import Frame
    from sightline.policy.forward import PolicyModule
    from sightline.policy.load import Policy
    from sightline.policy.pixels import Pixels
    from sightline.policy.qwen_vl import QwenVL
    from sightline.policy.skeleton import revive_buffers, skeleton

    wanted = MODELS[name]
    width = wanted["text"]["hidden_size"] // wanted["text"]["num_attention_heads"]
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [width // 8, width * 3 // 16, width * 3 // 16],
    }
    vocab = wanted["text"]["vocab_size"]
    config = Qwen2_5_VLConfig(
        text_config={**wanted["text"], "rope_parameters": rope, "max_position_embeddings": 32768},
        vision_config={**TOWER, **wanted["vision"]}, tie_word_embeddings=wanted["text"]["tie_word_embeddings"],
        **{mark: vocab + place for mark, place in MARKS.items()},
    )  # fmt: skip
    model = skeleton(config, "Qwen2_5_VLForConditionalGeneration", dtype)
    _give_memory(model, device, dtype)
    revive_buffers(model, device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, 0.02)
            else:
                p.fill_(float("norm" in parameter_name or "ln_q" in parameter_name))
    adapter = QwenVL(model)
    area = shape.cells[0] * shape.cells[1] * (PATCH * MERGE) ** 2
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area}, patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2
    )
    frame = Frame(convention="absolute", factor=PATCH * MERGE, min_pixels=area, max_pixels=area)
    return Policy(
        source=Path(), name=name, adapter=adapter, module=PolicyModule(adapter, ()).to(device),
        tokenizer=SimpleNamespace(pad_token_id=0), pixels=Pixels(processor, frame),
        frame=frame, template="", style="full", eos=(1,), banned=(),
    )  # fmt: skip


def _give_memory(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Empty parameters of one number format on the device; those that are shared stay shared."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for key, p in module._parameters.items():
            if p is not None:
                if id(p) not in made:
                    made[id(p)] = torch.nn.Parameter(torch.empty_like(p, device=device, dtype=dtype))
                module._parameters[key] = made[id(p)]


def make_group(policy: Policy, shape: Shape, number: int = 0) -> Group:
    """One record with a random picture, random prompts and replies, and normal advantages of mean zero per stream."""
    from sightline.images import image_ref

    rng = np.random.default_rng(number)
    side = PATCH * MERGE
    pixels = rng.integers(0, 256, (shape.cells[0] * side, shape.cells[1] * side, 3), dtype=np.uint8)
    record = Record(id=f"r{number}", question="", answer="", images=(image_ref(pixels),))
    config = policy.model.config
    words = policy.model.config.text_config.vocab_size - 8
    count = shape.cells[0] * shape.cells[1]
    head = np.array([config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id])
    rollouts, credits = [], []
    for stream in shape.streams:
        ids = np.concatenate([head, rng.integers(2, words, shape.text - 2)]).astype(np.int64)
        message = Message("user", (ImageSlot(0), ""))
        prompt = Prompt(record=record, stream=stream, messages=(message,), images=record.images)
        advantages = rng.normal(size=shape.rollouts)
        for branch, advantage in enumerate(advantages - advantages.mean()):
            reply = rng.integers(2, words, shape.reply)
            rollouts.append(
                Rollout(
                    prompt=prompt, branch=(branch,), prompt_ids=ids, ids=reply, sampled=np.ones(len(reply), bool),
                    logprobs=np.zeros(len(reply), np.float32), text="", finish="length",
                )
            )  # fmt: skip
            credits.append(Credit(advantage=np.full(shape.reply, advantage), weight=np.ones(shape.reply)))
    readings = tuple(Reading(text="") for _ in rollouts)
    return Group(record=record, rollouts=tuple(rollouts), readings=readings, credits=tuple(credits))
