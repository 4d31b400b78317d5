"""Attention over a tree layout against SDPA under the dense mask of the same rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sightline.policy.attention import TreeAttention, TreeLayout, dense_mask


def ends(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """A random forest over `tokens` positions: chains, forks at several levels, leaves of one token."""
    end = np.zeros(tokens, np.int64)

    def grow(start: int, stop: int) -> None:
        while start < stop:
            last = int(rng.integers(start, stop)) + 1
            chain = int(rng.integers(start, last)) + 1
            end[start:chain] = last
            grow(chain, last)
            start = last

    grow(0, tokens)
    return end


@pytest.mark.parametrize("seed", range(12))
def test_output_and_gradients_equal_dense_attention(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, tokens = 3, int(rng.integers(1, 60))
    end = torch.from_numpy(np.stack([ends(rng, tokens) for _ in range(rows)]))
    torch.manual_seed(seed)
    inputs = [torch.randn(rows, tokens, 2, 6).transpose(1, 2).requires_grad_() for _ in range(3)]
    seen = torch.zeros(rows, tokens)
    for row, length in enumerate(end.tolist()):
        for i in range(tokens):
            is_padding = length[i] == i + 1 and all(length[k] <= i for k in range(i))
            seen[row, i] = 0.0 if is_padding else 1.0
    upstream = torch.randn(rows, 2, tokens, 6) * seen[:, None, :, None]

    got, _ = TreeAttention.apply(*inputs, TreeLayout(end), 0.3)
    ours = torch.autograd.grad(got, inputs, upstream)
    want = torch.nn.functional.scaled_dot_product_attention(
        *inputs, attn_mask=dense_mask(end, torch.float32), scale=0.3
    )
    theirs = torch.autograd.grad(want, inputs, upstream)
    torch.testing.assert_close(got * seen[:, None, :, None], want * seen[:, None, :, None], atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_parts_cover_exactly_the_visible_pairs() -> None:
    rng = np.random.default_rng(0)
    end = np.stack([ends(rng, 40) for _ in range(4)])
    count = np.zeros((4, 40, 40), int)
    for part in TreeLayout(torch.from_numpy(end)).parts:
        (row, _, queries), (_, _, keys) = part.queries, part.keys
        block = np.ones((queries.stop - queries.start, keys.stop - keys.start), int)
        count[row, queries, keys] += np.tril(block) if part.is_causal else block
    index = np.arange(40)
    visible = (index[None, None] <= index[None, :, None]) & (index[None, :, None] < end[:, None, :])
    padding = (end == index + 1) & np.stack([[all(row[:i] <= i) for i in index] for row in end])
    np.testing.assert_array_equal(count, visible & ~padding[:, :, None])


def test_half_precision_stays_close() -> None:
    end = torch.tensor([[9, 9, 9, 6, 6, 6, 9, 9, 9]])
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 9, 8) for _ in range(3)]
    exact, _ = TreeAttention.apply(*inputs, TreeLayout(end), 0.35)
    half, _ = TreeAttention.apply(*(x.bfloat16() for x in inputs), TreeLayout(end), 0.35)
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0.03)
