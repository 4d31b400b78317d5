"""Coordinate frames: the resize a model applies to an image, and the numbers in which it writes boxes.

Three spaces: *original* pixels (every box of a Record), *resized* pixels (what the vision tower sees), and *model*
coordinates (what stands in a reply). Qwen2.5-VL writes absolute resized pixels, Qwen3-VL a grid of 0..1000 over the
image. Each conversion is per axis, so the small change of aspect in the resize is accounted for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sightline.errors import UserError
from sightline.types import Box, Size

__all__ = ["MAX_ASPECT", "Convention", "Frame"]

Convention = Literal["absolute", "relative_1000"]

MAX_ASPECT = 200
"""The longest permitted side, in multiples of the other; the image processors refuse more."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How one loaded model sees images and writes boxes.

    Attributes:
        convention: `absolute` (resized pixels) or `relative_1000` (0..1000 along each side).
        factor: side of one visual token in resized pixels, patch size times merge size (28, 32, or 16).
        min_pixels: least area after the resize, px^2.
        max_pixels: largest area after the resize, px^2.

    Example:
        >>> frame = Frame("relative_1000", 32, 65536, 16777216)
        >>> frame.write(Box(160, 120, 320, 240), Size(640, 480))
        (250, 250, 500, 500)
    """

    convention: Convention
    factor: int
    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        if self.convention not in get_args(Convention):
            raise UserError(f"unknown coordinate convention {self.convention!r}", hint="absolute or relative_1000")
        if self.factor < 1 or not 0 <= self.min_pixels <= self.max_pixels or self.max_pixels < self.factor**2:
            raise UserError(
                f"pixel limits {self.min_pixels}..{self.max_pixels} do not fit cells of {self.factor} px",
                hint=f"0 <= min_pixels <= max_pixels, and max_pixels at least {self.factor**2}",
            )

    def resized(self, size: Size) -> Size:
        """The size after the resize of the Qwen-VL image processors.

        Each side is rounded to a multiple of `factor`; an area beyond the limits is scaled back to the limit, the
        sides then rounded down (too large) or up (too small).

        Raises:
            UserError: an empty image, or one side more than 200 times the other.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).resized(Size(640, 480))
            Size(width=504, height=364)
        """
        width, height = size
        if min(width, height) < 1:
            raise UserError(f"an image of {width}x{height} pixels is empty")
        if max(width, height) / min(width, height) > MAX_ASPECT:
            raise UserError(
                f"an image of {width}x{height} pixels is more than {MAX_ASPECT} times longer than wide",
                hint="cut it into parts",
            )
        factor = self.factor
        sides = round(width / factor) * factor, round(height / factor) * factor
        if sides[0] * sides[1] > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            sides = math.floor(width / shrink / factor) * factor, math.floor(height / shrink / factor) * factor
        elif sides[0] * sides[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            sides = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
        return Size(max(sides[0], factor), max(sides[1], factor))

    def extent(self, size: Size) -> Size:
        """The largest coordinates the model may write for an image of this original size.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).extent(Size(640, 480))
            Size(width=504, height=364)
        """
        return self.resized(size) if self.convention == "absolute" else Size(1000, 1000)

    def to_model(self, box: Box, size: Size) -> Box:
        """From original pixels to model coordinates, not rounded.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).to_model(Box(0, 0, 640, 240), Size(640, 480))
            Box(x1=0.0, y1=0.0, x2=504.0, y2=182.0)
        """
        return _scaled(box, size, self.extent(size))

    def to_original(self, box: Box, size: Size) -> Box:
        """From model coordinates to original pixels; neither ordered nor clamped.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).to_original(Box(0, 0, 504, 182), Size(640, 480))
            Box(x1=0.0, y1=0.0, x2=640.0, y2=240.0)
        """
        return _scaled(box, self.extent(size), size)

    def write(self, box: Box, size: Size) -> tuple[int, int, int, int]:
        """The four integers a model should write for a box in original pixels.

        Rounded to the nearest integer, inside `extent`; a box that would lose its width or height to rounding keeps
        one unit of it.

        Example:
            >>> Frame("relative_1000", 32, 65536, 16777216).write(Box(-3, 5, 5.1, 5.2), Size(640, 480))
            (0, 10, 8, 11)
        """
        extent = self.extent(size)
        x1, y1, x2, y2 = self.to_model(box, size)
        left, right = _interval(x1, x2, extent.width)
        top, bottom = _interval(y1, y2, extent.height)
        return left, top, right, bottom

    def cells(self, size: Size) -> tuple[int, int]:
        """Rows and columns of visual tokens, after merging.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).cells(Size(640, 480))
            (13, 18)
        """
        width, height = self.resized(size)
        return height // self.factor, width // self.factor

    def tokens(self, size: Size) -> int:
        """Number of visual tokens of an image, after merging.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).tokens(Size(640, 480))
            234
        """
        rows, columns = self.cells(size)
        return rows * columns

    def describe(self) -> str:
        """One line for logs.

        Example:
            >>> Frame("absolute", 28, 3136, 200704).describe()
            'boxes in pixels of the resized image; cells of 28 px; 3136..200704 px^2 (4..256 visual tokens)'
        """
        kind = "pixels of the resized image" if self.convention == "absolute" else "thousandths of the image (0..1000)"
        cell = self.factor**2
        tokens = f"{max(math.ceil(self.min_pixels / cell), 1)}..{self.max_pixels // cell} visual tokens"
        return f"boxes in {kind}; cells of {self.factor} px; {self.min_pixels}..{self.max_pixels} px^2 ({tokens})"


def _scaled(box: Box, source: Size, target: Size) -> Box:
    x1, y1, x2, y2 = box
    # Multiplying first keeps the far border exact: width * target / width == target.
    return Box(
        x1 * target[0] / source[0], y1 * target[1] / source[1], x2 * target[0] / source[0], y2 * target[1] / source[1]
    )


def _interval(low: float, high: float, limit: int) -> tuple[int, int]:
    low, high = sorted((min(max(low, 0.0), float(limit)), min(max(high, 0.0), float(limit))))
    first, last = round(low), round(high)
    if first < last:
        return first, last
    return (first, first + 1) if first < limit else (first - 1, first)
