"""Rounding at random: bfloat16 numbers that take steps far below their spacing, without fp32 copies.

fp32 x lies between two neighbouring bfloat16 numbers a < b; x becomes b with probability (x - a) / (b - a), else a, so
that the expectation is x and small steps add up.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_rounded", "local", "stochastic_round"]


def stochastic_round(value: Tensor) -> Tensor:
    """fp32 -> bfloat16, unbiased: random bits are added below the last kept bit, and cut off.

    Draws from the default generator of the tensor's device. Infinities and NaN stay what they are.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device)
    bits = (value.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(value.isfinite(), bits.view(torch.float32), value).to(torch.bfloat16)


def local(value: Tensor) -> Tensor:
    """This process's share of a sharded tensor, with the same storage."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]


def add_rounded(total: Tensor, value: Tensor) -> None:
    """total += value in place; the sum is rounded at random."""
    kept = local(total)
    kept.copy_(stochastic_round(kept.float() + local(value).float()))
