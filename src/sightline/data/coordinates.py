"""Boxes of other people's files, converted once to original pixels `xyxy`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sightline.types import Box, Size

__all__ = ["FRAMES", "to_pixels"]

Numbers = Sequence[float]


def _absolute(numbers: Numbers, _size: Size) -> Box:
    return Box(*numbers)


def _scaled(full: float) -> Callable[[Numbers, Size], Box]:
    def convert(numbers: Numbers, size: Size) -> Box:
        x1, y1, x2, y2 = numbers
        return Box(x1 * size.width / full, y1 * size.height / full, x2 * size.width / full, y2 * size.height / full)

    return convert


def _corners(convert: Callable[[Numbers, Size], Box]) -> Callable[[Numbers, Size], Box]:
    def from_sides(numbers: Numbers, size: Size) -> Box:
        x, y, width, height = numbers
        return convert((x, y, x + width, y + height), size)

    return from_sides


def _unpadded(numbers: Numbers, size: Size) -> Box:
    side = max(size)
    left, top = (side - size.width) / 2, (side - size.height) / 2
    x1, y1, x2, y2 = (number * side for number in numbers)
    return Box(x1 - left, y1 - top, x2 - left, y2 - top)


FRAMES: Mapping[str, Callable[[Numbers, Size], Box]] = {
    "original_px": _absolute,
    "original_px_xywh": _corners(_absolute),
    "norm_1": _scaled(1.0),
    "norm_1_xywh": _corners(_scaled(1.0)),
    "norm_1000": _scaled(1000.0),
    "norm_1000_xywh": _corners(_scaled(1000.0)),
    "padded_square_1": _unpadded,
}


def to_pixels(numbers: Numbers, frame: str, size: Size) -> Box:
    """Four numbers of a declared frame as a box in original pixels, floats, not clamped.

    Args:
        numbers: `x1 y1 x2 y2`, or `x y width height` in the frames that end in `_xywh`.
        frame: a key of `FRAMES`. `padded_square_1` means 0..1 on the image padded to a centred square.
        size: the original image, in pixels.

    Example:
        >>> to_pixels((100, 250, 500, 500), "norm_1000", Size(200, 400))
        Box(x1=20.0, y1=100.0, x2=100.0, y2=200.0)
        >>> to_pixels((0.0, 0.25, 1.0, 0.75), "padded_square_1", Size(400, 200))
        Box(x1=0.0, y1=0.0, x2=400.0, y2=200.0)
    """
    return FRAMES[frame](numbers, size)
