"""Overlap of boxes: IoU and its set forms, matching, clamping and repair.

All boxes of one call share one frame; which one does not matter, since every measure here is free of scale. Boxes are
continuous rectangles: a box `(x1, y1, x2, y2)` has the area `(x2 - x1) * (y2 - y1)`, and a reversed or empty box has
none. A measure of which either side is empty is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.geometry.unions import union_area, union_iou
from sightline.types import Box, Size

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "Box",
    "Repaired",
    "Size",
    "clamp",
    "dual_iou",
    "enclosing",
    "has_duplicates",
    "iou",
    "iou_matrix",
    "matched_iou",
    "precision_iou",
    "recall_iou",
    "repair",
    "union_area",
    "union_iou",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """A box after `repair`.

    Attributes:
        box: ordered and inside the image.
        problems: what was wrong with it: `"not a number"`, `"negative"`, `"reversed"`, `"outside"`, `"empty"`.
        is_valid: it has a positive area inside the image.
    """

    box: Box
    problems: tuple[str, ...]
    is_valid: bool


def iou(a: Box, b: Box) -> float:
    """Intersection over union, `|a & b| / |a | b|`, in [0, 1]; 0 where the union is empty.

    Example:
        >>> iou(Box(0, 0, 2, 2), Box(1, 0, 3, 2))
        0.3333333333333333
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = _area(a) + _area(b) - shared
    return min(shared / union, 1.0) if union > 0 else 0.0


def iou_matrix(a: Sequence[Box], b: Sequence[Box]) -> Float[np.ndarray, "a b"]:
    """IoU of every pair.

    Example:
        >>> iou_matrix([Box(0, 0, 2, 2)], [Box(0, 0, 2, 2), Box(2, 2, 3, 3)]).tolist()
        [[1.0, 0.0]]
    """
    first, second = _array(a)[:, None, :], _array(b)[None, :, :]
    width = np.minimum(first[..., 2], second[..., 2]) - np.maximum(first[..., 0], second[..., 0])
    height = np.minimum(first[..., 3], second[..., 3]) - np.maximum(first[..., 1], second[..., 1])
    shared = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    union = _areas(first) + _areas(second) - shared
    return np.minimum(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), 1.0)


