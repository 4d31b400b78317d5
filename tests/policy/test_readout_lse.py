"""The FlexAttention route of a read-out, uncompiled on CPU; tests/gpu runs it compiled."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sightline.policy import attention as module
from sightline.policy.attention import TreeAttention, TreeLayout
from sightline.policy.readout import MassReadout

END = torch.tensor([[9, 9, 9, 6, 6, 6, 9, 9, 9]])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("heads", [8, 6])
def test_log_sum_exp_and_masses_equal_the_layout(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """Also for half-precision inputs, whose log-sum-exp transformers' own wrapper would round to 8 bits."""

    def uncompiled(*tensors: torch.Tensor, training: bool, **keywords: object) -> object:
        assert not training
        return flex_attention(*tensors, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "compile_friendly_flex_attention", uncompiled)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, 9, 16) for n in (heads, 2, 2))
    mask = create_block_mask(lambda b, h, q, k: (k <= q) & (q < END[b, k]), 1, None, 9, 9, device="cpu")  # noqa: ARG005
    layout, layer = TreeLayout(END), torch.nn.Module().eval()
    out, lse = module._flex_with_lse(layer, query, key, value, mask, 0.3)
    whole = [x.repeat_interleave(heads // 2, 1) for x in (key, value)]
    want, total = TreeAttention.apply(query, *whole, layout, 0.3)  # type: ignore[misc]
    torch.testing.assert_close(out, want.transpose(1, 2))
    torch.testing.assert_close(lse, total)
    found = []
    for norm in (lse, None):
        request = MassReadout(torch.arange(9)[None], torch.eye(9)[None, :4], [0])
        request.observe(0, query, key, layout, 0.3, norm)
        found.append(request.masses[0])
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)
    _, half = module._flex_with_lse(layer, query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, 0.3)
    assert half.dtype == torch.float32
