"""How far two next-token distributions are apart, from their logits: p (first) against q (second), in nats."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sightline.methods.probes import Divergence

__all__ = ["Against", "divergence"]


class Against:
    """The states of an earlier pass, one for every scored token of the pass that compares itself with them.

    A plain class, so that sharding wrappers hand it on as it is.

    Args:
        states: hidden states of p, in the order of the later batch's scored tokens.
        kind: which measure.
        top: k of `topk_kl`.
    """

    def __init__(self, states: Float[Tensor, "scored width"], kind: Divergence, top: int = 64) -> None:
        self.states, self.top = states, top
        self.kind: Divergence = kind

    @torch.no_grad()
    def between(self, p: Float[Tensor, "tokens vocab"], q: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens"]:
        """The measure for a few tokens, from the logits of both passes."""
        return divergence(p, q, self.kind, self.top)


def divergence(
    p: Float[Tensor, "tokens vocab"], q: Float[Tensor, "tokens vocab"], kind: Divergence, top: int = 64
) -> Float[Tensor, "tokens"]:
    """`full_kl`: sum p (log p - log q). `topk_kl`: the same over the k likeliest tokens under p and one bin for all
    others, never above `full_kl`. `jsd`: the mean KL of both to their mixture, at most log 2. `tv`: sum |p - q| / 2.

    Args:
        p, q: logits, not normalised.
        kind: which measure.
        top: k.

    Example:
        >>> p, q = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> [round(float(divergence(p, q, kind)), 3) for kind in ("full_kl", "jsd", "tv")]
        [0.434, 0.09, 0.381]
    """
    log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    if kind == "tv":
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
    if kind == "jsd":
        mixture = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_kl(log_p, mixture) + _kl(log_q, mixture)) / 2
    if kind == "topk_kl" and top < p.shape[-1]:
        log_p, chosen = log_p.topk(top, dim=-1)
        log_q = log_q.gather(-1, chosen)
        log_p, log_q = (torch.cat([x, _rest(x)], -1) for x in (log_p, log_q))
    return _kl(log_p, log_q)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _rest(log_p: Tensor) -> Tensor:
    """Log-probability of all tokens that are not named; the smallest number where rounding leaves nothing."""
    rest = -torch.expm1(torch.logsumexp(log_p, -1, keepdim=True))
    return rest.clamp(min=torch.finfo(log_p.dtype).tiny).log()
