"""Do the boxes of a reply lie on the gold regions, and are they well-formed?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from sightline.geometry import boxes as geometry
from sightline.types import Box, Reading, Record, Score

__all__ = ["BoxMatch", "box_iou", "box_validity"]

BoxMatch = Literal["dual", "recall", "precision", "union", "greedy", "hungarian"]

_OVERLAPS: Mapping[str, Callable[[Sequence[Box], Sequence[Box]], float]] = {
    "dual": geometry.dual_iou,
    "recall": geometry.recall_iou,
    "precision": geometry.precision_iou,
    "union": geometry.union_iou,
    "greedy": geometry.matched_iou,
    "hungarian": lambda predicted, gold: geometry.matched_iou(predicted, gold, how="hungarian"),
}
_APART = 1e7  # px; images of one record are laid side by side at this distance, so their boxes never meet


def box_iou(reading: Reading, record: Record, match: BoxMatch = "dual", roles: Collection[str] | None = None) -> Score:
    """Overlap of the valid boxes of a reply with the gold regions of its record, in [0, 1].

    `dual` is the reward of iVGR and TreeVGR, `1/2 (mean_b max_p IoU(b, p) + mean_p max_b IoU(p, b))`: the first half
    asks that every region is found, the second that no box is idle, so neither one box around everything nor many
    boxes everywhere pays. The other measures are those of `sightline.geometry.boxes`.

    Args:
        reading: boxes in original pixels.
        record: gold regions; with none the term does not apply and is masked.
        match: the measure.
        roles: compare with regions of these roles only.

    Example:
        >>> from sightline.types import ReadBox, Region, Span
        >>> record = Record(id="a", question="?", answer="x", regions=(Region(box=Box(0, 0, 10, 10)),))
        >>> half = ReadBox(box=Box(0, 0, 10, 5), written=(0, 0, 10, 5), span=Span(0, 9))
        >>> box_iou(Reading(text="", boxes=(half,)), record)
        Score(value=0.5, why='dual IoU 0.50 of 1 box with 1 region', masked=False)
    """
    gold = [_apart(r.box, r.image) for r in record.regions if roles is None or r.role in roles]
    if not gold:
        return Score(0.0, "no gold regions to compare with", masked=True)
    predicted = [_apart(b.box, b.image) for b in reading.boxes if b.is_valid]
    if not predicted:
        return Score(0.0, f"no valid box among {len(reading.boxes)}" if reading.boxes else "no box")
    value = float(_OVERLAPS[match](predicted, gold))
    return Score(value, f"{match} IoU {value:.2f} of {_counted(predicted, 'box')} with {_counted(gold, 'region')}")


def box_validity(reading: Reading, duplicate_iou: float = 0.9) -> Score:
    """Share of the boxes of a reply that are valid; 0 without boxes and 0 if two are duplicates. Range [0, 1].

    Args:
        reading: every box tag that could be read, valid or not.
        duplicate_iou: two valid boxes of one image above this IoU are duplicates.

    Example:
        >>> from sightline.types import ReadBox, Span
        >>> good = ReadBox(box=Box(0, 0, 9, 9), written=(0, 0, 9, 9), span=Span(0, 9))
        >>> box_validity(Reading(text="", boxes=(good,))).value, box_validity(Reading(text="", boxes=(good, good))).why
        (1.0, 'two boxes are the same')
    """
    if not reading.boxes:
        return Score(0.0, "no box")
    valid = [_apart(b.box, b.image) for b in reading.boxes if b.is_valid]
    if geometry.has_duplicates(valid, duplicate_iou):
        return Score(0.0, "two boxes are the same")
    # A tag that holds no box counts as an invalid one.
    total = len(reading.boxes) + reading.problems.count("box tag without box")
    return Score(len(valid) / total, f"{len(valid)} of {total} boxes valid")


def _apart(box: Box, image: int) -> Box:
    shift = image * _APART
    return Box(box.x1 + shift, box.y1, box.x2 + shift, box.y2)


def _counted(items: Sequence[Box], noun: str) -> str:
    plural = {"box": "boxes", "region": "regions"}[noun]
    return f"{len(items)} {noun if len(items) == 1 else plural}"
