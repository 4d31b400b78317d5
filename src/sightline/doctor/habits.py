"""Habit probe: does a trained policy write boxes, and in which coordinates do they fit best? Never more than a warning.

The convention of a family is not always that of a fine-tuned checkpoint: one trained on 0-1000 data writes thousandths
whatever its architecture says. Its boxes are therefore also read in every other convention and compared with the gold
regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sightline.doctor.finding import Finding, Picture
from sightline.types import Box, ReadBox, Record, Size

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler

__all__ = ["CONVENTIONS", "fits", "habit_probe", "placed"]

CONVENTIONS = ("the frame of this policy", "pixels after the resize", "thousandths of the image",
               "pixels of the original image", "shares of the image")  # fmt: skip
MARGIN = 0.15


def habit_probe(policy: Policy, sampler: Sampler, records: Sequence[Record], *, tokens: int) -> Finding:
    """Asks for grounded reasoning about records with regions, greedily."""
    from sightline.sampling.base import SamplingSettings
    from sightline.sampling.modes import answer

    asked = [record for record in records if record.regions and record.images]
    if not asked:
        return Finding(
            level="pass", what="no record of the sample has regions", meaning="nothing to compare boxes with"
        )
    settings = SamplingSettings(temperature=0.0, max_new_tokens=tokens)
    results = answer(sampler, asked, "grounded", speaker=policy, settings=settings)
    boxed = [(r.record, box) for r in results for box in r.boxes]
    answered = sum(r.reading.answer is not None for r in results)
    pictures = tuple(_picture(r.record, r.boxes) for r in results[:3] if r.boxes)
    writes = sum(bool(r.boxes) for r in results)
    values = {"records": len(asked), "with_boxes": writes, "answered": answered}
    said = f"{writes} of {len(asked)} grounded replies write boxes, {answered} answer"
    details = tuple(f"{r.record.id}: {r.reading.text[:200]!r}" for r in results[:3])
    if writes * 4 < len(asked):
        return Finding(
            level="warn", what=said, values=values, details=details,
            meaning="a policy that writes no boxes earns no box reward to learn from: expected of random weights",
            command="set method.cold_start, or start from a checkpoint that was taught to ground",
        )  # fmt: skip
    found = fits(policy.frame, boxed)
    own, best = found[CONVENTIONS[0]], max(found, key=lambda name: found[name])
    values |= {f"iou, {name}": round(value, 4) for name, value in found.items()}
    said += f"; mean IoU with the gold regions {own:.2f}"
    if found[best] > own + MARGIN:
        return Finding(
            level="warn", what=f"{said}, but {found[best]:.2f} when read as {best}",
            meaning="this checkpoint seems to write other coordinates than its family: box rewards would punish "
            "right boxes", command="sightline doctor RECIPE --only habits --page doctor.html",
            values=values, details=details, pictures=pictures,
        )  # fmt: skip
    return Finding(level="pass", what=said, meaning="no other convention fits its boxes better", values=values,
                   details=details, pictures=pictures)  # fmt: skip


def fits(frame: Frame, boxed: Sequence[tuple[Record, ReadBox]]) -> dict[str, float]:
    """Mean over boxes of the best IoU with a gold region of their image, by the convention they are read in."""
    from sightline.geometry.boxes import iou

    means = {}
    for name in CONVENTIONS:
        values = []
        for record, box in boxed:
            gold = [region.box for region in record.regions if region.image == box.image]
            image = min(box.image, len(record.images) - 1)
            place = placed(box, record.images[image].size, frame, name)
            values.append(max((iou(place, other) for other in gold), default=0.0))
        means[name] = sum(values) / max(len(values), 1)
    return means


def placed(box: ReadBox, size: Size, frame: Frame, convention: str) -> Box:
    """Where the numbers of a box lie in the original image if they are meant in this convention."""
    if convention == CONVENTIONS[0]:
        return box.box
    units = {
        CONVENTIONS[1]: frame.resized(size),
        CONVENTIONS[2]: Size(1000, 1000),
        CONVENTIONS[3]: size,
        CONVENTIONS[4]: Size(1, 1),
    }[convention]
    x1, y1, x2, y2 = (
        n * side / unit for n, side, unit in zip(box.written, (*size, *size), (*units, *units), strict=True)
    )
    return Box(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


def _picture(record: Record, boxes: Sequence[ReadBox]) -> Picture:
    gold = [region.box for region in record.regions if region.image == 0]
    own = [box.box for box in boxes if box.image == 0]
    return Picture(
        title=record.question.splitlines()[0][:120], image=record.images[0], boxes=(*gold, *own),
        labels=(*("gold" for _ in gold), *("written" for _ in own)),
        styles=(*("gold" for _ in gold), *("predicted" for _ in own)), note="gold regions and what the policy wrote",
    )  # fmt: skip
