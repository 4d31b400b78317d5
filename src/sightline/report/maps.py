"""Attention maps inside a JSON row: one byte a value, as a share of the largest value of its map row."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.geometry.grid import membership
from sightline.types import Region, Size

if TYPE_CHECKING:
    from jaxtyping import Float

    from sightline.geometry.frames import Frame

__all__ = ["MAX_VALUES", "pack_map", "region_target", "thinned", "unpack_map"]

MAX_VALUES = 65_536
"""Values of one map that a row keeps, as many as a page shows at best; of more, runs of rows are averaged."""


def pack_map(
    values: Float[np.ndarray, "rows visual"], grids: Sequence[tuple[int, int]], limit: int = MAX_VALUES
) -> dict[str, Any]:
    """A map as plain data.

    Args:
        values: attention of each row (a token, or a single special one) to the visual tokens, not negative.
        grids: rows and columns of visual cells of each image, in the order of `visual`.
        limit: values to keep.

    Returns:
        `grid`, `rows` (number kept), `every` (rows of `values` in each of them; their mean, rows of zeros left out),
        `scale` (largest value of each row) and `values` (base64 of bytes; 255 stands for `scale`).

    Example:
        >>> packed = pack_map(np.array([[0.0, 0.5], [0.1, 0.1]]), [(1, 2)])
        >>> packed["scale"], packed["every"], unpack_map(packed).tolist()
        ([0.5, 0.1], 1, [[0.0, 0.5], [0.1, 0.1]])
    """
    visual = sum(rows * columns for rows, columns in grids)
    if values.ndim != 2 or values.shape[1] != visual:
        raise ValueError(f"a map of shape {values.shape} does not fit images of {visual} visual tokens")
    kept = np.maximum(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0.0)
    every = max(1, math.ceil(kept.size / max(limit, visual, 1)))
    kept = _pooled(kept, every)
    scale = kept.max(axis=1, initial=0.0)
    shares = kept / np.where(scale > 0, scale, 1.0)[:, None]
    return {
        "grid": [list(grid) for grid in grids],
        "rows": len(kept),
        "every": every,
        "scale": [float(f"{value:.4g}") for value in scale],
        "values": base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode("ascii"),
    }


def unpack_map(packed: Mapping[str, Any]) -> Float[np.ndarray, "rows visual"]:
    """The values of a packed map, to 1/510 of the largest value of their row."""
    data = np.frombuffer(base64.b64decode(packed["values"]), dtype=np.uint8)
    return data.reshape(packed["rows"], -1) / 255.0 * np.array(packed["scale"], dtype=np.float64)[:, None]


def thinned(packed: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The same map with `limit` values at most, by averaging runs of rows; one row always stays."""
    if len(packed["values"]) * 3 // 4 <= max(limit, 1):
        return dict(packed)
    again = pack_map(unpack_map(packed), [tuple(grid) for grid in packed["grid"]], limit)
    return again | {"every": again["every"] * packed["every"]}


def region_target(regions: Sequence[Region], sizes: Sequence[Size], frame: Frame) -> Float[np.ndarray, "visual"] | None:
    """What attention to the gold regions alone would be: each cell's share of the area they cover; None without any."""
    covered = membership(regions, sizes, frame, "coverage")
    return covered / covered.sum() if covered.any() else None


def _pooled(values: Float[np.ndarray, "rows visual"], every: int) -> Float[np.ndarray, "runs visual"]:
    """Means over runs of `every` rows; a row of zeros (a token that was not sampled) counts in none."""
    if every == 1:
        return values
    starts = np.arange(0, len(values), every)
    counts = np.add.reduceat(values.any(axis=1).astype(np.float64), starts)
    return np.add.reduceat(values, starts, axis=0) / np.maximum(counts, 1.0)[:, None]
