"""What a method's loss reads, made by hand: N tokens of equal weight, in replies of the given lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.policy.batch import FoldedCredit, Paths


@dataclass
class LossInput:
    credit: FoldedCredit
    paths: Paths
    probes: dict[str, Tensor]
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    progress: float = 0.0


@dataclass
class LossReads:
    logprobs: Tensor
    entropies: Tensor | None = None
    maps: dict[str, object] = field(default_factory=dict)


def contrast_batch(changed: list[float], lengths: tuple[int, ...] = (2, 2), **keys: Any) -> LossInput:
    """Tokens without advantage whose log-probs under the changed image are given."""
    n = len(changed)
    weight, leaf = torch.full((n,), 1 / n), torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
    credit = FoldedCredit(positive=torch.zeros(n), negative=torch.zeros(n), weight=weight)
    paths = Paths(leaf=leaf, token=torch.arange(n), advantage=torch.zeros(n), weight=weight)
    return LossInput(credit, paths, {"contrast": torch.tensor(changed)}, **keys)
