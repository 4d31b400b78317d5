"""Coordinate frames by name, for commands that read replies without loading the policy that wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["FrameName", "frame_named"]

FrameName = Literal["pixels", "relative_1000", "qwen2_5_vl", "qwen3_vl"]
_LARGE = 2**40  # px^2: no image is scaled down


def frame_named(name: str) -> Frame:
    """`pixels`: boxes are written in pixels of the image itself; `relative_1000`: 0..1000 along each side;
    `qwen2_5_vl`, `qwen3_vl`: the published models with the pixel limits of their processors.

    Example:
        >>> from sightline.types import Box, Size
        >>> frame_named("pixels").write(Box(10, 20, 30, 41), Size(99, 57))
        (10, 20, 30, 41)
    """
    from sightline.errors import UserError
    from sightline.geometry.frames import Frame

    if name == "pixels":
        return Frame("absolute", 1, 1, _LARGE)
    if name == "relative_1000":
        return Frame("relative_1000", 1, 1, _LARGE)
    if name == "qwen2_5_vl":
        return Frame("absolute", 28, 56 * 56, 28 * 28 * 1280)
    if name == "qwen3_vl":
        return Frame("relative_1000", 32, 65536, 16777216)
    raise UserError(f"unknown frame {name!r}", hint=f"one of {', '.join(get_args(FrameName))}")
