"""What the learner minimises: the clipped surrogate per token or per sequence, plus a KL term to the reference policy.

A token tree stores each sampled token once, so N counts unique tokens. Leaves that share a token fold their credit:
`positive = sum w max(A, 0)`, `negative = sum w min(A, 0)`, `weight = sum w`. Both halves of the surrogate are linear in
the advantage, hence one evaluation per sign equals the unshared batch exactly, whatever signs the leaves have.

The weights `w` are normalised over the minibatch (`credit/weights.py`): every loss here is a plain sum over tokens, and
every reported share is a weighted sum, so that micro-batches and processes only add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.credit.config import ObjectiveConfig
from sightline.errors import UserError

__all__ = [
    "AttentionMap",
    "FoldedCredit",
    "Loss",
    "LossBatch",
    "LossOutputs",
    "Surrogate",
    "TreePaths",
    "clipped_surrogate",
    "k3",
    "policy_loss",
    "sequence_surrogate",
]


@runtime_checkable
class FoldedCredit(Protocol):
    """Credit of N unique sampled tokens, folded over the leaves that share each."""

    @property
    def positive(self) -> Float[Tensor, "tokens"]: ...
    @property
    def negative(self) -> Float[Tensor, "tokens"]: ...
    @property
    def weight(self) -> Float[Tensor, "tokens"]: ...


@runtime_checkable
class TreePaths(Protocol):
    """The same credit before folding: M (leaf, token) pairs. `leaf` counts Rollouts from 0, `token` indexes the N."""

    @property
    def leaf(self) -> Int[Tensor, "pairs"]: ...
    @property
    def token(self) -> Int[Tensor, "pairs"]: ...
    @property
    def advantage(self) -> Float[Tensor, "pairs"]: ...
    @property
    def weight(self) -> Float[Tensor, "pairs"]: ...


@runtime_checkable
class AttentionMap(Protocol):
    """Attention read in the update, with gradient: one row per query that a probe asked for, over visual tokens.

    Attributes:
        values: raw attention in each of the probe's (layer, head) pairs; the rest of a row lies on text.
        region: membership of each visual token in the gold regions, in [0, 1].
        is_visual: columns that are visual tokens of the Record's images; the others are padding.
        weight: 1 / number of Records of the minibatch that have regions, split over the rows of each; 0 without
            regions. Sums of `weight x loss of a row` over the micro-batches are means over Records.
    """

    @property
    def values(self) -> Float[Tensor, "heads queries visual"]: ...
    @property
    def region(self) -> Float[Tensor, "queries visual"]: ...
    @property
    def is_visual(self) -> Bool[Tensor, "queries visual"]: ...
    @property
    def weight(self) -> Float[Tensor, "queries"]: ...


@runtime_checkable
class LossBatch(Protocol):
    """What a loss may read of a Batch. Old and reference log-probs are None where the learner did not need them.

    `probes` are the measured probes by name, per token; NaN where a Rollout has none. `progress` is the share of the
    training steps that are done.
    """

    @property
    def credit(self) -> FoldedCredit: ...
    @property
    def paths(self) -> TreePaths: ...
    @property
    def old_logprobs(self) -> Float[Tensor, "tokens"] | None: ...
    @property
    def reference_logprobs(self) -> Float[Tensor, "tokens"] | None: ...
    @property
    def probes(self) -> Mapping[str, Float[Tensor, "tokens ..."]]: ...
    @property
    def progress(self) -> float: ...


@runtime_checkable
class LossOutputs(Protocol):
    """What a loss may read of a forward pass: log-probs with gradient, entropies if they were computed.

    `maps` holds the attention of each probe with `in_update`, by its name.
    """

    @property
    def logprobs(self) -> Float[Tensor, "tokens"]: ...
    @property
    def entropies(self) -> Float[Tensor, "tokens"] | None: ...
    @property
    def maps(self) -> Mapping[str, AttentionMap]: ...


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss to call `backward` on, and what to log of it: metric name -> detached scalar; micro-batches add up."""

    total: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """The surrogate loss and what clipping did, each share weighted by the loss weights of the tokens.

    Attributes:
        loss: the sum to minimise, with gradient.
        clip_fraction_low: tokens of negative advantage whose ratio fell below the range.
        clip_fraction_high: tokens of positive advantage whose ratio rose above the range.
        dual_clip_fraction: tokens of negative advantage whose ratio rose above the dual clip.
        ratio_mean: mean importance ratio.
        shift: k3 estimate of KL(old policy || policy), nats per token.
    """

    loss: Float[Tensor, ""]
    clip_fraction_low: Float[Tensor, ""]
    clip_fraction_high: Float[Tensor, ""]
    dual_clip_fraction: Float[Tensor, ""]
    ratio_mean: Float[Tensor, ""]
    shift: Float[Tensor, ""]


