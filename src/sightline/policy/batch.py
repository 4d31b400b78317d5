"""Batches: token trees as tensors, with credit folded onto the tokens that several Rollouts share.

Axes: `rows` packed rows, `tokens` layout positions of a row, `scored` unique sampled tokens (N), `pairs` (leaf, token)
incidences (M), `visual` visual tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.policy.flex import bucket
from sightline.policy.flops import visible_pairs
from sightline.types import Credit

if TYPE_CHECKING:
    from sightline.policy.adapter import Vision
    from sightline.policy.pixels import Pixels
    from sightline.policy.tree import Tree

__all__ = ["Batch", "FoldedCredit", "Paths", "collate", "microbatches", "sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedCredit:
    """Credit of N unique sampled tokens, summed over the leaves i that share them.

    positive = sum_i w_i max(A_i, 0), negative = sum_i w_i min(A_i, 0), weight = sum_i w_i. A clipped surrogate that is
    evaluated once per sign on these equals the unshared batch exactly.
    """

    positive: Float[Tensor, "scored"]
    negative: Float[Tensor, "scored"]
    weight: Float[Tensor, "scored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The unfolded view: one entry per (leaf, sampled token on its path), for losses on whole sequences."""

    leaf: Int[Tensor, "pairs"]
    token: Int[Tensor, "pairs"]
    advantage: Float[Tensor, "pairs"]
    weight: Float[Tensor, "pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of token trees, ready for one forward.

    Attributes:
        ids, end: (rows, tokens); positions: (3, rows, tokens).
        predictor: flat row-major index of the position whose hidden state predicts each scored token, (N,).
        at: flat index of each scored token itself, (N,).
        target: ids of the scored tokens, (N,).
        pixels: patches of the distinct images, (patches, patch_width); grids: (images, 3) in patches, (t, h, w).
        features: of those images in place of pixels, where the vision tower is frozen.
        visual_at: flat index of each visual token of the rows; visual_from: the image feature that goes there.
        tokens: layout positions that are not padding; pairs: visible (query, key) pairs of theirs.
        slots: per tree, per path: index into the scored tokens for every response token, -1 where not sampled.
        probes: measured probes by name, one entry per scored token; NaN where a Rollout has none.
        progress: share of the training steps that are done.
    """

    ids: Int[Tensor, "rows tokens"]
    positions: Int[Tensor, "3 rows tokens"]
    end: Int[Tensor, "rows tokens"]
    predictor: Int[Tensor, "scored"]
    at: Int[Tensor, "scored"]
    target: Int[Tensor, "scored"]
    pixels: Float[Tensor, "patches patch_width"] | None
    grids: Int[Tensor, "images 3"] | None
    visual_at: Int[Tensor, "visual"]
    visual_from: Int[Tensor, "visual"]
    tokens: int
    slots: tuple[tuple[np.ndarray, ...], ...]
    credit: FoldedCredit | None = None
    paths: Paths | None = None
    old_logprobs: Float[Tensor, "scored"] | None = None
    reference_logprobs: Float[Tensor, "scored"] | None = None
    probes: Mapping[str, Float[Tensor, "scored ..."]] = field(default_factory=dict)
    progress: float = 0.0
    features: Vision | None = None
    pairs: int = 0

    def with_credit(self, credits: Sequence[Sequence[Credit]]) -> Batch:
        """Folds per-Rollout credit (one sequence per tree, in path order) onto the scored tokens."""
        count = len(self.target)
        folded = np.zeros((3, count), np.float64)
        leaf, token, advantage, weight = [], [], [], []
        number = 0
        for slots, tree_credits in zip(self.slots, credits, strict=True):
            for slot, credit in zip(slots, tree_credits, strict=True):
                on = slot >= 0
                index, a, w = slot[on], credit.advantage[on], credit.weight[on]
                np.add.at(folded[0], index, w * np.maximum(a, 0))
                np.add.at(folded[1], index, w * np.minimum(a, 0))
                np.add.at(folded[2], index, w)
                leaf.append(np.full(len(index), number))
                token.append(index)
                advantage.append(a)
                weight.append(w)
                number += 1
        device = self.ids.device
        tensors = [sent(torch.from_numpy(x.astype(np.float32)), device) for x in folded]
        return replace(
            self,
            credit=FoldedCredit(positive=tensors[0], negative=tensors[1], weight=tensors[2]),
            paths=Paths(
                leaf=_tensor(leaf, np.int64, device),
                token=_tensor(token, np.int64, device),
                advantage=_tensor(advantage, np.float32, device),
                weight=_tensor(weight, np.float32, device),
            ),
        )

    def with_logprobs(self, old: Sequence[Sequence[np.ndarray]]) -> Batch:
        """Attaches old log-probs given per Rollout token. A shared token takes the value of its first path."""
        return replace(self, old_logprobs=self.gather(old))

    def gather(self, values: Sequence[Sequence[np.ndarray]], axes: tuple[int, ...] = ()) -> Float[Tensor, "scored ..."]:
        """Values per Rollout token -> values per scored token. `axes` are the lengths of further axes."""
        out = np.zeros((len(self.target), *axes), np.float32)
        for slots, tree_values in zip(self.slots, values, strict=True):
            for slot, value in reversed(list(zip(slots, tree_values, strict=True))):
                on = slot >= 0
                out[slot[on]] = value[on]
        return sent(torch.from_numpy(out), self.ids.device)

    def scatter(self, values: Float[Tensor, "scored ..."]) -> list[list[np.ndarray]]:
        """Values per scored token -> float32 values per Rollout token (0 where not sampled), per tree and path."""
        nothing = np.zeros((1, *values.shape[1:]), np.float32)
        flat = np.concatenate([values.detach().float().cpu().numpy(), nothing])
        return [[flat[slot] for slot in slots] for slots in self.slots]


def _tensor(parts: list[np.ndarray], dtype: type, device: torch.device) -> Tensor:
    return sent(torch.from_numpy(np.concatenate([*parts, np.empty(0)]).astype(dtype)), device)


def sent(value: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. To CUDA it travels from pinned memory, so that the host need not wait for it."""
    if torch.device(device).type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def microbatches(lengths: Sequence[int], budget: int, *, packs: bool) -> list[list[list[int]]]:
    """Distributes trees over micro-batches of rows: `result[micro][row]` is a list of tree indices.

    With `packs` (FlexAttention) a micro-batch is one row that holds several trees up to `budget` tokens, longest first.
    Otherwise (dense mask, whose cost grows with the square of a row) every tree is a row of its own, rows of similar
    length stand together and rows x longest row stays within `budget`. A tree longer than the budget stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if packs:
        bins: list[tuple[int, list[int]]] = []
        for i in order:
            for b, (used, members) in enumerate(bins):
                if used + lengths[i] <= budget:
                    bins[b] = (used + lengths[i], [*members, i])
                    break
            else:
                bins.append((lengths[i], [i]))
        return [[members] for _, members in bins]
    result: list[list[list[int]]] = []
    for i in order:
        if result and (len(result[-1]) + 1) * lengths[result[-1][0][0]] <= budget:
            result[-1].append([i])
        else:
            result.append([[i]])
    return result


def collate(
    rows: Sequence[Sequence[Tree]], pixels: Pixels, *, pad: int = 0, device: torch.device | str = "cpu"
) -> Batch:
    """Lays trees out as rows of one Batch. `slots` follow the order of the trees, row by row.

    Padding sees only itself, so that no row of the mask is empty. On CUDA rows are padded to one of a few widths.
    """
    width = max(sum(len(t) for t in row) for row in rows)
    if torch.device(device).type == "cuda":
        width = bucket(width)
    ids = np.full((len(rows), width), pad, np.int64)
    positions = np.zeros((3, len(rows), width), np.int64)
    end = np.tile(np.arange(1, width + 1), (len(rows), 1))
    predictor, at, target, slots, images = [], [], [], [], []
    scored = 0
    for r, row in enumerate(rows):
        offset = 0
        for tree in row:
            span = slice(offset, offset + len(tree))
            ids[r, span], positions[:, r, span], end[r, span] = tree.ids, tree.positions, tree.end + offset
            on = np.flatnonzero(tree.sampled)
            predictor.append(tree.previous[on] + offset + r * width)
            at.append(on + offset + r * width)
            target.append(tree.ids[on])
            number = np.full(len(tree), -1, np.int64)
            number[on] = scored + np.arange(len(on))
            slots.append(tuple(number[w] for w in tree.where))
            images.extend((image, start + offset + r * width) for image, start in tree.images)
            scored += len(on)
            offset += len(tree)
    visual = pixels.batch(images)
    return Batch(
        ids=sent(torch.from_numpy(ids), device),
        positions=sent(torch.from_numpy(positions), device),
        end=sent(torch.from_numpy(end), device),
        predictor=_tensor(predictor, np.int64, torch.device(device)),
        at=_tensor(at, np.int64, torch.device(device)),
        target=_tensor(target, np.int64, torch.device(device)),
        pixels=sent(visual.pixels, device) if visual.pixels is not None else None,
        grids=visual.grids,
        visual_at=sent(visual.at, device),
        visual_from=sent(visual.source, device),
        tokens=sum(len(tree) for row in rows for tree in row),
        features=visual.features,
        slots=tuple(slots),
        pairs=sum(visible_pairs(tree.end) for row in rows for tree in row),
    )
