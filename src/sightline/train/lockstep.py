"""Equal steps: with sharded weights every process must run the same forwards, whatever it has to compute.

A process whose own micro-batches are used up goes on with an idle one that scores nothing; a process without images
encodes a blank one that no token refers to. Both give gradients of exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from sightline.policy.batch import Batch, collate
from sightline.policy.features import tower
from sightline.policy.tree import Path, Segment, build_tree
from sightline.train.distributed import World
from sightline.train.sharding import is_sharded

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["Lockstep", "idle_batch"]

T = TypeVar("T")


class Lockstep:
    """Walks the micro-batches of all processes side by side.

    Args:
        policy: whose weights may be sharded; if they are not, every process walks alone.
        world: the processes.
    """

    def __init__(self, policy: Policy, world: World) -> None:
        self.policy, self.world = policy, world

    @property
    def is_sharded(self) -> bool:
        return self.world.size > 1 and is_sharded(self.policy.module)

    def over(self, items: Iterable[T], batch_of: Callable[[T], Batch]) -> Iterator[tuple[T | None, Batch]]:
        """Each item with its batch; None with an idle batch while other processes still have some."""
        if not self.is_sharded:
            yield from ((item, batch_of(item)) for item in items)
            return
        waiting = iter(items)
        while True:
            item = next(waiting, None)
            batch = idle_batch(self.policy) if item is None else batch_of(item)
            is_going, has_images = self.world.any(item is not None, batch.pixels is not None)
            if not is_going:
                return
            if has_images and batch.pixels is None:
                batch = self._with_blank(batch)
            yield item, batch

    def _with_blank(self, batch: Batch) -> Batch:
        """The batch with an image of one visual token that stands nowhere."""
        if not is_sharded(tower(self.policy)):
            return batch  # whole on every process: nobody waits for it
        processor = self.policy.pixels.processor
        merge, width = processor.merge_size, 3 * processor.temporal_patch_size * processor.patch_size**2
        device = batch.ids.device
        return replace(
            batch, pixels=torch.zeros(merge * merge, width, device=device), grids=torch.tensor([[1, merge, merge]])
        )


def idle_batch(policy: Policy) -> Batch:
    """The smallest batch: two tokens, none of them scored, no image."""
    token = next(i for i in range(len(policy.tokenizer)) if i not in policy.banned)
    ids = np.full(2, token, np.int64)
    tree = build_tree([Path((Segment("idle", ids, np.zeros(2, bool)),), 1)], policy.rules)
    return collate([[tree]], policy.pixels, pad=policy.pad, device=policy.device)
