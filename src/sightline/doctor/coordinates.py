"""Coordinate probe: a box drawn on a picture must come back where it was drawn.

The way of a box is walked with a reply that is right by construction. The picture goes through the checkpoint's own
image processor; the patches are put together again, so that what is measured is what the vision tower is shown; the
box found there is written as the model family writes boxes; the reply is read, cropped and drawn as in training. A
wrong resize rule, frame, parser, crop or drawing moves the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.doctor.finding import Finding, Picture
from sightline.errors import UserError
from sightline.images import image_ref, open_image
from sightline.types import Box, ImageRef, ReadBox, Size

if TYPE_CHECKING:
    from jaxtyping import Float

    from sightline.policy.load import Policy

__all__ = ["SIZES", "Walk", "coordinate_probe", "drawn", "sight", "walk"]

SIZES = tuple(Size(*s) for s in ((97, 61), (333, 517), (640, 480), (1023, 769), (31, 23), (1200, 75), (75, 1200)))
"""Sizes whose sides are multiples of no cell, larger and smaller than most pixel limits, wide and tall."""

GROUND, MARK = np.array([88.0, 96.0, 112.0]), np.array([240.0, 64.0, 24.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One picture on its way.

    Attributes:
        image: the picture, with a filled rectangle at `box` (original pixels).
        seen: the picture as the vision tower is shown it.
        found: where the rectangle lies there, in pixels of `seen`; None if it is not to be seen.
        reply: what a model that sees it writes.
        back: the box that was read, in original pixels.
        slack: how far it may lie from `box`, px.
        problem: what went wrong on the way; empty if nothing did.
    """

    image: ImageRef
    box: Box
    seen: ImageRef
    found: Box | None
    reply: str
    back: ReadBox | None
    slack: float
    problem: str

    @property
    def shift(self) -> float:
        """The largest distance of an edge from where it was drawn, px; infinite without a box."""
        if self.back is None:
            return float("inf")
        return max(abs(a - b) for a, b in zip(self.back.box, self.box, strict=True))


def coordinate_probe(policy: Policy, sizes: Sequence[Size] = SIZES) -> Finding:
    """Walks one picture of each size."""
    from sightline.policy.qwen_vl import FAMILIES

    walks, refused = [], []
    for size in sizes:
        try:
            walks.append(walk(policy, size))
        except UserError as error:
            refused.append(f"{size.width}x{size.height}: {error.what}")
    lines = tuple(_line(one) for one in walks)
    wrong = [one for one in walks if one.problem]
    pictures = tuple(picture for one in (*wrong, *(w for w in walks if not w.problem)) for picture in _pictures(one))
    values = {"frame": policy.frame.describe(), "shifts_px": [round(w.shift, 2) for w in walks]}
    expected = FAMILIES.get(policy.family)
    if expected is not None and expected != policy.frame.convention:
        refused.append(f"{policy.family} writes {expected} coordinates, the frame says {policy.frame.convention}")
    if wrong or refused:
        return Finding(
            level="fail",
            what=f"{min(len(wrong) + len(refused), len(sizes))} of {len(sizes)} drawn boxes do not come back: "
            + (f"{_size(wrong[0])}, {wrong[0].problem}" if wrong else refused[0]),
            meaning="every box reward, crop and picture of the run would be about another place than the policy means",
            command="sightline doctor RECIPE --only coordinates --page doctor.html",
            details=(*refused, *lines), pictures=pictures, values=values,
        )  # fmt: skip
    farthest = max(walks, key=lambda one: one.shift)
    return Finding(
        level="pass",
        what=f"{len(walks)} drawn boxes come back, the farthest {farthest.shift:.1f} px off at {_size(farthest)} "
        f"(rounding allows {farthest.slack:.1f})",
        meaning=f"prompt, reply, reward, crop and picture speak of the same place; {policy.frame.describe()}",
        details=lines, pictures=pictures, values=values,
    )  # fmt: skip


