"""The rollout batch of one step, and what it cost: one round of records, or several with dynamic sampling."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from sightline.train.timing import Phases
from sightline.types import Group

__all__ = ["Rounds", "carries_signal"]


def carries_signal(group: Group) -> bool:
    """Some token of the group has an advantage."""
    return any(bool(np.any(c.advantage * c.weight != 0)) for c in group.credits)


class Rounds:
    """Collects credited groups until the batch is full.

    With `extra` > 0, groups that are flat in every stream (no token has an advantage) make room for new records in up
    to `extra` further rounds (dynamic sampling, arXiv 2503.14476). When the rounds run out, flat groups fill what is
    missing, so that the batch keeps its size. What was sampled in vain is counted.

    Args:
        wanted: groups of a full batch.
        extra: further rounds allowed.
        device: where the policy runs.
    """

    def __init__(self, wanted: int, extra: int = 0, device: torch.device | None = None) -> None:
        self.wanted, self.extra = wanted, extra
        self.phases = Phases(device or torch.device("cpu"))
        self._kept: list[Group] = []
        self._flat: list[Group] = []
        self._rounds = self._sampled = self._tokens = 0

    @property
    def missing(self) -> int:
        """Records to draw in the next round; 0 when the batch is full or the rounds ran out."""
        if self._rounds > self.extra:
            return 0
        return self.wanted - len(self._kept)

    @property
    def groups(self) -> list[Group]:
        return [*self._kept, *self._flat[: self.wanted - len(self._kept)]]

    def add(self, groups: Sequence[Group]) -> None:
        """Takes one round's groups. A record that returns within the step (a tiny data set) is dropped."""
        seen = {g.record.id for g in (*self._kept, *self._flat)}
        for group in groups:
            self._sampled += len(group)
            self._tokens += sum(int(r.sampled.sum()) for r in group.rollouts)
            if group.record.id in seen:
                continue
            is_kept = self.extra == 0 or carries_signal(group)
            (self._kept if is_kept else self._flat).append(group)
        self._rounds += 1

    def timed(self, part: str) -> AbstractContextManager[None]:
        """Adds the seconds of one part of a round."""
        return self.phases.timed(part)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part so far."""
        return self.phases.seconds()

    def metrics(self) -> dict[str, float]:
        used = sum(len(g) for g in self.groups)
        return {
            "sample/rollouts": float(self._sampled),
            "sample/rounds": float(self._rounds),
            "sample/discarded": float(self._sampled - used),
            "sample/tokens_per_second": self._tokens / max(self.seconds.get("sample", 0.0), 1e-9),
        }
