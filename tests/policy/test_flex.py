"""The CUDA route of the tree rule, as far as a CPU can tell: the block mask, the kernel uncompiled, its read-out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from sightline.kernels import attended
from sightline.policy.attention import TreeAttention, TreeLayout, dense_mask
from sightline.policy.flex import BLOCK, block_mask, bucket
from sightline.policy.readout import MassReadout

END = torch.tensor([[9, 9, 9, 6, 6, 6, 9, 9, 9]])


def random_end(tokens: int, rng: np.random.Generator) -> np.ndarray:
    """The `end` of a random forest: chains with further chains below them."""
    end = np.zeros(tokens, np.int64)

    def fill(start: int, stop: int, depth: int) -> None:
        while start < stop:
            last = min(stop, start + int(rng.integers(1, 500)))
            own = last if depth == 4 else start + int(rng.integers(1, last - start + 1))
            end[start:own] = last
            fill(own, last, depth + 1)
            start = last

    fill(0, tokens, 0)
    return end


@pytest.mark.parametrize("tokens", [9, 128, 300, 1024, 1500])
def test_block_mask_equals_the_one_that_looks_at_every_pair(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    end = torch.from_numpy(np.stack([random_end(tokens, rng) for _ in range(2)]))
    found = block_mask(end)
    want = create_block_mask(found.mask_mod, 2, None, tokens, tokens, device="cpu")
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts = [getattr(mask, f"{kind}_num_blocks") for mask in (found, want)]
        assert torch.equal(*counts)
        valid = torch.arange(counts[0].shape[-1]) < counts[0][..., None]
        listed = [torch.where(valid, getattr(mask, f"{kind}_indices"), -1) for mask in (found, want)]
        assert torch.equal(*listed)
    visible = found.to_dense()[:, 0].repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, :tokens, :tokens]
    assert bool((visible >= (dense_mask(end, torch.float32)[:, 0] == 0)).all())


def test_a_tree_skips_what_its_branches_do_not_see() -> None:
    """A prompt of 512 tokens and eight replies of 256: siblings cost nothing."""
    end = np.full(512 + 8 * 256, 512 + 8 * 256)
    for i in range(8):
        end[512 + 256 * i : 768 + 256 * i] = 768 + 256 * i
    mask = block_mask(torch.from_numpy(end)[None])
    assert int(mask.kv_num_blocks.sum()) == 20, "only the diagonal is computed under the rule"
    assert int(mask.full_kv_num_blocks.sum()) == 6 + 8 * (2 * 4 + 1)


def test_rows_are_padded_to_few_widths() -> None:
    widths = {bucket(n) for n in range(1, 8193)}
    assert len(widths) == 32
    assert all(w % BLOCK == 0 for w in widths)
    assert all(n <= bucket(n) for n in range(1, 9000))
    assert max(bucket(n) / n for n in range(1024, 40000)) <= 1.125


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("heads", [8, 6])
@pytest.mark.parametrize("width", [16, 12])
def test_log_sum_exp_and_masses_equal_the_layout(heads: int, width: int) -> None:
    """Also where the number of heads is no power of two, for narrow heads, and with fp32 sums of half-width inputs."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 9, width) for n in (heads, 2, 2))
    out, lse = attended(query, key, value, block_mask(END), 0.3)
    whole = [x.repeat_interleave(heads // 2, 1) for x in (key, value)]
    want, total = TreeAttention.apply(query, *whole, TreeLayout(END), 0.3)  # type: ignore[misc]
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse, total)
    found = []
    for norm in (lse, None):
        request = MassReadout(torch.arange(9)[None], torch.eye(9)[None, :4], [0])
        request.observe(0, query, key, TreeLayout(END), 0.3, norm)
        found.append(request.masses[0])
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    _, half = attended(query.bfloat16(), key.bfloat16(), value.bfloat16(), block_mask(END), 0.3)
    assert half.dtype == torch.float32
