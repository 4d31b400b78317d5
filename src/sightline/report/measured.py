"""Measurement -> its part of a row: what each probe says about each token, maps of attention, changed pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.methods.probes import SEGMENTS
from sightline.report.maps import pack_map, region_target
from sightline.types import ImageRef, Measurement, Rollout

if TYPE_CHECKING:
    from jaxtyping import Float

    from sightline.geometry.frames import Frame

__all__ = ["image_row", "measured_row", "target_row"]


def image_row(image: ImageRef) -> dict[str, Any]:
    """An image by its file name in the run folder, its size and where it came from."""
    return {"path": image.path, "width": image.size.width, "height": image.size.height, "digest": image.digest}


def measured_row(rollout: Rollout, measurement: Measurement | None, frame: Frame | None) -> dict[str, Any]:
    """`probes`, `effects`, `maps` and `pictures` of one Rollout, each only where there is something to tell.

    * `probes`: per probe one number for each token (None where it was not sampled). Masses of attention stand as
      `name/region`, `name/image`, ..., several draws as their mean.
    * `effects`: per probe that changes the image, log p - log p' of each token, in nats: above zero where the image
      makes the token likelier.
    * `maps`: see `maps.pack_map`; left out without a frame, which alone knows the grid.
    * `pictures`: per probe that changes the image, the images it showed.
    """
    if measurement is None:
        return {}
    probes: dict[str, list[float | None]] = {}
    effects: dict[str, list[float | None]] = {}
    for name, values in measurement.probes.items():
        is_contrast = name in measurement.images
        for part, column in _columns(name, np.asarray(values, dtype=np.float64), is_contrast):
            probes[part] = _listed(column, rollout)
            if is_contrast and measurement.logprobs is not None:
                effects[part] = _listed(measurement.logprobs - column, rollout)
    grids = [] if frame is None else [frame.cells(image.size) for image in rollout.prompt.images]
    maps = {name: pack_map(values, grids) for name, values in measurement.maps.items() if grids}
    pictures = {name: [image_row(image) for image in images] for name, images in measurement.images.items() if images}
    found = {"probes": probes, "effects": effects, "maps": maps, "pictures": pictures}
    return {name: value for name, value in found.items() if value}


def target_row(rollouts: Sequence[Rollout], measurements: Sequence[Measurement], frame: Frame | None) -> dict | None:
    """The map that looks at the gold regions alone, to stand beside the measured ones; None where none was kept."""
    if frame is None or not any(measurement.maps for measurement in measurements):
        return None
    sizes = [image.size for image in rollouts[0].record.images]
    target = region_target(rollouts[0].record.regions, sizes, frame)
    return None if target is None else pack_map(target[None], [frame.cells(size) for size in sizes])


def _columns(name: str, values: np.ndarray, is_contrast: bool) -> list[tuple[str, Float[np.ndarray, "tokens"]]]:
    """A probe's result as one value per token under one name, or under several where it has several meanings."""
    if values.ndim == 1:
        return [(name, values)]
    if not is_contrast and values.shape[1] == len(SEGMENTS) and (values >= 0).all():
        return [(f"{name}/{segment}", values[:, i]) for i, segment in enumerate(SEGMENTS)]
    return [(name, values.mean(axis=1))]


def _listed(values: Float[np.ndarray, "tokens"], rollout: Rollout) -> list[float | None]:
    return [
        float(f"{value:.4g}") if sampled and np.isfinite(value) else None
        for value, sampled in zip(values.tolist(), rollout.sampled, strict=True)
    ]
