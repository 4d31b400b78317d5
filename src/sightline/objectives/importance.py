"""Correction for a sampler that is not quite the learner: another engine, other kernels, another number format.

A server draws from `pi_sampler`, which differs from the learner's `pi_old` under the same weights. The policy gradient
is then biased; multiplying each token's surrogate by `pi_old / pi_sampler` removes the bias, and truncating that weight
bounds its variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Mismatch", "mismatch", "truncated_importance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """How far sampler and learner are apart, each a weighted sum over tokens.

    Attributes:
        weight: of the truncated weights.
        capped: of tokens whose weight was truncated.
        shift: k3 estimate of KL(sampler || learner), nats.
    """

    weight: Float[Tensor, ""]
    capped: Float[Tensor, ""]
    shift: Float[Tensor, ""]


def truncated_importance(
    old_logprobs: Float[Tensor, "tokens"], sampler_logprobs: Float[Tensor, "tokens"], cap: float
) -> Float[Tensor, "tokens"]:
    """`w = min(pi_old / pi_sampler, C)` per token, without gradient.

    Source: truncated importance sampling (Ionides, "Truncated Importance Sampling", 2008, equation 3), used per token
    between rollout engine and learner by Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training" (2025).

    Args:
        old_logprobs: under the learner, with the weights that sampled.
        sampler_logprobs: recorded by the sampler.
        cap: C, above 0.

    Example:
        >>> old, sampler = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.5, 0.05]).log()
        >>> [round(w, 4) for w in truncated_importance(old, sampler, 2.0).tolist()]
        [1.0, 2.0]
    """
    # bounded before the exponential, which would overflow for ids that the sampler hardly ever draws
    return (old_logprobs - sampler_logprobs).detach().clamp(max=_log(cap)).exp()


def mismatch(
    old_logprobs: Float[Tensor, "tokens"],
    sampler_logprobs: Float[Tensor, "tokens"],
    cap: float,
    weight: Float[Tensor, "tokens"],
) -> Mismatch:
    """What to log of a correction; `weight` are the loss weights of the tokens."""
    ratio = (old_logprobs - sampler_logprobs).detach()
    kept = truncated_importance(old_logprobs, sampler_logprobs, cap)
    bounded = ratio.clamp(-20.0, 20.0)
    return Mismatch(
        weight=(weight * kept).sum(),
        capped=(weight * (ratio > _log(cap))).sum(),
        shift=(weight * (bounded.exp() - 1 - bounded)).sum(),
    )


def _log(cap: float) -> float:
    return float(torch.tensor(cap, dtype=torch.float64).log())
