"""Log-probs and entropies on CUDA: one compiled kernel forward, one backward, reading the logits as they are.

The plain route (`TokenLogprobs`) writes fp32 logits, adds the bans, divides by the temperature and takes a softmax, a
dozen passes over rows x vocabulary numbers. Here fp32 lives in registers only:

    s = (z + bias) / temperature,  l = log sum exp s,  log p = s[target] - l,  H = -sum exp(s - l) (s - l)
    dz = g (onehot(target) - exp(s - l)) / temperature.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.kernels import compiled, logit_gradient, logprobs

__all__ = ["FusedLogprobs"]


class FusedLogprobs(torch.autograd.Function):
    """log softmax((z + bias) / temperature)[target] and its entropy, which carries no gradient.

    Saves the logits in their own precision and one number per row.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        z: Float[Tensor, "scored vocab"],
        bias: Float[Tensor, "vocab"],
        target: Int[Tensor, "scored"],
        temperature: float,
        entropies: bool,
    ) -> tuple[Float[Tensor, "scored"], Float[Tensor, "_"]]:
        _any_rows(z, target)
        chosen, total, entropy = compiled(logprobs)(z, bias, target, temperature, entropies)
        ctx.save_for_backward(z, bias, target, total)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        z, bias, target, total = ctx.saved_tensors
        _any_rows(z, target, total, grad)
        return compiled(logit_gradient)(z, bias, target, total, grad, ctx.temperature), None, None, None, None


def _any_rows(*tensors: Tensor) -> None:
    """Blocks differ in their number of rows: one kernel for all."""
    import torch._dynamo

    for x in tensors:
        torch._dynamo.maybe_mark_dynamic(x, 0)
