"""How the region that a policy looked at lies to the gold regions. Diagnostics: their weight is 0 unless asked."""

from __future__ import annotations

from collections.abc import Callable

from sightline.geometry.boxes import enclosing, iou
from sightline.types import Box, ReadBox, Record, Score

__all__ = ["coverage", "generalised_iou", "overlap"]


def generalised_iou(a: Box, b: Box) -> float:
    """`IoU - (hull - union) / hull`, the hull being the least box around both (arXiv 1902.09630). Range [-1, 1].

    Example:
        >>> generalised_iou(Box(0, 0, 10, 10), Box(0, 0, 10, 10)), generalised_iou(Box(0, 0, 1, 1), Box(3, 0, 4, 1))
        (1.0, -0.5)
    """
    hull = enclosing([a, b]).area
    union = a.area + b.area - _shared(a, b)
    return iou(a, b) - (hull - union) / hull if hull else 0.0


def overlap(box: ReadBox | None, record: Record) -> Score:
    """`(GIoU + 1) / 2` of the box with the gold region that it fits best, in [0, 1]; masked without gold regions.

    The released code of Ground-R1 logs this figure.

    Example:
        >>> from sightline.types import Region, Span
        >>> record = Record(id="a", question="?", answer="x", regions=(Region(box=Box(0, 0, 10, 10)),))
        >>> overlap(ReadBox(box=Box(0, 0, 10, 5), written=(0, 0, 10, 5), span=Span(0, 1)), record).value
        0.75
    """
    return _best(box, record, lambda gold, seen: (generalised_iou(gold, seen) + 1) / 2, "(GIoU + 1) / 2")


def coverage(box: ReadBox | None, record: Record) -> Score:
    """Share of the gold region that lies inside the box, the best over regions, in [0, 1]; masked without any.

    Example:
        >>> from sightline.types import Region, Span
        >>> record = Record(id="a", question="?", answer="x", regions=(Region(box=Box(0, 0, 10, 10)),))
        >>> coverage(ReadBox(box=Box(0, 0, 99, 5), written=(0, 0, 99, 5), span=Span(0, 1)), record).value
        0.5
    """
    return _best(box, record, lambda gold, seen: _shared(gold, seen) / gold.area if gold.area else 0.0, "coverage")


def _best(box: ReadBox | None, record: Record, measure: Callable[[Box, Box], float], name: str) -> Score:
    image = 0 if box is None else box.image
    gold = [region.box for region in record.regions if region.image == image]
    if not record.regions:
        return Score(0.0, "no gold regions to compare with", masked=True)
    if box is None:
        return Score(0.0, "no box")
    value = max((measure(region, box.box) for region in gold), default=0.0)
    return Score(value, f"{name} {value:.2f}")


def _shared(a: Box, b: Box) -> float:
    return Box(max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)).area
