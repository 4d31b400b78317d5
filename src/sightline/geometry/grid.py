"""Boxes on the grid of visual tokens, and the words for a place in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sightline.geometry.frames import Frame
from sightline.types import Box, Region, Size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["Membership", "RegionName", "coverage", "membership", "region_name", "touched"]

Membership = Literal["overlap", "coverage", "inclusive_floor"]
"""Which visual cells boxes own: all they overlap, each by its covered share, or the integer ranges SAYO released."""


class RegionName(NamedTuple):
    """One of nine places: a third of the height, a third of the width."""

    row: Literal["top", "middle", "bottom"]
    column: Literal["left", "center", "right"]


def coverage(box: Box, frame: Frame, size: Size) -> Float[np.ndarray, "rows columns"]:
    """Share of each visual cell that the box covers, in [0, 1].

    Args:
        box: original pixels.
        frame: says how many cells the image has.
        size: original size of the image.

    Example:
        >>> coverage(Box(0, 0, 48, 32), Frame("relative_1000", 32, 1024, 65536), Size(64, 64)).tolist()
        [[1.0, 0.5], [0.0, 0.0]]
    """
    rows, columns = frame.cells(size)
    across = _shares(box[0] * columns / size[0], box[2] * columns / size[0], columns)
    down = _shares(box[1] * rows / size[1], box[3] * rows / size[1], rows)
    return np.outer(down, across)


def touched(boxes: Sequence[Box], frame: Frame, size: Size) -> Bool[np.ndarray, "visual"]:
    """Which visual tokens, row by row, at least one box overlaps.

    Example:
        >>> touched([Box(40, 0, 48, 32)], Frame("relative_1000", 32, 1024, 65536), Size(64, 64)).tolist()
        [False, True, False, False]
    """
    out = np.zeros(frame.cells(size), dtype=bool)
    for box in boxes:
        out |= coverage(box, frame, size) > 0
    return out.reshape(-1)


def membership(
    regions: Sequence[Region],
    sizes: Sequence[Size],
    frame: Frame,
    rule: Membership = "overlap",
    *,
    is_first_only: bool = False,
) -> Float[np.ndarray, "visual"]:
    """How far each visual token of all images, row by row, belongs to the regions, in [0, 1].

    `coverage`: area of the cell under the union of the boxes / area of the cell. `overlap`: 1 where that is above 0.
    `inclusive_floor`: 1 from the cell of the first corner to the cell of the second, both included, so that a box that
    ends on a border takes one cell more. Where no box covers anything, each owns the cell of its centre. Zeros without
    regions.

    Args:
        regions: gold regions; those of an image that is not there are left out.
        sizes: original size of each image.
        frame: says how many cells an image has.
        rule: see above.
        is_first_only: use the first region only.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> membership([Region(box=Box(0, 0, 48, 32))], [Size(64, 64)], frame, "coverage").tolist()
        [1.0, 0.5, 0.0, 0.0]
        >>> membership([Region(box=Box(0, 0, 32, 16))], [Size(64, 64)], frame, "inclusive_floor").tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    grids = [np.zeros(frame.cells(size)) for size in sizes]
    chosen = [r for r in (regions[:1] if is_first_only else regions) if r.image < len(sizes)]
    for index, size in enumerate(sizes):
        rows, columns = grids[index].shape
        boxes = [
            Box(b[0] * columns / size[0], b[1] * rows / size[1], b[2] * columns / size[0], b[3] * rows / size[1])
            for b in (r.box for r in chosen if r.image == index)
        ]
        grids[index] = _ranges(boxes, rows, columns) if rule == "inclusive_floor" else _union(boxes, rows, columns)
    if chosen and not any(grid.any() for grid in grids):
        for region in chosen:
            row, column = _centre(region.box, sizes[region.image], grids[region.image].shape)
            grids[region.image][row, column] = 1.0
    out = np.concatenate([np.zeros(0), *(grid.reshape(-1) for grid in grids)])
    return (out > 0).astype(np.float64) if rule == "overlap" else out


def region_name(box: Box, size: Size) -> RegionName:
    """The ninth of the image that holds the centre of the box; a centre on a border belongs to the later ninth.

    Example:
        >>> region_name(Box(0, 0, 10, 10), Size(90, 90))
        RegionName(row='top', column='left')
    """
    across = (box[0] + box[2]) / 2 / size[0]
    down = (box[1] + box[3]) / 2 / size[1]
    row = "top" if down < 1 / 3 else "middle" if down < 2 / 3 else "bottom"
    column = "left" if across < 1 / 3 else "center" if across < 2 / 3 else "right"
    return RegionName(row, column)


def _shares(low: float, high: float, cells: int) -> Float[np.ndarray, "cells"]:
    """Overlap of `[low, high]` with each unit cell `[i, i + 1]`."""
    edges = np.arange(cells, dtype=np.float64)
    return np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0.0, 1.0)


def _union(boxes: Sequence[Box], rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """Share of each unit cell under the union of boxes given in cells: exact, over the rectangles their edges cut."""
    if not boxes:
        return np.zeros((rows, columns))
    edges = np.array(boxes, np.float64)
    across = np.unique(np.concatenate([np.arange(columns + 1), edges[:, [0, 2]].clip(0, columns).ravel()]))
    down = np.unique(np.concatenate([np.arange(rows + 1), edges[:, [1, 3]].clip(0, rows).ravel()]))
    x, y = (across[1:] + across[:-1]) / 2, (down[1:] + down[:-1]) / 2
    inside = np.zeros((len(y), len(x)))
    for x1, y1, x2, y2 in boxes:
        inside[np.ix_((y1 < y) & (y < y2), (x1 < x) & (x < x2))] = 1.0
    area = inside * np.outer(np.diff(down), np.diff(across))
    area = np.add.reduceat(area, np.searchsorted(down, np.arange(rows)), axis=0)
    return np.minimum(np.add.reduceat(area, np.searchsorted(across, np.arange(columns)), axis=1), 1.0)


def _ranges(boxes: Sequence[Box], rows: int, columns: int) -> Float[np.ndarray, "rows columns"]:
    """Cells from floor(x1) to floor(x2) and floor(y1) to floor(y2), both ends included, clamped to the grid."""
    out = np.zeros((rows, columns))
    for x1, y1, x2, y2 in boxes:
        left, right = (int(np.clip(np.floor(v), 0, columns - 1)) for v in (x1, x2))
        top, bottom = (int(np.clip(np.floor(v), 0, rows - 1)) for v in (y1, y2))
        out[top : bottom + 1, left : right + 1] = 1.0
    return out


def _centre(box: Box, size: Size, grid: tuple[int, ...]) -> tuple[int, int]:
    """The cell that holds the centre of a box, the nearest one if it lies outside."""
    column = int((box[0] + box[2]) / 2 * grid[1] / size[0])
    row = int((box[1] + box[3]) / 2 * grid[0] / size[1])
    return min(max(row, 0), grid[0] - 1), min(max(column, 0), grid[1] - 1)
