"""Where attention should go: gold regions as a distribution over the visual tokens of a prompt's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.geometry.frames import Frame
from sightline.geometry.grid import coverage
from sightline.geometry.unions import union_area
from sightline.types import Box, Region, Size

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["TargetShape", "region_cover", "region_share", "region_target"]

TargetShape = Literal["coverage", "binary", "gaussian", "blur"]


def region_cover(boxes: Sequence[Box], frame: Frame, size: Size) -> Float[np.ndarray, "rows columns"]:
    """`u_j = area(cell j and union of the boxes) / area(cell j)`, exact where boxes overlap; range [0, 1].

    Boxes that meet no cell (without area, or outside) give 1 to the cell nearest to their centre.

    Args:
        boxes: original pixels of one image.
        frame: says how many cells the image has; both axes are scaled by themselves.
        size: original size of the image.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> region_cover([Box(0, 0, 16, 32), Box(8, 0, 24, 32)], frame, Size(64, 64)).tolist()
        [[0.75, 0.0], [0.0, 0.0]]
        >>> region_cover([Box(40, 8, 40, 8)], frame, Size(64, 64)).tolist()
        [[0.0, 1.0], [0.0, 0.0]]
    """
    rows, columns = frame.cells(size)
    layers = np.array([coverage(box, frame, size) for box in boxes]).reshape(len(boxes), rows, columns)
    cover = layers.sum(axis=0)
    scale = columns / size[0], rows / size[1]
    for row, column in np.argwhere((layers > 0).sum(axis=0) > 1):
        cover[row, column] = union_area([_within(box, scale, int(row), int(column)) for box in boxes])
    if len(boxes) and not cover.any():
        x, y = (boxes[0][0] + boxes[0][2]) / 2 * scale[0], (boxes[0][1] + boxes[0][3]) / 2 * scale[1]
        cover[int(np.clip(y, 0, rows - 1)), int(np.clip(x, 0, columns - 1))] = 1.0
    return cover


def region_target(
    regions: Sequence[Region],
    sizes: Sequence[Size],
    frame: Frame,
    shape: TargetShape = "coverage",
    *,
    smooth: float = 0.05,
    width: float = 1.0,
) -> Float[np.ndarray, "visual"]:
    """`T_j = (1 - e) u_j / sum(u) + e / N`, one distribution over the visual tokens of all images, row by row.

    Args:
        regions: at least one; each names its image.
        sizes: original size of every image of the prompt, in order.
        frame: the resize and the cells.
        shape: of u. `coverage`: covered share of each cell; `binary`: 1 where covered at all; `gaussian`: coverage
            times exp(-dx^2/sx^2 - dy^2/sy^2) around each box, s = 0.8 of its side; `blur`: coverage under a Gaussian.
        smooth: e, spread evenly, in [0, 1).
        width: standard deviation of `blur`, in cells.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> region_target([Region(box=Box(0, 0, 48, 32))], [Size(64, 64)], frame, smooth=0.0).round(3).tolist()
        [0.667, 0.333, 0.0, 0.0]
    """
    parts = []
    for index, size in enumerate(sizes):
        boxes = [region.box for region in regions if region.image == index]
        parts.append(_shaped(boxes, frame, size, shape, width).reshape(-1))
    u = np.concatenate(parts)
    if u.sum() <= 0:
        raise ValueError("a region target needs a region in one of the images")
    return (1 - smooth) * u / u.sum() + smooth / len(u)


def region_share(regions: Sequence[Region], sizes: Sequence[Size], frame: Frame) -> float:
    """Share of the cells that the regions cover, over the images that hold one; a large region says little.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> region_share([Region(box=Box(0, 0, 32, 64))], [Size(64, 64), Size(64, 64)], frame)
        0.5
    """
    covers = [
        region_cover([r.box for r in regions if r.image == index], frame, sizes[index])
        for index in sorted({region.image for region in regions})
    ]
    total = sum(cover.size for cover in covers)
    return float(sum(cover.sum() for cover in covers)) / total if total else 0.0


def _shaped(boxes: Sequence[Box], frame: Frame, size: Size, shape: TargetShape, width: float) -> np.ndarray:
    cover = region_cover(boxes, frame, size)
    if shape == "binary":
        return (cover > 0).astype(np.float64)
    if shape == "gaussian":
        bells = [coverage(box, frame, size) * _bell(box, cover.shape, size) for box in boxes]
        peaked = np.max(bells, axis=0) if bells else cover
        return peaked if peaked.any() else cover
    if shape == "blur":
        down, across = (_kernel(count, width) for count in cover.shape)
        return down @ cover @ across
    return cover


def _bell(box: Box, cells: tuple[int, ...], size: Size) -> np.ndarray:
    """exp(-dx^2/sx^2 - dy^2/sy^2) at the centres of the cells, in original pixels."""
    sides = []
    for count, extent, low, high in ((cells[0], size[1], box[1], box[3]), (cells[1], size[0], box[0], box[2])):
        centres = (np.arange(count) + 0.5) * extent / count
        spread = max(0.8 * (high - low), 1e-6)
        sides.append(np.exp(-(((centres - (low + high) / 2) / spread) ** 2)))
    return np.outer(*sides)


def _kernel(count: int, width: float) -> np.ndarray:
    apart = np.arange(count)[:, None] - np.arange(count)[None]
    return np.exp(-(apart**2) / (2 * width**2))


def _within(box: Box, scale: tuple[float, float], row: int, column: int) -> Box:
    """The box in cells, cut to one cell."""
    x1, x2 = (min(max(x * scale[0], column), column + 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(y * scale[1], row), row + 1) for y in (box[1], box[3]))
    return Box(x1, y1, x2, y2)
