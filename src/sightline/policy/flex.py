"""The tree rule on CUDA: FlexAttention under a block mask in closed form, compiled once per shape.

Rows are padded to a few widths (`bucket`), so that a run meets few shapes. Within a row, blocks of 128 queries and 128
keys are skipped, computed whole, or computed under the rule `k <= q < end[k]`; which of the three follows from the
least and the largest `end` of the block's keys, without looking at pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from sightline.kernels import tree_rule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["BLOCK", "block_mask", "bucket"]

BLOCK = 128
"""Queries and keys of one block of the mask."""


def bucket(tokens: int) -> int:
    """The width that a row of so many tokens is padded to: multiples of 128, eight to every doubling above 1,024.

    Example:
        >>> [bucket(n) for n in (1, 128, 900, 2049, 5580, 8192)]
        [128, 128, 1024, 2304, 5632, 8192]
    """
    step = max(BLOCK, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


def block_mask(end: Int[Tensor, "rows tokens"]) -> BlockMask:
    """The tree rule as a FlexAttention block mask.

    A block of keys before the block of queries is seen by some of them if its largest `end` lies beyond the first
    query, and by all if its least `end` lies beyond the last one; a block on the diagonal is seen in part.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tokens = end.shape[1]
    count = -(-tokens // BLOCK)
    # keys that do not exist end at 0, so that their block is never computed whole
    ends = functional.pad(end, (0, count * BLOCK - tokens)).unflatten(1, (count, BLOCK))
    number = torch.arange(count, device=end.device)
    queries, keys = number[:, None], number[None, :]
    is_before = keys < queries
    first = queries * BLOCK
    whole = is_before & (ends.amin(-1)[:, None] >= first + BLOCK)
    seen = (is_before & (ends.amax(-1)[:, None] > first)) | (keys == queries)

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=tree_rule(end),
        seq_lengths=(tokens, tokens),
    )  # fmt: skip


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks as FlexAttention lists them, (rows, 1, queries) counts and (rows, 1, queries, keys) indices."""
    order = torch.argsort(chosen.byte(), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]