def recall_iou(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """Mean over gold boxes of the best IoU with a predicted box: `mean_b max_p IoU(b, p)`.

    Example:
        >>> recall_iou([Box(0, 0, 2, 2)], [Box(0, 0, 2, 2), Box(5, 5, 6, 6)])
        0.5
    """
    return float(iou_matrix(gold, predicted).max(axis=1).mean()) if predicted and gold else 0.0


def precision_iou(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """Mean over predicted boxes of the best IoU with a gold box: `mean_p max_b IoU(p, b)`.

    Example:
        >>> precision_iou([Box(0, 0, 2, 2)], [Box(0, 0, 2, 2), Box(5, 5, 6, 6)])
        1.0
    """
    return recall_iou(gold, predicted)


def dual_iou(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """The mean of `recall_iou` and `precision_iou`.

    Without one-to-one matching: one prediction may serve several gold boxes, and the reverse. Box reward of
    TreeVGR (arXiv 2507.07999) and iVGR (arXiv 2605.31096).

    Example:
        >>> dual_iou([Box(0, 0, 2, 2)], [Box(0, 0, 2, 2), Box(5, 5, 6, 6)])
        0.75
    """
    if not predicted or not gold:
        return 0.0
    overlap = iou_matrix(gold, predicted)
    return float((overlap.max(axis=1).mean() + overlap.max(axis=0).mean()) / 2)


def matched_iou(predicted: Sequence[Box], gold: Sequence[Box], how: Literal["greedy", "hungarian"] = "greedy") -> float:
    """Sum of IoU over a one-to-one matching, divided by the larger of the two counts.

    `greedy` takes the best remaining pair first; `hungarian` finds the matching with the largest sum.

    Example:
        >>> boxes = [Box(0, 0, 2, 2), Box(0, 0, 2, 2)]
        >>> matched_iou(boxes, boxes[:1]), matched_iou(boxes, boxes, how="hungarian")
        (0.5, 1.0)
    """
    if not predicted or not gold:
        return 0.0
    overlap = iou_matrix(predicted, gold)
    if how == "hungarian":
        from scipy.optimize import linear_sum_assignment

        total = overlap[linear_sum_assignment(overlap, maximize=True)].sum()
    elif how == "greedy":
        total = 0.0
        for _ in range(min(overlap.shape)):
            p, g = np.unravel_index(overlap.argmax(), overlap.shape)
            total += max(overlap[p, g], 0.0)
            overlap[p, :] = overlap[:, g] = -1.0
    else:
        raise ValueError(f"matched_iou: how is 'greedy' or 'hungarian', not {how!r}")
    return min(float(total) / max(len(predicted), len(gold)), 1.0)


def enclosing(boxes: Iterable[Box]) -> Box:
    """The least box that holds all boxes.

    Raises:
        ValueError: without boxes.

    Example:
        >>> enclosing([Box(0, 1, 2, 3), Box(4, 0, 5, 2)])
        Box(x1=0, y1=0, x2=5, y2=3)
    """
    left, top, right, bottom = zip(*boxes, strict=True)
    return Box(min(left), min(top), max(right), max(bottom))


def clamp(box: Box, size: Size) -> Box:
    """The box with every coordinate moved into the image; a box beyond the border loses its area.

    Example:
        >>> clamp(Box(-5, 2, 30, 4), Size(20, 10))
        Box(x1=0.0, y1=2.0, x2=20.0, y2=4.0)
    """
    width, height = float(size[0]), float(size[1])
    x1, y1, x2, y2 = (float(v) for v in box)
    return Box(min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height))


def repair(box: Box, size: Size) -> Repaired:
    """Orders the corners, moves the box into the image, and says what was wrong.

    Example:
        >>> repair(Box(30, 2, -5, 4), Size(20, 10))
        Repaired(box=Box(x1=0.0, y1=2.0, x2=20.0, y2=4.0), problems=('negative', 'reversed', 'outside'), is_valid=True)
    """
    if any(math.isnan(v) for v in box):
        return Repaired(box=Box(0.0, 0.0, 0.0, 0.0), problems=("not a number",), is_valid=False)
    problems = []
    if min(box) < 0:
        problems.append("negative")
    if box[0] > box[2] or box[1] > box[3]:
        problems.append("reversed")
    if max(box[0], box[2]) > size[0] or max(box[1], box[3]) > size[1]:
        problems.append("outside")
    x1, x2 = sorted((box[0], box[2]))
    y1, y2 = sorted((box[1], box[3]))
    inside = clamp(Box(x1, y1, x2, y2), size)
    if inside.area <= 0:
        problems.append("empty")
    return Repaired(box=inside, problems=tuple(problems), is_valid=inside.area > 0)


def has_duplicates(boxes: Sequence[Box], threshold: float = 0.9) -> bool:
    """Two of the boxes overlap by more than `threshold` IoU.

    Example:
        >>> has_duplicates([Box(0, 0, 10, 10), Box(0, 0, 10, 10.5)]), has_duplicates([Box(0, 0, 10, 10)])
        (True, False)
    """
    overlap = iou_matrix(boxes, boxes)
    return bool((np.triu(overlap, k=1) > threshold).any())


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _areas(boxes: Float[np.ndarray, "*boxes 4"]) -> Float[np.ndarray, "*boxes"]:
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * np.maximum(boxes[..., 3] - boxes[..., 1], 0.0)


def _array(boxes: Sequence[Box]) -> Float[np.ndarray, "boxes 4"]:
    return np.asarray(boxes, dtype=np.float64).reshape(len(boxes), 4)
