"""The crops of one answer: which rectangles the boxes of a reply come to, and what was shown in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sightline.tools.crop import CropTool, stand_in
from sightline.types import Box, ImageRef, ReadBox, Reading, Record, Rollout, Size, Span

if TYPE_CHECKING:
    from sightline.tools.rule import CropTurns
    from sightline.tools.settings import ModeConfig

__all__ = ["Crop", "CropPlan", "Piece", "cut_crops", "plan_crops", "shown_crops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A rectangle cut out of image number `image` of the Record: its place there and its pixels.

    `turn` is the number of the reply that asked for it, from 1; 0 in the modes of two passes.
    """

    box: Box
    pixels: ImageRef
    image: int = 0
    is_union: bool = False
    turn: int = 0


class Piece(NamedTuple):
    """A rectangle to cut out: integer pixels of image number `image`."""

    image: int
    box: Box
    is_union: bool = False


class CropPlan(NamedTuple):
    """The rectangles for one reply, before any pixel is touched; `left_out` boxes were beyond `max_crops`."""

    pieces: tuple[Piece, ...]
    left_out: int = 0


def plan_crops(
    boxes: Sequence[ReadBox], sizes: Sequence[Size], config: ModeConfig, *, adds_union: bool = False
) -> CropPlan:
    """The rectangles to cut for the boxes of a reply about images of the given sizes.

    Invalid boxes and near-duplicates are skipped, at most `max_crops` are kept, each is padded and widened to
    `min_side` inside its image. The union is the least rectangle that covers all crops of an image; where it
    repeats a crop (a single box), it is left out.
    """
    from sightline.geometry.boxes import enclosing, iou

    distinct: list[ReadBox] = []
    for found in boxes:
        is_usable = found.is_valid and 0 <= found.image < len(sizes)
        if is_usable and not any(
            other.image == found.image and iou(found.box, other.box) > config.duplicate_iou for other in distinct
        ):
            distinct.append(found)
    kept = distinct[: config.max_crops]
    tool = CropTool(config.crops())
    places = [(found.image, tool.place(found, sizes[found.image]).box) for found in kept]
    pieces = [Piece(image, box) for image, box in places if box is not None]
    for image in sorted({piece.image for piece in pieces}) if adds_union else ():
        own = [piece.box for piece in pieces if piece.image == image]
        union = _as_it_stands(enclosing(own), sizes[image], config)
        if union is not None and union not in own:
            pieces.append(Piece(image, union, is_union=True))
    return CropPlan(tuple(pieces), len(distinct) - len(kept))


def cut_crops(pieces: Sequence[Piece], record: Record, config: ModeConfig, seed: int) -> tuple[Crop, ...]:
    """The pixels of the pieces, or of what the control puts in their place; none for `no-crop`."""
    from sightline.images import blank

    if config.control == "no-crop":
        return ()
    tool, crops = CropTool(config.crops()), []
    for number, (image, place, is_union) in enumerate(pieces):
        original = record.images[image]
        box = stand_in(config.control, place, original.size, f"{seed}/{record.id}/{number}")
        pixels = blank(tool.extent(box)) if config.control == "blank-crop" else tool.pixels(box, original)
        crops.append(Crop(box=box, pixels=pixels, image=image, is_union=is_union))
    return tuple(crops)


def shown_crops(rule: CropTurns, rollout: Rollout, readings: Sequence[Reading]) -> tuple[Crop, ...]:
    """The crops that a conversation was shown, in order; `readings` are the policy's turns.

    A full image that stands in (for `no-crop`, or where the Ground-R1 release cuts nothing) is not a crop.
    """
    if rule.control == "no-crop":
        return ()
    images = (*rollout.prompt.images, *rollout.images)
    said = [turn for turn in rollout.turns if turn.role == "user"]
    crops = []
    for number, (turn, looks) in enumerate(zip(said, rule.looks(rollout.prompt, readings), strict=False), start=1):
        served = [look for look in looks if look.shown is not None]
        for look, index in zip(served, turn.images, strict=True):
            if look.shown is not None and not look.is_whole:
                crops.append(Crop(box=look.shown, pixels=images[index], image=look.image, turn=number))
    return tuple(crops)


def _as_it_stands(box: Box, size: Size, config: ModeConfig) -> Box | None:
    """A rectangle of whole pixels, neither padded nor widened; None if it is too thin to be shown."""
    tool = CropTool(config.crops().model_copy(update={"padding": 0.0, "min_side": 1}))
    return tool.place(ReadBox(box=box, written=(box.x1, box.y1, box.x2, box.y2), span=Span(0, 0)), size).box
