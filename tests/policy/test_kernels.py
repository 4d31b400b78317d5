"""Log-probs and entropies as the compiled kernel computes them, against double precision."""

from __future__ import annotations

import pytest
import torch

from sightline.kernels import logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_and_entropies_are_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z, bias = torch.randn(64, 4001).mul_(3).to(dtype), torch.zeros(4001)
    bias[7] = -1e9
    target = torch.randint(8, 4001, (64,))
    exact = torch.distributions.Categorical(logits=(z.double() + bias) / 0.7)
    chosen, total, entropy = logprobs(z, bias, target, 0.7, True)
    torch.testing.assert_close(chosen, exact.log_prob(target).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, exact.entropy().float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(total, torch.logsumexp((z.double() + bias) / 0.7, -1).float(), atol=1e-5, rtol=0)
