"""Keys and values of a running generation: a chain of shared levels, and each row's own part at its end.

A row's attention is softmax over the concatenation of all parts. Shared parts are never repeated over the rows that
stand on them: those rows are queries against one block of keys, and the parts are merged by their log-sum-exp

    out = (e^{l_a - l} out_a + e^{l_b - l} out_b),   l = log(e^{l_a} + e^{l_b}).

This equals attention over the concatenated keys exactly (up to rounding), and reads shared keys from memory once per
block and step rather than once per row.

A conversation goes through it turn by turn::

    Filling(prompts)  -> [prompts]                        one block per prompt
    PrefixCache       -> [prompts] + own                  rows write their first turn; finished rows are set aside
    Filling(turns)    -> [prompts] + [turn 1]             what a row wrote and what the user added: a block of its own
    PrefixCache       -> [prompts] + [turn 1] + own       one row or several continue each block
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.policy.attention import dense_mask

__all__ = ["Filling", "PrefixCache", "Shared"]

GROWTH = 32


class Shared:
    """One level of the chain: blocks of keys and values, each read by the rows that stand on it.

    Args:
        keys, values: per layer, (blocks, kv_heads, width, head_width).
        valid: which positions of a block hold tokens, (blocks, width).
        block: the block of each row; rows of one block stand together, in block order.

    Raises:
        ValueError: rows of one block do not stand together.
    """

    def __init__(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        valid: Bool[Tensor, "blocks width"],
        block: Int[Tensor, "rows"],
    ) -> None:
        if bool((block[1:] < block[:-1]).any()):
            raise ValueError("rows of one block must stand together, in block order")
        self.keys, self.values, self.valid, self.block = keys, values, valid, block
        self._bias = torch.zeros(valid.shape, device=valid.device).masked_fill_(~valid, float("-inf"))[:, None, None, :]
        count = torch.bincount(block, minlength=len(valid))
        first = torch.cumsum(count, 0) - count
        self._slot = torch.arange(len(block), device=block.device) - first[block]
        self._slots = int(count.max()) if len(block) else 0
        self._is_full = len(block) == len(count) * self._slots

    @property
    def is_private(self) -> bool:
        """Every block belongs to one row."""
        return self._is_full and self._slots == 1

    @property
    def width(self) -> int:
        return self.valid.shape[1]

    def at(self, rows: Int[Tensor, "_"]) -> Shared:
        """The level for new rows that stand where the given ones do; blocks without rows leave."""
        alive, block = torch.unique(self.block[rows], return_inverse=True)
        if len(alive) == len(self.valid):
            return Shared(self.keys, self.values, self.valid, block)
        return Shared([k[alive] for k in self.keys], [v[alive] for v in self.values], self.valid[alive], block)

    def by_row(self, x: Tensor) -> Tensor:
        """Something given per block, for every row."""
        return x if self.is_private else x[self.block]

    def attend(self, layer: int, folded: Float[Tensor, "rows kv_heads fold width"]) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of scaled queries; ragged groups of rows use empty query slots."""
        keys, values = self.keys[layer], self.values[layer]
        rows, kv_heads, fold, width = folded.shape
        shape = (len(keys), self._slots, kv_heads, fold, width)
        if self._is_full:
            grid = folded.view(shape)
        else:
            grid = folded.new_zeros(shape)
            grid[self.block, self._slot] = folded
        queries = grid.transpose(1, 2).reshape(len(keys), kv_heads, self._slots * fold, width)
        scores = (queries @ keys.transpose(-1, -2)).float() + self._bias
        lse = torch.logsumexp(scores, -1, keepdim=True)
        out = torch.exp(scores - lse).to(values.dtype) @ values

        def per_row(x: Tensor) -> Tensor:
            x = x.view(len(keys), kv_heads, self._slots, fold, -1).transpose(1, 2)
            return x.reshape(rows, kv_heads, fold, -1) if self._is_full else x[self.block, self._slot]

        return per_row(out), per_row(lse)


class Filling:
    """The cache of a forward over several new tokens per row: prompts, or what is added to a conversation.

    Implements the `update` of a transformers cache. Every layer is given all keys its rows see, under `mask`. The new
    tokens become a level of their own; levels at the end of the chain whose blocks belong to one row each are joined
    to it, so that a chain is no longer than its branchings.

    Args:
        valid: which positions of the left-padded new tokens are tokens, (rows, new).
        chain: the levels these rows stand on.
    """

    is_compileable = False

    def __init__(self, valid: Bool[Tensor, "rows new"], chain: Sequence[Shared] = ()) -> None:
        self.valid, self.chain = valid, tuple(chain)
        shared = len(self.chain)
        while shared and self.chain[shared - 1].is_private:
            shared -= 1
        self._shared = self.chain[:shared]
        self._from = sum(level.width for level in self._shared)
        private = torch.cat([*(level.by_row(level.valid) for level in self.chain[shared:]), valid], 1)
        size = int(private.sum(1).max())
        self._is_padded = size < private.shape[1]
        self._order = torch.sort((~private).byte(), dim=1, stable=True).indices[:, :size]
        self._kept = private.gather(1, self._order) if self._is_padded else private
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return sum(level.width for level in self.chain)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if self.chain:
            key = torch.cat([*(level.by_row(level.keys[layer_idx]) for level in self.chain), key], 2)
            value = torch.cat([*(level.by_row(level.values[layer_idx]) for level in self.chain), value], 2)
        self._keys.append(self._own(key))
        self._values.append(self._own(value))
        return key, value

    def _own(self, x: Tensor) -> Tensor:
        """The part of all keys that the new level holds, without padding that no row needs."""
        own = x[:, :, self._from :] if self._from else x
        if not self._is_padded:
            return own.clone() if self._from else own
        return own.gather(2, self._order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "rows 1 new tokens"]:
        """Earlier tokens are visible, new ones causally; left padding sees only itself besides."""
        rows, new = self.valid.shape
        index = torch.arange(1, new + 1, device=self.valid.device)
        mask = dense_mask(torch.where(self.valid, new, index[None]), dtype)
        if not self.chain:
            return mask
        seen = torch.cat([level.by_row(level.valid) for level in self.chain], 1)[:, None, None]
        earlier = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        earlier.masked_fill_(~seen, torch.finfo(dtype).min)
        return torch.cat([earlier.expand(rows, 1, new, -1), mask], -1)

    def levels(self) -> list[Shared]:
        """The chain that now ends with the new tokens, one row per block of its last level."""
        rows = torch.arange(len(self.valid), device=self.valid.device)
        return [*self._shared, Shared(self._keys, self._values, self._kept, rows)]


