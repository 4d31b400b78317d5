"""Images as the vision tower takes them: normalised patches, prepared once per distinct image and cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.policy.adapter import Vision
from sightline.policy.features import joined
from sightline.types import ImageRef

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.policy.features import Features

__all__ = ["Pixels", "VisualInput"]

MOST = 4096
"""Megabytes of patches that are kept at most; an image of 1,000 visual tokens takes 19."""


@dataclass(frozen=True, slots=True)
class VisualInput:
    """The distinct images of a batch and where their features go.

    Attributes:
        pixels: patches of all distinct images, one image after the other (None without images).
        grids: (t, h, w) in patches of each distinct image.
        at: flat index of every visual token in the batch's rows.
        source: index of the feature that belongs there.
        features: of those images, where the vision tower is frozen; there are then no pixels.
    """

    pixels: Float[Tensor, "patches patch_width"] | None
    grids: Int[Tensor, "images 3"] | None
    at: Int[Tensor, "visual"]
    source: Int[Tensor, "visual"]
    features: Vision | None = None


class Pixels:
    """Turns images into patches with the checkpoint's own image processor, and keeps the most recent ones.

    Args:
        processor: the checkpoint's image processor (PIL backend).
        frame: the resize rule, which must agree with the processor.
        capacity: how many megabytes of patches to keep.

    Attributes:
        features: given where the vision tower is frozen (see `freeze_vision`).
    """

    features: Features | None = None

    def __init__(self, processor: Any, frame: Frame, capacity: float = 256.0) -> None:
        self.processor, self.frame = processor, frame
        self._capacity = int(capacity * 2**20)
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._coming: dict[str, tuple[Future[Tensor], int]] = {}

    def grid(self, image: ImageRef) -> tuple[int, int]:
        """Rows and columns of visual tokens after merging."""
        return self.frame.cells(image.size)

    def patches(self, image: ImageRef) -> Float[Tensor, "patches patch_width"]:
        """Normalised patches of one image in merge-block order."""
        cached = self._cache.get(image.digest)
        if cached is not None:
            self._cache.move_to_end(image.digest)
            return cached
        coming = self._coming.pop(image.digest, None)
        patches = self.prepared(image) if coming is None or coming[0].cancelled() else coming[0].result()
        self._cache[image.digest] = patches
        self._bytes += patches.nbytes
        while self._bytes > self._capacity and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._bytes -= old.nbytes
        return patches

    def prepared(self, image: ImageRef) -> Float[Tensor, "patches patch_width"]:
        """Opens, resizes and cuts one image, without a look at the cache; runs in any thread."""
        from sightline.images import open_image

        out = self.processor(images=[open_image(image)], return_tensors="pt")
        merge = self.processor.merge_size
        _, h, w = (int(x) for x in out["image_grid_thw"][0])
        if (h // merge, w // merge) != tuple(self.grid(image)):
            raise ValueError(
                f"{image.path or image.digest}: processor grid {h}x{w} disagrees with {self.frame.describe()}"
            )
        return out["pixel_values"]

    def expects(self, image: ImageRef) -> bool:
        """Whether an image is ready or under way, or need not be prepared because its features are kept."""
        if image.digest in self._cache or image.digest in self._coming:
            return True
        rows, columns = (n * self.processor.merge_size for n in self.grid(image))
        return self.features is not None and self.features.has(image.digest, (1, rows, columns))

    def reserve(self, images: Iterable[ImageRef]) -> None:
        """Makes the cache large enough for these images and as many more, up to `MOST` megabytes."""
        needed = 2 * sum(self._size(image) for image in {image.digest: image for image in images}.values())
        self._capacity = max(self._capacity, min(needed, int(MOST * 2**20)))

    def has_room(self, image: ImageRef) -> bool:
        """Whether one more image under way would fit into half of the cache, beside what is in use."""
        return 2 * (sum(size for _, size in self._coming.values()) + self._size(image)) <= self._capacity

    def expect(self, image: ImageRef, future: Future[Tensor]) -> None:
        """An image that another thread prepares; who asks for it first waits for it."""
        self._coming[image.digest] = future, self._size(image)

    def _size(self, image: ImageRef) -> int:
        """Bytes of an image's patches."""
        rows, columns = self.grid(image)
        side = self.processor.patch_size * self.processor.merge_size
        return rows * columns * side**2 * 3 * self.processor.temporal_patch_size * 4

    def batch(self, images: Sequence[tuple[ImageRef, int]]) -> VisualInput:
        """Collects the distinct images of a batch; `images` pairs each occurrence with its first flat index."""
        merge = self.processor.merge_size
        first: dict[str, int] = {}
        distinct: list[ImageRef] = []
        grids: list[tuple[int, int, int]] = []
        at, source = [], []
        total = 0
        for image, start in images:
            rows, columns = self.grid(image)
            if image.digest not in first:
                first[image.digest] = total
                distinct.append(image)
                grids.append((1, rows * merge, columns * merge))
                total += rows * columns
            at.append(np.arange(start, start + rows * columns))
            source.append(np.arange(rows * columns) + first[image.digest])
        empty = np.empty(0, np.int64)
        pixels = features = None
        if distinct and self.features is not None:
            features = joined(
                [self.features.of(i.digest, g, partial(self.patches, i)) for i, g in zip(distinct, grids, strict=True)]
            )
        elif distinct:
            pixels = torch.cat([self.patches(image) for image in distinct])
        return VisualInput(
            pixels=pixels,
            grids=torch.tensor(grids) if grids else None,
            at=torch.from_numpy(np.concatenate([*at, empty])),
            source=torch.from_numpy(np.concatenate([*source, empty])),
            features=features,
        )
