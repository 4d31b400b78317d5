"""Where visual tokens and replies stand in a packed batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.geometry.grid import membership
from sightline.methods.probes import SEGMENTS, RegionAttention

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.methods.probes import FocusAttention
    from sightline.policy.packing import Packed, Part
    from sightline.types import Record, Rollout

__all__ = ["Layout", "Queries", "Root", "first_own", "own_columns", "region_of"]


@dataclass(frozen=True, slots=True)
class Root:
    """One prompt head of a tree and the visual tokens of its images, as positions in the row.

    Attributes:
        part: index of the tree in the batch.
        row: row of the batch.
        visual: visual tokens of all images of the prompt, in order.
        within: which of them are those of the Record's images; the mode added the others.
        column: where `visual` begins among the columns of the row's map.
        number: its place among the heads of the tree.
    """

    part: int
    row: int
    visual: Int[np.ndarray, "visual"]
    within: slice
    column: int
    number: int

    @property
    def own(self) -> Int[np.ndarray, "own"]:
        """Positions of the visual tokens of the Record's images."""
        return self.visual[self.within]

    @property
    def columns(self) -> slice:
        """The columns of the images of this prompt."""
        return slice(self.column, self.column + len(self.visual))

    @property
    def own_columns(self) -> slice:
        """The columns of the Record's images."""
        return slice(self.column + self.within.start, self.column + self.within.stop)


@dataclass(frozen=True, slots=True)
class Queries:
    """Flat positions of a batch as query slots of its rows, (rows, queries) with -1 where unused, and back."""

    rows: Int[Tensor, "rows queries"]
    row: Int[Tensor, "flat"]
    slot: Int[Tensor, "flat"]

    @classmethod
    def of(cls, flat: Int[Tensor, "flat"], rows: int, width: int) -> Queries:
        row, column = flat.div(width, rounding_mode="floor"), flat % width
        order = torch.argsort(row, stable=True)
        count = torch.bincount(row, minlength=rows)
        first = torch.cumsum(count, 0) - count
        slot = torch.empty_like(row)
        slot[order] = torch.arange(len(row), device=row.device) - first[row[order]]
        table = torch.full((rows, max(int(count.max()) if len(row) else 0, 1)), -1, device=flat.device)
        table[row, slot] = column
        return cls(table, row, slot)

    def pick(self, values: Float[Tensor, "rows queries ..."]) -> Float[Tensor, "flat ..."]:
        """What was found for each of the flat positions."""
        return values[self.row, self.slot]


