"""Keys and values of a running generation: each prompt's once, each Rollout's own part beside it.

A row's attention is softmax over [prompt part, own part]. The prompt part is never repeated over its rows: the rows of
one prompt are queries against one block of keys, and the two parts are merged by their log-sum-exp

    out = (e^{l_p - l} out_p + e^{l_o - l} out_o),   l = log(e^{l_p} + e^{l_o}).

This equals attention over the concatenated keys exactly (up to rounding), and reads the prompt's keys from memory once
per prompt and step rather than once per row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["PrefixCache"]

GROWTH = 32


class PrefixCache:
    """Implements the `update` of a transformers cache and the `Decoder` protocol of `policy/attention.py`.

    Life: built for a batch of left-padded prompts (the prefill forward stores its keys through `update`), then
    `fork(rows)` starts R rows, each on one prompt; every decoding forward appends one token per row through `update`
    and attends through `attend`; `keep(rows)` drops finished rows.

    Args:
        layers: number of decoder layers.
        valid: which prompt positions are tokens, (prompts, width).
    """

    is_compileable = False

    def __init__(self, layers: int, valid: Bool[Tensor, "prompts width"]) -> None:
        self.prefix: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.own: list[tuple[Tensor, Tensor]] = []
        self.length = 0
        self._bias = torch.zeros(valid.shape).masked_fill_(~valid, float("-inf")).to(valid.device)[:, None, None, :]
        self._prompt: Tensor = torch.empty(0, dtype=torch.long)
        self._slot: Tensor = torch.empty(0, dtype=torch.long)
        self._slots = 0
        self._is_full = False

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self.length

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Prefill: stores the prompts' keys. Decoding: appends one position to every row."""
        if not self.own:
            self.prefix[layer_idx] = (key, value)
            return key, value
        if layer_idx == 0:
            self.length += 1
        capacity = self.own[layer_idx][0].shape[2]
        if self.length > capacity:
            self.own[layer_idx] = tuple(_grown(x) for x in self.own[layer_idx])  # type: ignore[assignment]
        keys, values = self.own[layer_idx]
        keys[:, :, self.length - 1] = key[:, :, 0]
        values[:, :, self.length - 1] = value[:, :, 0]
        return key, value

    def fork(self, prompt: Int[Tensor, "rows"]) -> None:
        """Starts one row per entry of `prompt` (the index of its prompt)."""
        self._assign(prompt)
        for stored in self.prefix:
            assert stored is not None
            _, heads, _, width = stored[0].shape
            empty = stored[0].new_empty(len(prompt), heads, GROWTH, width)
            self.own.append((empty, torch.empty_like(empty)))

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Drops every row that is not named; prompts without rows leave too."""
        self.own = [(k[rows], v[rows]) for k, v in self.own]
        alive, prompt = torch.unique(self._prompt[rows], return_inverse=True)
        if len(alive) < len(self._bias):
            self._bias = self._bias[alive]
            self.prefix = [(p[0][alive], p[1][alive]) if p is not None else None for p in self.prefix]
        self._assign(prompt)

    def _assign(self, prompt: Int[Tensor, "rows"]) -> None:
        count = torch.bincount(prompt, minlength=len(self._bias))
        first = torch.cumsum(count, 0) - count
        if bool((prompt[1:] < prompt[:-1]).any()):
            raise ValueError("rows of one prompt must stand together, in prompt order")
        self._prompt, self._slot = prompt, torch.arange(len(prompt), device=prompt.device) - first[prompt]
        self._slots = int(count.max()) if len(prompt) else 0
        self._is_full = len(prompt) == len(count) * self._slots

    def attend(self, layer: int, query: Float[Tensor, "rows heads 1 width"], scaling: float) -> Tensor:
        """Attention output (rows, 1, heads, width) of one new token per row over its prompt and its own tokens."""
        stored = self.prefix[layer]
        assert stored is not None
        rows, heads, _, width = query.shape
        kv_heads = stored[0].shape[1]
        folded = query.reshape(rows, kv_heads, heads // kv_heads, width) * scaling
        out_p, lse_p = self._over_prompt(folded, *stored)
        keys, values = (x[:, :, : self.length] for x in self.own[layer])
        scores = (folded @ keys.transpose(-1, -2)).float()
        lse_o = torch.logsumexp(scores, -1, keepdim=True)
        out_o = torch.exp(scores - lse_o).to(values.dtype) @ values
        share = torch.sigmoid(lse_p - lse_o).to(values.dtype)
        return (out_o + share * (out_p - out_o)).reshape(rows, 1, heads, width)

    def _over_prompt(self, folded: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Each prompt's rows as queries against its one block of keys; ragged groups use empty query slots."""
        rows, kv_heads, fold, width = folded.shape
        shape = (len(keys), self._slots, kv_heads, fold, width)
        if self._is_full:
            grid = folded.view(shape)
        else:
            grid = folded.new_zeros(shape)
            grid[self._prompt, self._slot] = folded
        queries = grid.transpose(1, 2).reshape(len(keys), kv_heads, self._slots * fold, width)
        scores = (queries @ keys.transpose(-1, -2)).float() + self._bias
        lse = torch.logsumexp(scores, -1, keepdim=True)
        out = torch.exp(scores - lse).to(values.dtype) @ values

        def per_row(x: Tensor) -> Tensor:
            x = x.view(len(keys), kv_heads, self._slots, fold, -1).transpose(1, 2)
            return x.reshape(rows, kv_heads, fold, -1) if self._is_full else x[self._prompt, self._slot]

        return per_row(out), per_row(lse)


def _grown(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_empty(x.shape[0], x.shape[1], max(GROWTH, x.shape[2] // 2), x.shape[3])], dim=2)