def walk(policy: Policy, size: Size) -> Walk:
    """A picture of this size, all the way from the drawn box to the box that was read, cropped and drawn."""
    image, box = drawn(size)
    pixels = sight(policy, image)
    seen, place = Size(pixels.shape[1], pixels.shape[0]), _found(pixels)
    resized = policy.frame.resized(size)
    # half a unit of the written coordinate and a fraction of a pixel of what is seen, in original pixels
    slack = max(0.6 * side / unit + 0.4 * side / shown
                for side, unit, shown in zip(size, policy.frame.extent(size), seen, strict=True))  # fmt: skip
    reply, back, problem = "", None, ""
    if place is None:
        problem = "the box is not to be seen in what the vision tower is shown"
    else:
        reply, back = _replied(policy, place, seen, size)
        problem = _moved(box, back, slack) or _miscropped(image, box, back) or _misdrawn(image, back)
    if seen != resized:
        problem = (
            f"the processor resizes to {seen.width}x{seen.height}, the frame says {resized.width}x{resized.height}"
        )
    shown = image_ref(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return Walk(image=image, box=box, seen=shown, found=place, reply=reply, back=back, slack=slack,
                problem=problem or _misprompted(policy, image))  # fmt: skip


def drawn(size: Size) -> tuple[ImageRef, Box]:
    """A grey picture with a filled rectangle whose four margins all differ, and the rectangle."""
    width, height = size
    box = Box(round(0.37 * width), round(0.22 * height), round(0.71 * width), round(0.63 * height))
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    pixels[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = MARK
    return image_ref(pixels), box


def sight(policy: Policy, image: ImageRef) -> Float[np.ndarray, "height width 3"]:
    """What the vision tower is shown, as a picture again: the patches put side by side, normalisation undone."""
    processor = policy.pixels.processor
    out = processor(images=[open_image(image)], return_tensors="pt")
    side, merge = processor.patch_size, processor.merge_size
    _, rows, columns = (int(n) for n in out["image_grid_thw"][0])
    patches = np.asarray(out["pixel_values"].float().numpy())
    blocks = patches.reshape(rows // merge, columns // merge, merge, merge, 3, -1, side, side)[:, :, :, :, :, 0]
    picture = blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * side, columns * side, 3)
    return (picture * np.array(processor.image_std) + np.array(processor.image_mean)) / processor.rescale_factor


def _found(pixels: np.ndarray) -> Box | None:
    """Where the rectangle lies, to a fraction of a pixel: half-way points of its edges."""
    axis = MARK - GROUND
    share = (pixels - GROUND) @ axis / (axis @ axis)
    across, down = share.max(0), share.max(1)
    if max(across.max(), down.max()) < 0.5:
        return None
    (x1, x2), (y1, y2) = _edges(across), _edges(down)
    return Box(x1, y1, x2, y2)


def _edges(profile: np.ndarray) -> tuple[float, float]:
    on = np.flatnonzero(profile >= 0.5)
    first, last = int(on[0]), int(on[-1])
    left = _crossing(profile, first - 1, first) if first else 0.0
    right = _crossing(profile, last + 1, last) if last + 1 < len(profile) else float(len(profile))
    return left, right


def _crossing(profile: np.ndarray, outside: int, inside: int) -> float:
    """Where the profile passes one half between two neighbouring pixel centres."""
    share = (0.5 - profile[outside]) / (profile[inside] - profile[outside])
    return outside + 0.5 + share * (inside - outside)


def _replied(policy: Policy, place: Box, seen: Size, size: Size) -> tuple[str, ReadBox | None]:
    """What the family writes for a place in what it sees, and how the run reads it."""
    from sightline.language.parse import read

    scale = (1.0, 1.0) if policy.adapter.convention == "absolute" else (1000 / seen.width, 1000 / seen.height)
    numbers = [round(edge * scale[i % 2]) for i, edge in enumerate(place)]
    text = f"<think> it is here <box>[{','.join(map(str, numbers))}]</box> </think><answer> mark </answer>"
    boxes = read(text, policy.frame, [size]).boxes
    return text, boxes[0] if len(boxes) == 1 else None


def _moved(box: Box, back: ReadBox | None, slack: float) -> str:
    if back is None:
        return "the reply does not read as one box"
    shift = max(abs(a - b) for a, b in zip(back.box, box, strict=True))
    if not back.is_valid:
        return f"the box that is read is invalid ({', '.join(back.problems) or 'no area'})"
    return f"it comes back {shift:.1f} px off, rounding explains {slack:.1f}" if shift > slack else ""


def _miscropped(image: ImageRef, box: Box, back: ReadBox | None) -> str:
    """The crop of the box that was read shows as much of the rectangle as the two boxes share."""
    from sightline.images import crop

    if back is None:
        return ""
    piece = np.asarray(open_image(crop(image, back.box, min_side=1)), np.float64)
    marked = float((np.abs(piece - MARK).max(-1) < 8).sum())
    shared = max(min(box.x2, back.box.x2) - max(box.x1, back.box.x1), 0) * max(
        min(box.y2, back.box.y2) - max(box.y1, back.box.y1), 0
    )
    # a rectangle of whole pixels around the box: one more row or column on each side
    rim = 2 * (piece.shape[0] + piece.shape[1])
    if abs(marked - shared) > rim or marked == 0:
        return f"its crop shows {marked:.0f} px of the mark, the two boxes share {shared:.0f}"
    return ""


def _misdrawn(image: ImageRef, back: ReadBox | None) -> str:
    """The outline that is drawn lies around the box that was read."""
    from sightline.report.overlay import draw

    if back is None:
        return ""
    before, after = np.asarray(open_image(image)), np.asarray(draw(image, [back.box]))
    rows, columns = np.nonzero((before != after).any(-1))
    if not len(rows):
        return "nothing is drawn for it"
    middle = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
    wanted = ((back.box.x1 + back.box.x2) / 2, (back.box.y1 + back.box.y2) / 2)
    off = max(abs(a - b) for a, b in zip(middle, wanted, strict=True))
    limit = 2 + max(image.size) / 100
    return f"its outline is drawn {off:.1f} px off" if off > limit else ""


def _misprompted(policy: Policy, image: ImageRef) -> str:
    """Templates that ask for boxes name the largest coordinates: those of the frame that replies are read in."""
    from sightline.language.prompts import prompt
    from sightline.types import Record

    record = Record(id="doctor", question="Where is the mark?", answer="mark", images=(image,))
    shown = prompt(record, "ground_r1", "ground_r1", "full", frame=policy.frame)
    text = "".join(part for part in shown.messages[0].content if isinstance(part, str))
    extent = policy.frame.extent(image.size)
    if str(extent.width) not in text or str(extent.height) not in text:
        return f"the prompt does not name the largest coordinates {extent.width} and {extent.height}"
    return ""


def _size(one: Walk) -> str:
    return f"{one.image.size.width}x{one.image.size.height}"


def _line(one: Walk) -> str:
    seen = f"seen as {one.seen.size.width}x{one.seen.size.height}"
    if one.problem:
        return f"{_size(one)}, {seen}: {one.problem}"
    return f"{_size(one)}, {seen}: {one.shift:.1f} px off, rounding allows {one.slack:.1f}"


def _pictures(one: Walk) -> tuple[Picture, ...]:
    boxes, labels, styles = [one.box], ["drawn"], ["gold"]
    if one.back is not None:
        boxes, labels, styles = [*boxes, one.back.box], [*labels, "came back"], [*styles, "predicted"]
    original = Picture(
        title=f"{_size(one)}: drawn (gold), came back (teal)", image=one.image, boxes=tuple(boxes),
        labels=tuple(labels), styles=tuple(styles), note=one.problem or f"{one.shift:.1f} px off",
    )  # fmt: skip
    seen = Picture(
        title=f"{one.seen.size.width}x{one.seen.size.height}: what the vision tower is shown", image=one.seen,
        boxes=() if one.found is None else (one.found,), labels=() if one.found is None else ("found",),
        styles=() if one.found is None else ("reference",), note=one.reply,
    )  # fmt: skip
    return original, seen
