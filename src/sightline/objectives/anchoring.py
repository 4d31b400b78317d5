"""Losses on attention: the rows of a `<Focus>` token against the region they should look at.

`A[h, j]` is the attention of a row to visual token j in (layer, head) h, a softmax over *all* keys it may see; V are
the visual tokens. Supervision of attention in this form: GUI-AIMA (arXiv 2511.00810); the stage that uses it is our
reading of Faithful-MR1 (arXiv 2605.22072).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.credit.config import AnchorLoss, AnchorNormalise

__all__ = ["anchor_losses", "cover_target", "visual_losses"]

_TINY = 1e-12


def anchor_losses(
    maps: Float[Tensor, "heads rows visual"],
    target: Float[Tensor, "rows visual"],
    counted: Bool[Tensor, "rows visual"],
    *,
    loss: AnchorLoss = "kl",
    normalise: AnchorNormalise = "mean_then_norm",
    region: Bool[Tensor, "rows visual"] | None = None,
) -> Float[Tensor, "rows"]:
    """Per row, KL(T, p) = sum_j T_j (log T_j - log p_j), or `mass_nll`: -log sum of p over the region.

    `mean_then_norm`: p = mean_h A / sum over V: heads that hardly look at the image hardly count and stay free.
    `norm_then_mean`: p_h = A_h / sum over V, and the mean over h of the losses: every chosen head has to localise.
    `raw`: p = mean_h A, the mass outside V in a bucket of its own, where T has nothing.

    Args:
        maps: A, one slice per chosen (layer, head).
        target: T, a distribution over the counted columns of each row.
        counted: columns that belong to V; the others (padding, other records, sinks) are in neither p nor T.
        loss: which one.
        normalise: how p comes from A.
        region: columns of the gold regions, for `mass_nll`.
    """
    mass = maps * counted
    if normalise != "norm_then_mean":
        mass = mass.mean(0, keepdim=True)
    p = mass if normalise == "raw" else mass / mass.sum(-1, keepdim=True).clamp(min=_TINY)
    if loss == "mass_nll":
        if region is None:
            raise ValueError("mass_nll needs the columns of the region")
        return -(p * (region & counted)).sum(-1).clamp(min=_TINY).log().mean(0)
    wanted = _renormalised(target * counted)
    divergence = torch.xlogy(wanted, wanted) - wanted * p.clamp(min=_TINY).log()
    return (divergence * counted).sum(-1).mean(0)


def visual_losses(
    maps: Float[Tensor, "heads rows visual"], counted: Bool[Tensor, "rows visual"]
) -> Float[Tensor, "rows"]:
    """Per row, -log of the mean attention that lies on the image at all, `-log sum over V of mean_h A`."""
    return -(maps.mean(0) * counted).sum(-1).clamp(min=_TINY).log()


def cover_target(
    cover: Float[Tensor, "rows visual"], counted: Bool[Tensor, "rows visual"], smooth: float = 0.05
) -> Float[Tensor, "rows visual"]:
    """`T_j = (1 - e) u_j / sum(u) + e / N` of each row, 0 outside V (the even distribution where u is all zero)."""
    even = _renormalised(counted.to(cover.dtype))
    u = cover * counted
    total = u.sum(-1, keepdim=True)
    return torch.where(total > 0, (1 - smooth) * u / total.clamp(min=_TINY) + smooth * even, even)


def _renormalised(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True).clamp(min=_TINY)
