"""Rounding at random: bfloat16 numbers that take steps far below their spacing, without fp32 copies.

fp32 x lies between two neighbouring bfloat16 numbers a < b; x becomes b with probability (x - a) / (b - a), else a, so
that the expectation is x and small steps add up.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["add_rounded", "local", "pieces", "stochastic_round"]

PIECE = 2**23
"""Numbers that are worked on at a time: 32 MiB in fp32, and a few times that on the way."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape as flat pieces, side by side; what is written into a piece stands in its tensor."""
    if all(t.is_contiguous() for t in tensors):
        yield from zip(*(t.view(-1).split(PIECE) for t in tensors), strict=True)
    else:
        yield tensors


def stochastic_round(value: Tensor) -> Tensor:
    """fp32 -> bfloat16, unbiased: random bits are added below the last kept bit, and cut off.

    Draws from the default generator of the tensor's device. Infinities and NaN stay what they are.
    """
    out = torch.empty_like(value, dtype=torch.bfloat16)
    for part, rounded in pieces(value, out):
        noise = torch.randint(0, 1 << 16, part.shape, dtype=torch.int32, device=part.device)
        bits = (part.view(torch.int32) + noise) & -(1 << 16)
        rounded.copy_(torch.where(part.isfinite(), bits.view(torch.float32), part))
    return out


def local(value: Tensor) -> Tensor:
    """This process's share of a sharded tensor, with the same storage."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]


def add_rounded(total: Tensor, value: Tensor) -> None:
    """total += value in place; the sum is rounded at random."""
    for kept, more in pieces(local(total), local(value)):
        kept.copy_(stochastic_round(kept.float() + more.float()))
