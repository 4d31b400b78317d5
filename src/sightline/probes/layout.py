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
    from sightline.types import Record

__all__ = ["Layout", "Queries", "Root", "region_of"]


@dataclass(frozen=True, slots=True)
class Root:
    """One prompt head of a tree and the visual tokens of its images, as positions in the row.

    Attributes:
        part: index of the tree in the batch.
        row: row of the batch.
        own: visual tokens of the Record's images, in order.
        further: visual tokens of the images that the mode added to the prompt.
        column: where `own` and `further` begin among the columns of the row's map.
        number: its place among the heads of the tree.
    """

    part: int
    row: int
    own: Int[np.ndarray, "visual"]
    further: Int[np.ndarray, "further"]
    column: int
    number: int

    @property
    def columns(self) -> slice:
        """The columns of the images of this prompt."""
        return slice(self.column, self.column + len(self.own) + len(self.further))


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
            roots = []
            for number, images in enumerate(prompts):
                count = len(part.rollouts[0].record.images)
                own, further = _joined(images[:count]) + offset, _joined(images[count:]) + offset
                roots.append(Root(index, row, own, further, columns[row], number))
                columns[row] += len(own) + len(further)
            self.roots.append(roots)
            self.added.append(_joined(added) + offset)
            self._starts.append(starts)
        self.columns = max(columns)

    def root(self, part: int, path: int) -> Root:
        """The prompt head that a path of a tree starts from."""
        first = self.packed.parts[part].tree.where[path][0]
        return self.roots[part][int(np.searchsorted(self._starts[part], first, side="right")) - 1]

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
            keys[root.row, root.columns] = np.concatenate([root.own, root.further])
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
            added = np.concatenate([self.added[index], *(root.further for root in self.roots[index])])
            out[row, :, added] = np.array([0, 0, 1, 0])
            for root in self.roots[index]:
                out[row, :, root.own] = np.stack([region, 1 - region, 0 * region, 0 * region], axis=1)[: len(root.own)]
        return torch.from_numpy(out).to(self.packed.batch.ids.device)


def region_of(record: Record, probe: RegionAttention | FocusAttention, frame: Frame) -> Float[np.ndarray, "visual"]:
    """Membership of the visual tokens of the Record's images in its regions, as the probe defines it."""
    sizes = [image.size for image in record.images]
    return membership(record.regions, sizes, frame, probe.membership, is_first_only=probe.boxes == "first")


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
