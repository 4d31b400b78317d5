"""What is measured: a tiny model with random weights in the published layout, and Rollouts of a given shape."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.types import Credit, Group, ImageSlot, Measurement, Message, Prompt, Reading, Record, Rollout

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["IVGR", "TRL", "Shape", "groups_of", "make_prompt", "make_record", "write_checkpoint"]

PATCH, MERGE = 8, 2
WORDS = range(256, 1200)
"""Ids of plain words and numbers: neither marks nor bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens and model of one measurement. `text` counts the prompt's tokens besides the image's.

    `vocab` are rows of the vocabulary, those beyond the tokenizer's spare; 0 for as many as it has.
    """

    visual: int
    records: int
    streams: tuple[str, ...]
    rollouts: int
    text: int
    reply: int
    hidden: int
    layers: int = 4
    vocab: int = 0

    @property
    def side(self) -> int:
        """Side of the square image in pixels."""
        return round(self.visual**0.5) * PATCH * MERGE


TRL = Shape(visual=16, records=4, streams=("textual",), rollouts=8, text=35, reply=48, hidden=128)
IVGR = Shape(visual=256, records=1, streams=("grounded", "textual"), rollouts=5, text=35, reply=80, hidden=256)


def write_checkpoint(folder: Path, shape: Shape, family: str = "qwen3_vl", seed: int = 0) -> Path:
    """Random weights; the vision tower has half the width of the language model and two layers."""
    import torch
    import transformers

    from sightline.scenes.tokenizer import build_tokenizer, write_tokenizer

    tokenizer = build_tokenizer()
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    special: dict[str, Any] = {f"{name}_token_id": tokenizer.token_to_id(f"<|{mark}|>") for name, mark in marks.items()}
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    width, heads = shape.hidden, 4
    head = width // heads
    part = head // 2 // 3
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [head // 2 - 2 * part, part, part],
    }
    text: dict[str, Any] = {
        "vocab_size": shape.vocab or tokenizer.get_vocab_size(), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": shape.layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": 4096, "initializer_range": 0.06, "tie_word_embeddings": True,
        "eos_token_id": end, "pad_token_id": pad, "bos_token_id": None, "rope_parameters": rope,
    }  # fmt: skip
    vision: dict[str, Any] = {
        "depth": 2, "hidden_size": width // 2, "num_heads": heads, "intermediate_size": width, "patch_size": PATCH,
        "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": width, "initializer_range": 0.06,
    }  # fmt: skip
    torch.manual_seed(seed)
    if family == "qwen3_vl":
        vision |= {"num_position_embeddings": (shape.side // PATCH) ** 2, "deepstack_visual_indexes": [0]}
        text |= {"head_dim": head, "rope_parameters": {**rope, "mrope_interleaved": True}}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **special)
        model: Any = transformers.Qwen3VLForConditionalGeneration(config)
    else:
        vision |= {"fullatt_block_indexes": [1], "window_size": 4 * PATCH}
        config = transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True, **special
        )
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    limit = shape.side**2
    processor = {
        "size": {"shortest_edge": limit, "longest_edge": limit}, "patch_size": PATCH, "merge_size": MERGE,
        "temporal_patch_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "pad_token_id": pad}))
    return folder


def make_record(shape: Shape, number: int) -> Record:
    """A record with one random picture."""
    from sightline.images import image_ref

    pixels = np.random.default_rng(number).integers(0, 256, (shape.side, shape.side, 3), dtype=np.uint8)
    return Record(id=f"r{number}", question="", answer="", images=(image_ref(pixels),))


def make_prompt(policy: Policy, record: Record, stream: str, text: int) -> Prompt:
    """A prompt of the record's image and `text` further tokens, marks of the chat format included."""

    def of(words: int) -> Prompt:
        content = (ImageSlot(0), " the" * (words - 1) + (" mark" if stream == "textual" else " box"))
        return Prompt(record=record, stream=stream, messages=(Message("user", content),), images=record.images)

    marks = len(policy.encode(of(1)).ids) - 1 - shape_tokens(policy, record)
    return of(text - marks)


def shape_tokens(policy: Policy, record: Record) -> int:
    """Visual tokens of a record's first image."""
    rows, columns = policy.pixels.grid(record.images[0])
    return rows * columns


def groups_of(policy: Policy, shape: Shape, *, noise: float = 0.2, seed: int = 0) -> list[Group]:
    """Groups with random replies and credit; old log-probs are the policy's own plus fixed noise.

    Advantages are normal with mean zero per stream, one number per Rollout. `Measurement.logprobs` are the old ones.
    """
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(shape.records):
        record = make_record(shape, number)
        rollouts, credits = [], []
        for stream in shape.streams:
            prompt = make_prompt(policy, record, stream, shape.text)
            ids = policy.encode(prompt).ids
            advantages = rng.normal(size=shape.rollouts)
            for branch, advantage in enumerate(advantages - advantages.mean()):
                reply = rng.integers(WORDS.start, WORDS.stop, shape.reply)
                rollouts.append(
                    Rollout(
                        prompt=prompt, branch=(branch,), prompt_ids=ids, ids=reply, sampled=np.ones(len(reply), bool),
                        logprobs=np.zeros(len(reply), np.float32), text="", finish="length",
                    )
                )  # fmt: skip
                credits.append(Credit(advantage=np.full(shape.reply, advantage), weight=np.ones(shape.reply)))
        readings = tuple(Reading(text="") for _ in rollouts)
        groups.append(Group(record=record, rollouts=tuple(rollouts), readings=readings, credits=tuple(credits)))
    return _perturbed(policy, groups, noise, rng)


def _perturbed(policy: Policy, groups: list[Group], noise: float, rng: np.random.Generator) -> list[Group]:
    from sightline.config.sections import Optim
    from sightline.train.learner import Learner

    def moved(seen: Measurement) -> Measurement:
        assert seen.logprobs is not None
        drift = rng.normal(0, noise, len(seen.logprobs)).astype(np.float32)
        return Measurement(logprobs=seen.logprobs + drift)

    measured = Learner(policy, Optim(), steps=1).measure(groups)
    return [replace(g, measurements=tuple(moved(m) for m in g.measurements)) for g in measured]