class PrefixCache:
    """The cache of decoding, one new token per row; also the `Decoder` of `policy/attention.py`.

    Args:
        chain: the levels the rows stand on.
        is_parking: rows that `keep` drops are set aside for `standing`, which continues them.
    """

    is_compileable = False

    def __init__(self, chain: Sequence[Shared], *, is_parking: bool = False) -> None:
        self.chain = list(chain)
        self.length = 0
        self.own: list[tuple[Tensor, Tensor]] = []
        count = len(self.chain[0].block)
        for stored in self.chain[0].keys:
            empty = stored.new_empty(count, stored.shape[1], GROWTH, stored.shape[3])
            self.own.append((empty, torch.empty_like(empty)))
        self._rows = torch.arange(count, device=self.chain[0].block.device)
        self._began: tuple[Shared, ...] = tuple(chain) if is_parking else ()
        self._parked: list[tuple[Tensor, list[tuple[Tensor, Tensor]]]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.length

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Appends one position to every row."""
        if layer_idx == 0:
            self.length += 1
        capacity = self.own[layer_idx][0].shape[2]
        if self.length > capacity:
            self.own[layer_idx] = tuple(_grown(x) for x in self.own[layer_idx])  # type: ignore[assignment]
        keys, values = self.own[layer_idx]
        keys[:, :, self.length - 1] = key[:, :, 0]
        values[:, :, self.length - 1] = value[:, :, 0]
        return key, value

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drops every row that is not named; blocks without rows leave too."""
        if self._began:
            is_dropped = torch.ones(len(self._rows), dtype=torch.bool, device=self._rows.device)
            is_dropped[rows] = False
            set_aside = [(k[is_dropped, :, : self.length], v[is_dropped, :, : self.length]) for k, v in self.own]
            self._parked.append((self._rows[is_dropped], set_aside))
        self.own = [(k[rows], v[rows]) for k, v in self.own]
        self.chain = [level.at(rows) for level in self.chain]
        self._rows = self._rows[rows]

    def standing(self, rows: Int[Tensor, "kept"]) -> list[Shared]:
        """The chain of the given rows, numbered as at the start, their own parts its last level; all must be parked."""
        width = max(own[0][0].shape[2] for _, own in self._parked)
        place = torch.full((len(self._began[0].block),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        shape = (len(rows), self.own[0][0].shape[1], width, self.own[0][0].shape[3])
        keys = [k.new_zeros(shape) for k, _ in self.own]
        values = [v.new_zeros(shape) for _, v in self.own]
        valid = torch.zeros(len(rows), width, dtype=torch.bool, device=rows.device)
        for numbers, own in self._parked:
            wanted = place[numbers] >= 0
            at, length = place[numbers][wanted], own[0][0].shape[2]
            valid[at, :length] = True
            for layer, (k, v) in enumerate(own):
                keys[layer][at, :, :length] = k[wanted]
                values[layer][at, :, :length] = v[wanted]
        own_level = Shared(keys, values, valid, torch.arange(len(rows), device=rows.device))
        return [*(level.at(rows) for level in self._began), own_level]

    def attend(self, layer: int, query: Float[Tensor, "rows heads 1 width"], scaling: float) -> Tensor:
        """Attention output (rows, 1, heads, width) of one new token per row over its chain and its own tokens."""
        rows, heads, _, width = query.shape
        keys, values = (x[:, :, : self.length] for x in self.own[layer])
        kv_heads = keys.shape[1]
        folded = query.reshape(rows, kv_heads, heads // kv_heads, width) * scaling
        scores = (folded @ keys.transpose(-1, -2)).float()
        lse = torch.logsumexp(scores, -1, keepdim=True)
        out = torch.exp(scores - lse).to(values.dtype) @ values
        for level in self.chain:
            other, other_lse = level.attend(layer, folded)
            out = out + torch.sigmoid(other_lse - lse).to(values.dtype) * (other - out)
            lse = torch.logaddexp(lse, other_lse)
        return out.reshape(rows, 1, heads, width)


def _grown(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_empty(x.shape[0], x.shape[1], max(GROWTH, x.shape[2] // 2), x.shape[3])], dim=2)
