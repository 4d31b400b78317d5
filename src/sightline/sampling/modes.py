"""How a question is put to a policy: textual | grounded | crops | crops+union.

`crops` is two passes. The grounded pass localises in text; each box is cut out of the *original* image; the second
pass answers over the original images and the crops. `crops+union` adds the least rectangle that covers all crops.
A grounded pass without a usable box falls back to the textual prompt, and the result says so.

`ask`, `eval` and the evaluation during training all call `answer`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from pydantic import BaseModel, ConfigDict, Field

from sightline.errors import UserError
from sightline.types import Box, ImageRef, Prompt, ReadBox, Reading, Record, Rollout, Size

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.sampling.base import Sampler, SamplingSettings

__all__ = [
    "CROP_MODES",
    "FALLBACK",
    "MODES",
    "Crop",
    "CropPlan",
    "Cut",
    "Mode",
    "ModeConfig",
    "ModeResult",
    "Speaker",
    "answer",
    "plan_crops",
]

Mode = Literal["textual", "grounded", "crops", "crops+union"]
MODES: tuple[str, ...] = get_args(Mode)
CROP_MODES = ("crops", "crops+union")
Control = Literal["none", "no-crop", "random-crop", "blank-crop"]
FALLBACK = "no usable box: answered from the textual prompt"


class ModeConfig(BaseModel):
    """What may vary about the crops. The defaults are the ones the figures of this library use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    padding: float = Field(default=0.1, ge=0, le=4)
    """Margin added on each side of a box, as a share of that side of the box."""
    min_side: int = Field(default=28, ge=1)
    """Least width and height of a crop, in pixels of the original image."""
    max_crops: int = Field(default=4, ge=1, le=64)
    """Crops per question, in the order in which the boxes were written; further boxes are left out and noted."""
    duplicate_iou: float = Field(default=0.9, gt=0, le=1)
    """A box that overlaps an earlier one by more than this IoU is not cropped a second time."""
    order: Literal["original-first", "crops-first"] = "original-first"
    """Order of the images in the prompt of the second pass."""
    control: Control = "none"
    """What stands in for the crops, to measure what they are worth: `no-crop` asks the second question over the
    original alone, `random-crop` cuts rectangles of the same size elsewhere, `blank-crop` shows grey ones."""


