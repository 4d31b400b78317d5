"""The crop tool: from a box that a policy wrote to the pixels it is shown.

Boxes arrive in original pixels, read by the one codec (`sightline.language.parse`); crops are cut out of the original
image at its full resolution, never out of the resized one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from sightline.geometry.frames import MAX_ASPECT
from sightline.tools.settings import Control, CropSettings
from sightline.types import Box, ImageRef, ReadBox, Size

__all__ = ["Control", "CropSettings", "CropTool", "Cut", "Place", "elsewhere", "stand_in"]

FAULTS = ("no image", "not a number", "huge", "reversed", "negative", "outside", "empty")
"""Problems of a box that `strict` does not forgive, in the order in which they are told."""


class Place(NamedTuple):
    """Where a crop lies: whole pixels of the original, or None with the reason.

    With a box, `problem` names what had to be mended.
    """

    box: Box | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A crop: its pixels, its rectangle in the original, and what was wrong with the box that asked for it."""

    image: ImageRef | None
    box: Box | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CropTool:
    """Cuts boxes out of images by one policy; see `CropSettings`."""

    settings: CropSettings = field(default_factory=CropSettings)

    def place(self, box: ReadBox | None, size: Size) -> Place:
        """The rectangle to cut for a box, before any pixel is touched.

        Args:
            box: as it was read; None where a reply asked for a region without naming one.
            size: original size of the image.

        Example:
            >>> from sightline.types import Span
            >>> tiny = ReadBox(box=Box(0, 0, 4.6, 4.6), written=(0, 0, 4, 4), span=Span(0, 9))
            >>> CropTool(CropSettings(policy="strict")).place(tiny, Size(640, 480))
            Place(box=None, problem='smaller than 28 px')
            >>> CropTool(CropSettings(policy="lenient")).place(tiny, Size(640, 480))
            Place(box=Box(x1=0, y1=0, x2=28, y2=28), problem='')
            >>> CropTool(CropSettings(policy="parity")).place(tiny, Size(640, 480))
            Place(box=Box(x1=-12, y1=-12, x2=16, y2=16), problem='')
        """
        if self.settings.policy == "parity":
            return _parity_place(box, size, self.settings)
        if box is None:
            return Place(None, "no box")
        faults = [fault for fault in FAULTS if fault in box.problems]
        if "no image" in faults:
            return Place(None, "no image")
        if self.settings.policy == "strict":
            faults += [] if faults or box.is_valid else ["empty"]
            return Place(None, faults[0]) if faults else self._strict_place(box.box, size)
        return self._lenient_place(box.box, size, ", ".join(faults))

    def cut(self, box: ReadBox | None, image: ImageRef) -> Cut:
        """The crop for a box, resampled to the pixel budget; without pixels where there is none to show.

        Example:
            >>> import numpy as np
            >>> from sightline.images import image_ref
            >>> from sightline.types import Span
            >>> picture = image_ref(np.zeros((480, 640, 3), np.uint8))
            >>> half = ReadBox(box=Box(0, 0, 320, 480), written=(0, 0, 500, 1000), span=Span(0, 9))
            >>> found = CropTool(CropSettings(padding=0, max_pixels=10_000)).cut(half, picture)
            >>> found.box, found.image.size
            (Box(x1=0, y1=0, x2=320, y2=480), Size(width=81, height=122))
        """
        place = self.place(box, image.size)
        pixels = None if place.box is None else self.pixels(place.box, image)
        return Cut(pixels, place.box, place.problem)

    def pixels(self, place: Box, image: ImageRef) -> ImageRef:
        """The pixels of a rectangle, resampled to the pixel budget; the whole image is handed on as it is."""
        from sightline.images import cut_out

        extent, size = Size(int(place.width), int(place.height)), self.extent(place)
        if place == (0, 0, *image.size) and size == image.size:
            return image
        return cut_out(image, place, None if size == extent else size)

    def extent(self, place: Box) -> Size:
        """The size at which the pixels of a rectangle are shown.

        Example:
            >>> CropTool(CropSettings(min_pixels=10_000)).extent(Box(0, 0, 20, 5))
            Size(width=200, height=50)
        """
        from sightline.images import fitted

        extent = Size(int(place.width), int(place.height))
        return fitted(extent, self.settings.min_pixels, self.settings.max_pixels)

    def _strict_place(self, box: Box, size: Size) -> Place:
        from sightline.images import crop_box

        if min(box.width, box.height) < self.settings.min_side:
            return Place(None, f"smaller than {self.settings.min_side} px")
        found = crop_box(box, size, self.settings.padding, min_side=1)
        return Place(None, "too elongated") if _aspect(found) > self.settings.max_aspect else Place(found)

    def _lenient_place(self, box: Box, size: Size, mended: str) -> Place:
        from sightline.images import crop_box

        found = crop_box(box, size, self.settings.padding, self.settings.min_side)
        if _aspect(found) > self.settings.max_aspect:
            least = math.ceil(max(found.width, found.height) / self.settings.max_aspect)
            found = crop_box(found, size, 0.0, least)
            mended = ", ".join(filter(None, [mended, "too elongated"]))
        # an image that is thin itself leaves no room to grow
        return Place(None, "too elongated") if _aspect(found) > self.settings.max_aspect else Place(found, mended)


