"""Attention matrices by transformers' eager attention, the reference of every read-out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from conftest import make_record
from sightline.language.prompts import prompt
from sightline.policy.attention import NAME, dense_mask
from sightline.policy.batch import Batch, collate
from sightline.policy.load import Policy
from sightline.policy.tree import Tree, build_tree, rollout_path
from sightline.types import Rollout


@contextmanager
def eager(policy: Policy) -> Iterator[None]:
    """The language model on transformers' eager attention, without checkpointing, which would recompute without it."""
    is_training = policy.model.training
    policy.model.eval().set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        policy.model.train(is_training).set_attn_implementation({"text_config": NAME})


def rollouts(policy: Policy, seed: int = 0, sizes: Sequence[int] = (1, 7, 12, 3)) -> list[Rollout]:
    """Two streams of one record with ragged random replies."""
    rng = np.random.default_rng(seed)
    record = make_record(f"r{seed}", ((96, 64),), seed)
    out = []
    for stream in ("grounded", "textual"):
        shown = prompt(record, stream, stream, "compact")
        ids = policy.encode(shown).ids
        for branch, length in enumerate(sizes):
            out.append(
                Rollout(
                    prompt=shown, branch=(branch,), prompt_ids=ids, ids=rng.integers(256, 1200, length),
                    sampled=np.ones(length, bool), logprobs=np.zeros(length, np.float32), text="", finish="stop",
                )
            )  # fmt: skip
    return out


def tree_of(policy: Policy, group: Sequence[Rollout]) -> Tree:
    return build_tree([rollout_path(r, policy.image_token) for r in group], policy.rules)


def whole_paths(tree: Tree) -> list[np.ndarray]:
    """Layout positions of each path from the root to its last token, which are the keys that token sees."""
    index = np.arange(len(tree))
    return [index[(index <= w[-1]) & (w[-1] < tree.end)] for w in tree.where]


def stock_attention(policy: Policy, rollout: Rollout) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Matrices (1, heads, tokens, tokens) of every layer and the replies' log-probs, one stock forward, no tree."""
    ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
    shown = policy.pixels.batch([(image, 0) for image in rollout.prompt.images])
    inputs: dict[str, Any] = {"pixel_values": shown.pixels, "image_grid_thw": shown.grids}
    types = (ids == policy.image_token).int()
    with eager(policy):
        out = policy.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=types,
            output_attentions=True,
            **inputs,
        )
    rows = torch.log_softmax(out.logits[0, len(rollout.prompt_ids) - 1 : -1] + policy.module.bias, -1)
    return out.attentions, rows.gather(-1, ids[0, len(rollout.prompt_ids) :, None])[:, 0]


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """The gradients of all parameters, which are cleared."""
    found = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    return found


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = sum(float((a[n] - b[n]).square().sum()) for n in a) ** 0.5
    return top / sum(float(b[n].square().sum()) for n in b) ** 0.5


def padded_inputs(policy: Policy, group: Sequence[Rollout], side: str) -> dict[str, Any]:
    """The stock call's inputs for several Rollouts as padded rows, images repeated per row."""
    rows = [np.concatenate([r.prompt_ids, r.ids]) for r in group]
    width = max(len(r) for r in rows)
    ids = np.full((len(rows), width), policy.pad)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        span = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[i, span], mask[i, span] = row, 1
    shown = [policy.pixels.batch([(image, 0) for image in r.prompt.images]) for r in group]
    given = torch.from_numpy(ids)
    return {
        "input_ids": given, "attention_mask": torch.from_numpy(mask),
        "mm_token_type_ids": (given == policy.image_token).int(),
        "pixel_values": torch.cat([v.pixels for v in shown if v.pixels is not None]),
        "image_grid_thw": torch.cat([v.grids for v in shown if v.grids is not None]),
    }  # fmt: skip


def dense_attention(policy: Policy, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Matrices (rows, heads, tokens, tokens) of every layer under the dense mask of the tree, and the log-probs."""
    assert batch.pixels is not None
    assert batch.grids is not None
    visual = (policy.adapter.vision(batch.pixels, batch.grids), batch.visual_at, batch.visual_from)
    mask = dense_mask(batch.end, next(policy.model.parameters()).dtype)
    found: list[torch.Tensor] = []
    layers = [m for n, m in policy.model.named_modules() if n.endswith("self_attn") and "language" in n]
    handles = [layer.register_forward_hook(lambda _, __, out: found.append(out[1])) for layer in layers]
    with eager(policy):
        hidden = policy.adapter.text(batch.ids, batch.positions, mask, visual)
    for handle in handles:
        handle.remove()
    rows = policy.module.scores(hidden.reshape(-1, hidden.shape[-1])[batch.predictor])
    return found, torch.log_softmax(rows, -1).gather(-1, batch.target[:, None])[:, 0]


def batch_of(policy: Policy, seed: int = 0) -> Batch:
    """One tree of eight Rollouts."""
    return collate([[tree_of(policy, rollouts(policy, seed))]], policy.pixels, pad=policy.pad)


def visual_keys(policy: Policy, batch: Batch) -> torch.Tensor:
    return torch.nonzero(batch.ids[0] == policy.image_token)[None, :, 0]


def anchoring(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """A loss on maps of several layers that no symmetry makes flat: minus the log of a weighted mass."""
    weights = torch.linspace(0, 1, maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    return -torch.stack([(m @ weights).log().mean() for m in maps]).sum()
