"""Boxes on the grid of visual tokens, and the words for a place in the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from sightline.geometry.frames import Frame
from sightline.types import Box, Size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["RegionName", "coverage", "region_name", "touched"]


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
