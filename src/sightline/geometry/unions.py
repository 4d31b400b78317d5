"""Unions of boxes, exact: the plane is cut at the coordinates of the boxes, never into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sightline.types import Box

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["union_area", "union_iou"]


def union_area(boxes: Sequence[Box]) -> float:
    """Area covered by at least one box; a reversed box covers none.

    Example:
        >>> union_area([Box(0, 0, 2, 2), Box(1, 1, 3, 3)])
        7.0
    """
    xs, ys = _cuts(boxes)
    return _covered_area(_covered(boxes, xs, ys), xs, ys)


def union_iou(a: Sequence[Box], b: Sequence[Box]) -> float:
    """IoU of two unions of boxes, `|U(a) & U(b)| / |U(a) | U(b)|`, exact (the "grounding IoU" of GRIT).

    Example:
        >>> union_iou([Box(0, 0, 2, 4), Box(1, 0, 4, 4)], [Box(0, 0, 4, 4)])
        1.0
    """
    xs, ys = _cuts([*a, *b])
    first, second = _covered(a, xs, ys), _covered(b, xs, ys)
    union = _covered_area(first | second, xs, ys)
    return min(_covered_area(first & second, xs, ys) / union, 1.0) if union > 0 else 0.0


def _cuts(boxes: Sequence[Box]) -> tuple[Float[np.ndarray, "xs"], Float[np.ndarray, "ys"]]:
    array = np.asarray(boxes, dtype=np.float64).reshape(len(boxes), 4)
    return np.unique(array[:, 0::2]), np.unique(array[:, 1::2])


def _covered(
    boxes: Sequence[Box], xs: Float[np.ndarray, "xs"], ys: Float[np.ndarray, "ys"]
) -> Bool[np.ndarray, "xs ys"]:
    """Which rectangles between neighbouring cuts lie in a box: +1 and -1 at its corners, summed along both axes."""
    array = np.asarray(boxes, dtype=np.float64).reshape(len(boxes), 4)
    array = array[(array[:, 0] < array[:, 2]) & (array[:, 1] < array[:, 3])]
    steps = np.zeros((len(xs) + 1, len(ys) + 1), dtype=np.int64)
    left, right = np.searchsorted(xs, array[:, 0]), np.searchsorted(xs, array[:, 2])
    top, bottom = np.searchsorted(ys, array[:, 1]), np.searchsorted(ys, array[:, 3])
    for x, y, sign in ((left, top, 1), (right, bottom, 1), (left, bottom, -1), (right, top, -1)):
        np.add.at(steps, (x, y), sign)
    return steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0


def _covered_area(
    covered: Bool[np.ndarray, "xs ys"], xs: Float[np.ndarray, "xs"], ys: Float[np.ndarray, "ys"]
) -> float:
    if not covered.any():
        return 0.0
    return float(np.diff(xs) @ covered[:-1, :-1] @ np.diff(ys))