def elsewhere(box: Box, size: Size, key: str) -> Box:
    """A rectangle of the same size at a place that depends on `key` alone.

    Example:
        >>> moved = elsewhere(Box(0, 0, 40, 30), Size(640, 480), "0/s17/0")
        >>> moved.width, moved.height, moved == elsewhere(Box(9, 9, 49, 39), Size(640, 480), "0/s17/0")
        (40, 30, True)
    """
    import numpy as np

    random = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    left = int(random.integers(0, max(int(size.width - box.width), 0) + 1))
    top = int(random.integers(0, max(int(size.height - box.height), 0) + 1))
    return Box(left, top, left + box.width, top + box.height)


def stand_in(control: Control, place: Box, size: Size, key: str) -> Box:
    """The rectangle that a control shows for a crop: the whole image, one elsewhere, or the same.

    Example:
        >>> stand_in("no-crop", Box(1, 2, 3, 4), Size(64, 48), "0/s17/0")
        Box(x1=0, y1=0, x2=64, y2=48)
    """
    if control == "no-crop":
        return Box(0, 0, *size)
    return elsewhere(place, size, key) if control == "random-crop" else place


def _aspect(box: Box) -> float:
    return max(box.width, box.height) / max(min(box.width, box.height), 1e-9)


def _parity_place(box: ReadBox | None, size: Size, settings: CropSettings) -> Place:
    """The rectangle of the Ground-R1 release, which may reach beyond the image; the whole image where it cuts none.

    The release truncates to whole pixels after an upper clamp only, and widens a side below `min_side` about its
    middle, a reversed one too. Reading has put the corners in order; `written` says in which order they stood. (The
    release divides in single precision, so a coordinate that falls on a whole pixel may differ from it by one.)
    """
    whole = Box(0, 0, *size)
    if box is None:
        return Place(whole, "no box")
    left, right = _truncated(box.box.x1, box.box.x2, box.written[0] > box.written[2], settings.min_side)
    top, bottom = _truncated(box.box.y1, box.box.y2, box.written[1] > box.written[3], settings.min_side)
    found = Box(left, top, right, bottom)
    limit = min(settings.max_aspect, MAX_ASPECT)
    return Place(whole, "too elongated") if _aspect(found) >= limit else Place(found)


def _truncated(low: float, high: float, is_reversed: bool, min_side: int) -> tuple[int, int]:
    first, last = (int(high), int(low)) if is_reversed else (int(low), int(high))
    missing = min_side - (last - first)
    if missing > 0:
        first -= missing // 2
        last += missing - missing // 2
    return first, last
