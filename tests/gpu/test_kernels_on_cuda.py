"""The kernels of the CUDA route against plain code: FlexAttention, variable-length vision, fused log-probs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import FAMILIES, picture
from sightline.kernels import attended, compiled
from sightline.policy.attention import dense_mask
from sightline.policy.flex import block_mask
from sightline.policy.forward import TokenLogprobs
from sightline.policy.fused import FusedLogprobs
from sightline.policy.load import load_policy
from sightline.policy.towers import NAME

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def flex(*inputs: object) -> tuple[torch.Tensor, torch.Tensor]:
    return compiled(attended, dynamic=False)(*inputs)


def tree_end(prompt: int, replies: int, length: int) -> torch.Tensor:
    end = torch.full((prompt + replies * length,), prompt + replies * length)
    for i in range(replies):
        end[prompt + i * length : prompt + (i + 1) * length] = prompt + (i + 1) * length
    return end[None].cuda()


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(16, 2, 128), (28, 4, 128), (4, 2, 12), (6, 3, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_equals_dense_attention(heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    end = tree_end(300, 3, 150)
    shape = (1, end.shape[1])
    inputs = [torch.randn(*shape, n, width, device="cuda").transpose(1, 2) for n in (heads, kv_heads, kv_heads)]
    grad = torch.randn(1, heads, end.shape[1], width, device="cuda")
    plain = [x.double().requires_grad_() for x in inputs]
    want = torch.nn.functional.scaled_dot_product_attention(
        *plain, attn_mask=dense_mask(end, torch.float64), scale=0.2, enable_gqa=True
    )
    want.backward(grad.double())
    ours = [x.to(dtype).requires_grad_() for x in inputs]
    found, lse = flex(*ours, block_mask(end), 0.2)
    found.backward(grad.to(dtype))
    scores = plain[0] @ plain[1].repeat_interleave(heads // kv_heads, 1).mT * 0.2 + dense_mask(end, torch.float64)
    limit = 1e-3 if dtype == torch.float32 else 2e-2
    pairs = [(found, want), (lse, scores.logsumexp(-1)), *((a.grad, b.grad) for a, b in zip(ours, plain, strict=True))]
    for a, b in pairs:
        assert float((a.double() - b).norm() / b.norm()) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_log_probs_equal_the_plain_ones(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for rows in (1, 33, 700):
        z = torch.randn(rows, 4001, device="cuda").mul_(3).to(dtype).requires_grad_()
        bias = torch.zeros(4001, device="cuda")
        bias[7] = -1e9
        target, grad = torch.randint(8, 4001, (rows,), device="cuda"), torch.randn(rows, device="cuda")
        found, entropy = FusedLogprobs.apply(z, bias, target, 0.7, True)
        found.backward(grad)
        plain = z.detach().requires_grad_()
        want, _ = TokenLogprobs.apply((plain.float() + bias) / 0.7, target, True)
        want.backward(grad)
        torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)
        # the plain entropy, a difference of two sums, is itself up to 3e-5 off
        exact = torch.distributions.Categorical(logits=(plain.double() + bias) / 0.7).entropy().float()
        torch.testing.assert_close(entropy, exact, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(z.grad, plain.grad, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vision_equals_the_cpu(checkpoints: dict[str, Path], family: str, dtype: str) -> None:
    results = []
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        policy = load_policy(checkpoints[family], device=device, dtype=kind)
        images = [(picture(96, 64), 0), (picture(64, 32, 1), 0), (picture(80, 112, 2), 0)]
        visual = policy.pixels.batch(images)
        out = policy.adapter.vision(visual.pixels.to(device), visual.grids)
        out.features.float().square().sum().backward()
        gradient = [
            p.grad.flatten().float().cpu() for p in policy.model.model.visual.parameters() if p.grad is not None
        ]
        results.append((out.features.detach().float().cpu(), torch.cat(gradient)))
    assert (policy.model.model.visual.config._attn_implementation == NAME) == (dtype == "bfloat16")
    for a, b in zip(*results, strict=True):
        assert float((a - b).norm() / a.norm()) < (1e-3 if dtype == "float32" else 5e-2)


def test_bucket_padding_changes_nothing() -> None:
    """A row padded with tokens that see only themselves gives the same output for the others."""
    torch.manual_seed(0)
    end = tree_end(300, 3, 150)
    tokens = end.shape[1]
    padded = torch.cat([end, torch.arange(tokens + 1, 1025, device="cuda")[None]], 1)
    inputs = [torch.randn(1, n, 1024, 64, device="cuda", dtype=torch.bfloat16) for n in (4, 2, 2)]
    short, _ = flex(*(x[:, :, :tokens] for x in inputs), block_mask(end), 0.1)
    whole, _ = flex(*inputs, block_mask(padded), 0.1)
    torch.testing.assert_close(whole[:, :, :tokens], short, atol=1e-2, rtol=1e-2)
    assert bool(np.isfinite(whole.float().cpu().numpy()).all())
