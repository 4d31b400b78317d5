"""Features of a frozen vision tower, computed once per image: sampler, scoring passes and updates read the same ones.

An image is encoded by itself, so that its features do not depend on which images it met in a batch, nor a resumed run
on what an earlier process had in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sightline.policy.adapter import Vision

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["Features", "freeze_vision", "joined", "tower"]


class Features:
    """The most recent images' features, on the policy's device, those of deeper layers (deepstack) included.

    Args:
        policy: its vision tower is frozen.
        megabytes: how much to keep; 0 keeps nothing.
    """

    def __init__(self, policy: Policy, megabytes: float) -> None:
        self.policy, self.capacity = policy, int(megabytes * 2**20)
        self.bytes = self.encoded = 0
        self._kept: OrderedDict[tuple[str, tuple[int, int, int]], Vision] = OrderedDict()

    def has(self, digest: str, grid: tuple[int, int, int]) -> bool:
        """Whether the features of an image are kept."""
        return (digest, grid) in self._kept

    def of(self, digest: str, grid: tuple[int, int, int], patches: Callable[[], Tensor]) -> Vision:
        """Features of one image.

        Args:
            digest: of the pixels as they are shown; a crop or a changed image has its own.
            grid: (t, h, w) in patches, which the pixel limits decide.
            patches: prepares the image where it has to be encoded.
        """
        key = (digest, grid)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with torch.no_grad():
            found = self.policy.adapter.vision(patches().to(self.policy.device), torch.tensor([grid]))
        self.encoded += 1
        self._kept[key] = found
        self.bytes += _size(found)
        while self.bytes > self.capacity:
            self.bytes -= _size(self._kept.popitem(last=False)[1])
        return found


def freeze_vision(policy: Policy, megabytes: float) -> None:
    """Stops training the vision tower, and keeps its features from then on."""
    tower(policy).requires_grad_(False)
    policy.pixels.features = Features(policy, megabytes)


def tower(policy: Policy) -> Any:
    """The vision tower."""
    model = policy.model.get_base_model() if policy.lora else policy.model
    return model.model.visual


def joined(parts: Sequence[Vision]) -> Vision:
    """The features of several images, one after the other."""
    layers = zip(*(part.deepstack for part in parts), strict=True)
    return Vision(torch.cat([part.features for part in parts]), tuple(torch.cat(layer) for layer in layers))


def _size(vision: Vision) -> int:
    return vision.features.nbytes + sum(layer.nbytes for layer in vision.deepstack)