class Layout:
    """The visual tokens of every prompt of a packed batch, and which tokens later turns added."""

    def __init__(self, packed: Packed, frame: Frame) -> None:
        self.packed, self.frame = packed, frame
        self.rows, self.width = packed.batch.ids.shape
        self.roots: list[list[Root]] = []
        self.added: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        columns = [0] * self.rows
        for index, (part, row, offset) in enumerate(zip(packed.parts, packed.rows, packed.offsets, strict=True)):
            starts = np.flatnonzero(part.tree.previous == -1)
            prompts, added = _images(part, starts, frame)
            heads = {_head(starts, part, path): rollout for path, rollout in enumerate(part.rollouts)}
            roots = []
            for number, images in enumerate(prompts):
                visual, within = _joined(images) + offset, own_columns(heads[number], frame)
                roots.append(Root(index, row, visual, within, columns[row], number))
                columns[row] += len(visual)
            self.roots.append(roots)
            self.added.append(_joined(added) + offset)
            self._starts.append(starts)
        self.columns = max(columns)

    def root(self, part: int, path: int) -> Root:
        """The prompt head that a path of a tree starts from."""
        return self.roots[part][_head(self._starts[part], self.packed.parts[part], path)]

    def scored_roots(self) -> Iterator[tuple[Root, Int[np.ndarray, "scored"]]]:
        """Each prompt head with the scored tokens that come from it."""
        for index, slots in enumerate(self.packed.batch.slots):
            own: list[list[np.ndarray]] = [[] for _ in self.roots[index]]
            for path, slot in enumerate(slots):
                own[self.root(index, path).number].append(slot[slot >= 0])
            for root, found in zip(self.roots[index], own, strict=True):
                yield root, np.unique(_joined(found))

    def keys(self) -> Int[Tensor, "rows visual"]:
        """Positions of the visual tokens of all prompts of a row, -1 where a row has fewer."""
        keys = np.full((self.rows, self.columns), -1, np.int64)
        for root in self.every_root():
            keys[root.row, root.columns] = root.visual
        return torch.from_numpy(keys).to(self.packed.batch.ids.device)

    def every_root(self) -> Iterator[Root]:
        for roots in self.roots:
            yield from roots

    def segments(self, probe: RegionAttention) -> Float[Tensor, "rows segments tokens"]:
        """The weight of every token in each of SEGMENTS."""
        out = np.zeros((self.rows, len(SEGMENTS), self.width), np.float32)
        out[:, SEGMENTS.index("text")] = 1.0
        for index, (part, row) in enumerate(zip(self.packed.parts, self.packed.rows, strict=True)):
            region = region_of(part.rollouts[0].record, probe, self.frame)
            added = np.concatenate([self.added[index], *(root.visual for root in self.roots[index])])
            out[row, :, added] = np.array([0, 0, 1, 0])
            for root in self.roots[index]:
                out[row, :, root.own] = np.stack([region, 1 - region, 0 * region, 0 * region], axis=1)[: len(root.own)]
        return torch.from_numpy(out).to(self.packed.batch.ids.device)


def region_of(record: Record, probe: RegionAttention | FocusAttention, frame: Frame) -> Float[np.ndarray, "visual"]:
    """Membership of the visual tokens of the Record's images in its regions, as the probe defines it."""
    sizes = [image.size for image in record.images]
    return membership(record.regions, sizes, frame, probe.membership, is_first_only=probe.boxes == "first")


def own_columns(rollout: Rollout, frame: Frame) -> slice:
    """Where the visual tokens of the Record's images stand among those of the Prompt's, whose crops may come first."""
    tokens, first = [frame.tokens(image.size) for image in rollout.prompt.images], first_own(rollout)
    return slice(sum(tokens[:first]), sum(tokens[: first + len(rollout.record.images)]))


def first_own(rollout: Rollout) -> int:
    """Which image of the Prompt is the Record's first one; 0 where the Prompt does not show the Record's images."""
    shown, wanted = [i.digest for i in rollout.prompt.images], [i.digest for i in rollout.record.images]
    places = range(len(shown) - len(wanted) + 1)
    return next((at for at in places if shown[at : at + len(wanted)] == wanted), 0)


def _head(starts: Int[np.ndarray, "roots"], part: Part, path: int) -> int:
    """Which of the prompt heads, that begin at `starts`, a path comes from."""
    return int(np.searchsorted(starts, part.tree.where[path][0], side="right")) - 1


def _images(
    part: Part, starts: Int[np.ndarray, "roots"], frame: Frame
) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Positions of the visual tokens of each image: of the prompts, by their root, and of later turns."""
    in_reply = np.zeros(len(part.tree), bool)
    for where in part.tree.where:
        in_reply[where] = True
    prompts: list[list[np.ndarray]] = [[] for _ in starts]
    added: list[np.ndarray] = []
    for image, first in part.tree.images:
        positions = np.arange(first, first + frame.tokens(image.size))
        if in_reply[first]:
            added.append(positions)
        else:
            prompts[int(np.searchsorted(starts, first, side="right")) - 1].append(positions)
    return prompts, added


def _joined(parts: Sequence[np.ndarray]) -> Int[np.ndarray, "tokens"]:
    return np.concatenate([np.empty(0, np.int64), *parts])
