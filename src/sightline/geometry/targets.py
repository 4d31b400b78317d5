"""Where attention should go: gold regions as a distribution over the visual tokens of a prompt's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.geometry.frames import Frame
from sightline.geometry.grid import coverage, membership
from sightline.types import Box, Region, Size

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["TargetShape", "region_share", "region_target"]

TargetShape = Literal["coverage", "binary", "gaussian", "blur"]


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
    u = membership(regions, sizes, frame, "overlap" if shape == "binary" else "coverage")
    if u.sum() <= 0:
        raise ValueError("a region target needs a region in one of the images")
    if shape == "gaussian":
        peaked = np.concatenate([_bells(regions, i, frame, size) for i, size in enumerate(sizes)])
        u = peaked if peaked.any() else u
    elif shape == "blur":
        u = _blurred(u, sizes, frame, width)
    return (1 - smooth) * u / u.sum() + smooth / len(u)


def region_share(regions: Sequence[Region], sizes: Sequence[Size], frame: Frame) -> float:
    """Share of the cells that the regions cover, over the images that hold one; a large region says little.

    Example:
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> region_share([Region(box=Box(0, 0, 32, 64))], [Size(64, 64), Size(64, 64)], frame)
        0.5
    """
    shown = {region.image for region in regions if region.image < len(sizes)}
    cells = sum(frame.tokens(sizes[image]) for image in shown)
    return float(membership(regions, sizes, frame, "coverage").sum()) / cells if cells else 0.0


def _bells(regions: Sequence[Region], image: int, frame: Frame, size: Size) -> np.ndarray:
    """Of one image: the highest bell of its boxes in each cell, each times the share that the box covers."""
    own = [coverage(r.box, frame, size) * _bell(r.box, frame.cells(size), size) for r in regions if r.image == image]
    return np.max([np.zeros(frame.cells(size)), *own], axis=0).reshape(-1)


def _bell(box: Box, cells: tuple[int, int], size: Size) -> np.ndarray:
    """exp(-dx^2/sx^2 - dy^2/sy^2) at the centres of the cells, in original pixels."""
    sides = []
    for count, extent, low, high in ((cells[0], size[1], box[1], box[3]), (cells[1], size[0], box[0], box[2])):
        centres = (np.arange(count) + 0.5) * extent / count
        spread = max(0.8 * (high - low), 1e-6)
        sides.append(np.exp(-(((centres - (low + high) / 2) / spread) ** 2)))
    return np.outer(*sides)


def _blurred(u: np.ndarray, sizes: Sequence[Size], frame: Frame, width: float) -> np.ndarray:
    parts, at = [], 0
    for size in sizes:
        rows, columns = frame.cells(size)
        part = u[at : at + rows * columns].reshape(rows, columns)
        parts.append((_kernel(rows, width) @ part @ _kernel(columns, width)).reshape(-1))
        at += rows * columns
    return np.concatenate(parts)


def _kernel(count: int, width: float) -> np.ndarray:
    apart = np.arange(count)[:, None] - np.arange(count)[None]
    return np.exp(-(apart**2) / (2 * width**2))