def clipped_surrogate(
    logprobs: Float[Tensor, "tokens"],
    old_logprobs: Float[Tensor, "tokens"] | None,
    positive: Float[Tensor, "tokens"],
    negative: Float[Tensor, "tokens"],
    *,
    weight: Float[Tensor, "tokens"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = 3.0,
    log_ratio_clamp: float = 20.0,
) -> Surrogate:
    """`- sum positive min(r, 1 + high) - sum negative min(max(r, 1 - low), c)`, with `r = exp(logp - logp_old)`.

    For one leaf this is `-min(r A, clip(r, 1 - low, 1 + high) A)`, bounded by `-c A` where A < 0 (PPO, arXiv
    1707.06347; clip-higher, arXiv 2503.14476; dual clip, arXiv 1912.09729).

    Args:
        logprobs: of N unique sampled tokens, with gradient.
        old_logprobs: the same under the policy that sampled; None for one on-policy step (ratio 1).
        positive: `sum w max(A, 0)` per token.
        negative: `sum w min(A, 0)` per token.
        weight: `sum w` per token, for the reported shares; `None` weighs by the size of the credit.
        clip_low: epsilon low.
        clip_high: epsilon high.
        dual_clip: c; None switches it off.
        log_ratio_clamp: bound on |log ratio|.
    """
    log_ratio = _log_ratio(logprobs, old_logprobs, log_ratio_clamp)
    ratio = log_ratio.exp()
    kept_up = ratio.clamp(max=1 + clip_high)
    kept_down = ratio.clamp(min=1 - clip_low, max=dual_clip)
    loss = -(positive * kept_up).sum() - (negative * kept_down).sum()
    if weight is None:
        mass = (positive - negative).detach()
        weight = mass / mass.sum().clamp(min=torch.finfo(mass.dtype).tiny)
    return _report(loss, log_ratio.detach(), positive, negative, weight, 1 - clip_low, 1 + clip_high, dual_clip)


def sequence_surrogate(
    logprobs: Float[Tensor, "tokens"],
    old_logprobs: Float[Tensor, "tokens"] | None,
    paths: TreePaths,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
    log_ratio_clamp: float = 20.0,
) -> Surrogate:
    """GSPO: the clipped surrogate with one ratio per Rollout, `s = exp(mean over its tokens of (logp - logp_old))`.

    The gradient of `s` reaches each token as `s A grad logp` times its weight (GSPO-token, arXiv 2507.18071, equation
    13), which is the gradient of GSPO itself where advantage and weight are constant over a Rollout. The weights come
    with `paths`; GSPO's are those of `normalisation: sequence`, which `ratio: sequence` therefore sets by default.

    Args:
        logprobs: of N unique sampled tokens, with gradient.
        old_logprobs: the same under the policy that sampled; None for one on-policy step.
        paths: credit of the M (leaf, token) pairs; a token shared by several leaves occurs once for each.
        clip_low: epsilon low, smaller than that of a token ratio.
        clip_high: epsilon high.
        dual_clip: c; None switches it off.
        log_ratio_clamp: bound on |log s|.
    """
    leaf, token, weight = paths.leaf, paths.token, paths.weight
    own = logprobs[token]
    old = own.detach() if old_logprobs is None else old_logprobs[token]
    leaves = int(leaf.max()) + 1 if leaf.numel() else 0
    sums = own.new_zeros(leaves).index_add(0, leaf, (own - old).detach())
    counts = own.new_zeros(leaves).index_add(0, leaf, torch.ones_like(own))
    log_sequence = (sums / counts.clamp(min=1)).clamp(-log_ratio_clamp, log_ratio_clamp)[leaf]
    ratio = (log_sequence + own - own.detach()).exp()
    positive, negative = weight * paths.advantage.clamp(min=0), weight * paths.advantage.clamp(max=0)
    kept_up = ratio.clamp(max=1 + clip_high)
    kept_down = ratio.clamp(min=1 - clip_low, max=dual_clip)
    loss = -(positive * kept_up).sum() - (negative * kept_down).sum()
    return _report(loss, log_sequence, positive, negative, weight, 1 - clip_low, 1 + clip_high, dual_clip)


def k3(
    logprobs: Float[Tensor, "tokens"],
    reference_logprobs: Float[Tensor, "tokens"],
    *,
    log_ratio_clamp: float = 20.0,
    value_clamp: float = 10.0,
) -> Float[Tensor, "tokens"]:
    """`exp(d) - d - 1` with `d = logp_ref - logp`: a never negative estimate of KL(policy || reference) per token.

    Source: Schulman, "Approximating KL divergence" (2020). Both `d` and the result are clamped.
    """
    difference = (reference_logprobs - logprobs).clamp(-log_ratio_clamp, log_ratio_clamp)
    return (difference.exp() - difference - 1).clamp(-value_clamp, value_clamp)


def policy_loss(batch: LossBatch, outputs: LossOutputs, config: ObjectiveConfig) -> Loss:
    """The default loss of every method: surrogate (token or sequence ratio) + `kl` x mean k3 to the reference.

    Raises:
        UserError: the KL weight is above zero but no reference log-probs were computed.
    """
    limits = config.model_dump(include={"clip_low", "clip_high", "dual_clip", "log_ratio_clamp"})
    credit, logprobs, old = batch.credit, outputs.logprobs, batch.old_logprobs
    if config.ratio == "sequence":
        surrogate = sequence_surrogate(logprobs, old, batch.paths, **limits)
    else:
        surrogate = clipped_surrogate(logprobs, old, credit.positive, credit.negative, weight=credit.weight, **limits)
    total = surrogate.loss
    terms = {
        "loss/policy": surrogate.loss.detach(),
        "policy/clip_fraction": surrogate.clip_fraction_low + surrogate.clip_fraction_high,
        "policy/clip_low": surrogate.clip_fraction_low,
        "policy/clip_high": surrogate.clip_fraction_high,
        "policy/dual_clip": surrogate.dual_clip_fraction,
        "policy/ratio": surrogate.ratio_mean,
        "policy/shift": surrogate.shift,
    }
    if batch.reference_logprobs is not None:
        clamps = {"log_ratio_clamp": config.log_ratio_clamp, "value_clamp": config.kl_clamp}
        divergence = (credit.weight * k3(logprobs, batch.reference_logprobs, **clamps)).sum()
        terms |= {"policy/kl": divergence.detach(), "loss/kl": config.kl * divergence.detach()}
        if config.kl:
            total = total + config.kl * divergence
    elif config.kl:
        raise UserError("the KL term needs reference log-probs", where="method.objective.kl", hint="set it to 0")
    if outputs.entropies is not None:
        terms["policy/entropy"] = (credit.weight * outputs.entropies).sum().detach()
    return Loss(total, {"loss/total": total.detach(), **terms})


def _log_ratio(
    logprobs: Float[Tensor, "tokens"], old: Float[Tensor, "tokens"] | None, clamp: float
) -> Float[Tensor, "tokens"]:
    return (logprobs - (logprobs.detach() if old is None else old)).clamp(-clamp, clamp)


def _report(
    loss: Tensor,
    log_ratio: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    lowest: float,
    highest: float,
    dual_clip: float | None,
) -> Surrogate:
    """Shares of the loss weight; a token shared by leaves of both signs counts with its whole weight."""
    ratio = log_ratio.exp()
    up, down = positive > 0, negative < 0
    beyond = ratio > (float("inf") if dual_clip is None else dual_clip)

    def share(where: Tensor) -> Tensor:
        return (weight * where).sum().detach()

    return Surrogate(
        loss=loss,
        clip_fraction_low=share(down & (ratio < lowest)),
        clip_fraction_high=share(up & (ratio > highest)),
        dual_clip_fraction=share(down & beyond),
        ratio_mean=share(ratio),
        shift=share(ratio - 1 - log_ratio),
    )