class Speaker(Protocol):
    """How a policy is spoken to: the frame of its boxes and the wording of its prompts. A loaded policy is one."""

    @property
    def frame(self) -> Frame: ...
    @property
    def style(self) -> Literal["full", "compact"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A rectangle cut out of image number `image` of the Record: its place there and its pixels."""

    box: Box
    pixels: ImageRef
    image: int = 0
    is_union: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """One answered Record. `rollouts` and `readings` run in parallel, one entry per pass; the last pass answers."""

    record: Record
    mode: str
    rollouts: tuple[Rollout, ...]
    readings: tuple[Reading, ...]
    crops: tuple[Crop, ...] = ()
    note: str = ""

    @property
    def reading(self) -> Reading:
        return self.readings[-1]

    @property
    def boxes(self) -> tuple[ReadBox, ...]:
        """The boxes of the first pass, the one that looks at the original images."""
        return self.readings[0].boxes


class Cut(NamedTuple):
    """A rectangle to cut out: integer pixels of image number `image`."""

    image: int
    box: Box
    is_union: bool = False


class CropPlan(NamedTuple):
    """The rectangles for one reply, before any pixel is touched; `left_out` boxes were beyond `max_crops`."""

    cuts: tuple[Cut, ...]
    left_out: int = 0


def answer(
    sampler: Sampler,
    records: Sequence[Record],
    mode: str,
    config: ModeConfig | None = None,
    *,
    speaker: Speaker,
    settings: SamplingSettings,
    seed: int = 0,
    step: int = 0,
    known: Sequence[ModeResult] = (),
) -> list[ModeResult]:
    """Answers each record in `mode`, one rollout per pass; results stand in the order of the records.

    Args:
        known: results of another mode with boxes on the same records, seed and step. A crop mode starts from their
            grounded replies, and where the same crops come out, takes their answers: it would sample the same again.

    Raises:
        UserError: for an unknown mode.
    """
    from sightline.sampling.base import Request

    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}", hint=f"one of {', '.join(MODES)}")
    config = config or ModeConfig()

    def one_pass(prompts: Sequence[Prompt]) -> list[tuple[Rollout, Reading]]:
        groups = sampler.sample([Request(p) for p in prompts], settings, seed=seed, step=step)
        return [(group[0], _read(group[0], speaker)) for group in groups]

    if mode in CROP_MODES and known:
        first = [(result.rollouts[0], result.readings[0]) for result in known]
    else:
        stream = "textual" if mode == "textual" else "grounded"
        first = one_pass([_prompt(record, stream, speaker) for record in records])
    results = [
        ModeResult(record=record, mode=mode, rollouts=(rollout,), readings=(reading,))
        for record, (rollout, reading) in zip(records, first, strict=True)
    ]
    if mode not in CROP_MODES:
        return results
    results = [_look_closer(result, config, seed) for result in results]
    same = {i for i, (result, other) in enumerate(zip(results, known, strict=False)) if _shows_the_same(result, other)}
    asked = [_second_prompt(result, config, speaker) for i, result in enumerate(results) if i not in same]
    fresh = iter(one_pass(asked))
    second = [(known[i].rollouts[1], known[i].readings[1]) if i in same else next(fresh) for i in range(len(results))]
    return [
        replace(result, rollouts=(*result.rollouts, rollout), readings=(*result.readings, reading))
        for result, (rollout, reading) in zip(results, second, strict=True)
    ]


def plan_crops(
    boxes: Sequence[ReadBox], sizes: Sequence[Size], config: ModeConfig, *, adds_union: bool = False
) -> CropPlan:
    """The rectangles to cut for the boxes of a reply about images of the given sizes.

    Invalid boxes and near-duplicates are skipped, at most `max_crops` are kept, each is padded and widened to
    `min_side` inside its image. The union is the least rectangle that covers all crops of an image; where it
    repeats a crop (a single box), it is left out.
    """
    from sightline.geometry.boxes import enclosing, iou
    from sightline.images import crop_box

    distinct: list[ReadBox] = []
    for found in boxes:
        is_usable = found.is_valid and 0 <= found.image < len(sizes)
        if is_usable and not any(
            other.image == found.image and iou(found.box, other.box) > config.duplicate_iou for other in distinct
        ):
            distinct.append(found)
    kept = distinct[: config.max_crops]
    cuts = [Cut(b.image, crop_box(b.box, sizes[b.image], config.padding, config.min_side)) for b in kept]
    for image in sorted({cut.image for cut in cuts}) if adds_union else ():
        own = [cut.box for cut in cuts if cut.image == image]
        union = enclosing(own)
        if union not in own:
            cuts.append(Cut(image, union, is_union=True))
    return CropPlan(tuple(cuts), len(distinct) - len(kept))


def _look_closer(result: ModeResult, config: ModeConfig, seed: int) -> ModeResult:
    """The result with the crops that its second pass shows, or with the note of the fall-back."""
    images = result.record.images
    plan = plan_crops(result.boxes, [i.size for i in images], config, adds_union=result.mode == "crops+union")
    if not plan.cuts:
        return replace(result, note=FALLBACK)
    notes = [f"{plan.left_out} boxes beyond the first {config.max_crops} left out"] if plan.left_out else []
    if config.control != "none":
        notes.append(f"control: {config.control}")
    crops = []
    for number, (image, box, is_union) in enumerate(plan.cuts if config.control != "no-crop" else ()):
        if config.control == "random-crop":
            box = _elsewhere(box, images[image].size, f"{seed}/{result.record.id}/{number}")
        pixels = _pixels(images[image], box, config.control)
        crops.append(Crop(box=box, pixels=pixels, image=image, is_union=is_union))
    return replace(result, crops=tuple(crops), note="; ".join(notes))


def _shows_the_same(result: ModeResult, other: ModeResult) -> bool:
    """Whether the second pass of `result` would repeat the one that `other` has made."""
    places = [[(crop.image, crop.box) for crop in one.crops] for one in (result, other)]
    return len(other.rollouts) == 2 and places[0] == places[1] and result.note == other.note


def _elsewhere(box: Box, size: Size, key: str) -> Box:
    """A rectangle of the same size at a place that depends on `key` alone."""
    import numpy as np

    random = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    left = int(random.integers(0, max(int(size.width - box.width), 0) + 1))
    top = int(random.integers(0, max(int(size.height - box.height), 0) + 1))
    return Box(left, top, left + box.width, top + box.height)


def _pixels(image: ImageRef, box: Box, control: str) -> ImageRef:
    from sightline.images import crop, image_ref

    if control == "blank-crop":
        import numpy as np

        return image_ref(np.full((int(box.height), int(box.width), 3), 127, dtype=np.uint8))
    return crop(image, box, padding=0.0, min_side=1)


def _second_prompt(result: ModeResult, config: ModeConfig, speaker: Speaker) -> Prompt:
    if result.note == FALLBACK:
        return _prompt(result.record, "textual", speaker)
    crops = tuple(crop.pixels for crop in result.crops)
    originals = result.record.images
    images = (*originals, *crops) if config.order == "original-first" else (*crops, *originals)
    return _prompt(result.record, "crops", speaker, images)


def _prompt(record: Record, stream: str, speaker: Speaker, images: tuple[ImageRef, ...] | None = None) -> Prompt:
    from sightline.language.prompts import prompt

    return prompt(record, stream, stream, speaker.style, images=images)


def _read(rollout: Rollout, speaker: Speaker) -> Reading:
    from sightline.language.parse import read

    sizes = [image.size for image in rollout.prompt.images]
    return read(rollout.text, speaker.frame, sizes, finish=rollout.finish)
