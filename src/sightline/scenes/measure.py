"""How good the embedded policy is: accuracy, boxes, regions and format, per level and reply format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sightline.images import crop
from sightline.language.parse import read
from sightline.language.prompts import prompt
from sightline.scenes.truth import right_region
from sightline.types import ImageRef, ImageSlot, Message, Prompt, Reading, Record

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["Figures", "any_mark", "figures", "gold_crops", "two_turns"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Shares over `n` records: right answers, mean IoU of the first box with the first gold region, region words right
    (None where the replies hold no boxes or no place), and replies in their format."""

    n: int
    accuracy: float
    format: float
    iou: float | None = None
    region: float | None = None

    def rounded(self) -> dict[str, float | int]:
        values = {"n": self.n, "accuracy": self.accuracy, "format": self.format, "iou": self.iou, "region": self.region}
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in values.items() if v is not None}


def gold_crops(record: Record, padding: float = 0.1) -> tuple[ImageRef, ...]:
    """The images of a Record and a crop of its first gold region."""
    return (*record.images, crop(record.images[0], record.regions[0].box, padding))


def figures(
    policy: Policy,
    records: Sequence[Record],
    style: str,
    shown: Callable[[Record], tuple[ImageRef, ...]] | None = None,
) -> Figures:
    """Greedy replies of one format, measured.

    Args:
        policy: the policy.
        records: records of the scenes.
        style: a reply format of one turn (see `sightline.scenes.texts.FORMATS`).
        shown: the images to show; the Record's own by default.
    """
    prompts = [prompt(r, style, style, policy.style, images=shown(r) if shown else None) for r in records]
    readings = [_read(policy, p, text) for p, text in zip(prompts, _replies(policy, prompts), strict=True)]
    pairs = list(zip(readings, records, strict=True))
    places = [right_region(reading.text, record) for reading, record in pairs] if style != "direct" else []
    boxed = [(reading, record) for reading, record in pairs if record.regions]
    has_boxes = style in ("grounded", "grit")
    return Figures(
        n=len(records),
        accuracy=_mean([reading.answer == record.answer for reading, record in pairs]),
        format=_mean([_is_formatted(reading, style) for reading in readings]),
        iou=_mean([_overlap(reading, record) for reading, record in boxed]) if has_boxes and boxed else None,
        region=_mean([bool(p) for p in places]) if style in ("textual", "general", "crops", "grit") else None,
    )


def two_turns(policy: Policy, records: Sequence[Record]) -> Figures:
    """Box-then-crop (`ground_r1`): IoU of the box of the first turn, the answer after its crop, both turns in format.

    Without a usable box there is no second turn, and the answer counts as wrong.
    """
    first = [prompt(r, "ground_r1", "ground_r1", policy.style) for r in records]
    texts = _replies(policy, first)
    readings = [_read(policy, p, text) for p, text in zip(first, texts, strict=True)]
    second: dict[int, Prompt] = {}
    for i, (asked, text, reading) in enumerate(zip(first, texts, readings, strict=True)):
        boxes = [b.box for b in reading.boxes if b.is_valid]
        if boxes:
            closer = crop(asked.images[0], boxes[0], 0.1)
            turns = (*asked.messages, Message("assistant", (text,)), Message("user", (ImageSlot(1),)))
            second[i] = replace(asked, messages=turns, images=(*asked.images, closer))
    answers = zip(second, _replies(policy, list(second.values())), strict=True)
    final = {i: _read(policy, second[i], text) for i, text in answers}
    pairs = list(zip(readings, records, strict=True))
    asks = [set(r.sections) == {"think", "box"} and set(r.problems) == {"no answer block"} for r in readings]
    return Figures(
        n=len(records),
        accuracy=_mean([i in final and final[i].answer == r.answer for i, r in enumerate(records)]),
        format=_mean([asks[i] and i in final and _is_formatted(final[i], "textual") for i in range(len(records))]),
        iou=_mean([_overlap(reading, record) for reading, record in pairs]),
    )


def any_mark(policy: Policy, records: Sequence[Record]) -> float:
    """Share of textual answers that are the mark of *some* object of the scene."""
    prompts = [prompt(r, "textual", "textual", policy.style) for r in records]
    readings = [_read(policy, p, text) for p, text in zip(prompts, _replies(policy, prompts), strict=True)]
    marks = [{thing["mark"] for thing in record.meta["objects"]} for record in records]
    return _mean([reading.answer in some for reading, some in zip(readings, marks, strict=True)])


def _replies(policy: Policy, prompts: Sequence[Prompt]) -> list[str]:
    from sightline.sampling.base import Request, SamplingSettings
    from sightline.sampling.local import LocalSampler

    settings = SamplingSettings(temperature=0.0, max_new_tokens=72)
    groups = LocalSampler(policy, rows=128).sample([Request(p) for p in prompts], settings, seed=0, step=0)
    return [group[0].text for group in groups]


def _read(policy: Policy, asked: Prompt, text: str) -> Reading:
    return read(text, policy.frame, [image.size for image in asked.images])


def _is_formatted(reading: Reading, style: str) -> bool:
    """Every block of the format once, nothing outside."""
    wanted: Mapping[str, tuple[str, ...]] = {"direct": ("answer",), "grit": ("think", "rethink", "answer")}
    odd = set(reading.problems) - ({"no think block"} if style == "direct" else set())
    return not odd and set(reading.sections) - {"box"} == set(wanted.get(style, ("think", "answer")))


def _overlap(reading: Reading, record: Record) -> float:
    from sightline.geometry.boxes import iou

    found = [b.box for b in reading.boxes if b.is_valid]
    return iou(found[0], record.regions[0].box) if found else 0.0


def _mean(values: Sequence[float | bool]) -> float:
    return sum(map(float, values)) / len(values)
