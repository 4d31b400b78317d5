"""PAPO: Wang et al., Perception-Aware Policy Optimization for Multimodal Reasoning, arXiv 2507.06448.

Objective. GRPO, and in the loss a term that wants each sampled token to depend on the image. With l_t its log-prob and
b_t that under an image with blackened patches, measured once by the policy that sampled,

    k_t = exp(b_t - l_t) - (b_t - l_t) - 1,
    L = L_policy + beta KL_ref - gamma mean(k) + eta_changed H_changed + eta H,

H = -mean log-prob of the sampled tokens. The gradient of -k_t with respect to l_t is p'/p - 1: whatever the reward,
sampled tokens that the image supports become likelier. b_t is a constant, so H_changed has no gradient. See
docs/methods/papo.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from sightline.credit.config import ObjectiveConfig, Settings
from sightline.interventions import Intervention
from sightline.methods.base import Context, Method, MethodConfig, Probe, Stream, StreamConfig, score_table
from sightline.methods.probes import Contrast
from sightline.rewards.answer import accuracies
from sightline.rewards.format import think_answer_format
from sightline.types import Group, Record, Scores

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.objectives import Loss, LossBatch, LossOutputs

__all__ = ["PAPO", "PAPOConfig"]


class Streams(Settings):
    """The only stream of PAPO."""

    textual: StreamConfig = Field(default=StreamConfig(n=5), description="reasoning in words")


class Weights(Settings):
    """Weight of each reward term."""

    format: float = Field(default=1.0, ge=0, description="think block, then answer block")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right")


class Perception(Settings):
    """The term in the loss and the image it compares with."""

    gamma: float = Field(default=0.02, ge=0, description="weight of the mean of k_t (gamma)")
    entropy: float = Field(default=0.05, ge=0, description="weight of H (eta_2)")
    entropy_changed: float = Field(default=0.05, ge=0, description="weight of H_changed (eta_1); has no gradient")
    probability: float = Field(default=0.6, ge=0, le=1, description="of each patch to be blackened")
    patch: int = Field(default=14, ge=1, description="side of a patch, px of the resized image")
    difference_clamp: float = Field(default=20.0, gt=0, description="bound on |b_t - l_t|, nats")
    value_clamp: float = Field(default=10.0, gt=0, description="bound on k_t, nats")
    top_share: float | None = Field(
        default=None, gt=0, le=1, description="count only this share of each reply's tokens, those of largest k_t"
    )
    anneals: bool = Field(default=False, description="gamma falls linearly to 0 over training")


class PAPOConfig(MethodConfig):
    """PAPO. Presets: `grpo` (with a reference KL) and `dapo` (without), values of the 7B runs."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "dapo": {
                "perception": {"gamma": 0.01, "entropy": 0.03, "entropy_changed": 0.03},
                "objective": {"kl": 0.0},
            }
        }
    )

    name: str = "papo"
    preset: Literal["grpo", "dapo"] = Field(default="grpo", description="what the other keys default to")
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    perception: Perception = Field(default=Perception(), description="the term in the loss")
    objective: ObjectiveConfig = Field(
        default=ObjectiveConfig(kl=0.01), description="what the learner minimises besides"
    )


class PAPO(Method[PAPOConfig]):
    """GRPO with a perception term in the loss."""

    Config = PAPOConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return (self.config.streams.textual.stream("textual"),)

    def probes(self) -> tuple[Probe, ...]:
        rules = self.config.perception
        blackened = Intervention("patch_blacken", probability=rules.probability, patch=rules.patch)
        return (Contrast(intervention=blackened),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        return score_table(
            self.config.weights.model_dump(),
            format=[think_answer_format(reading) for reading in group.readings],
            accuracy=accuracies(group.readings, group.record, context.judge),
        )

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        from sightline.objectives import Loss, k3, policy_loss

        rules, base = self.config.perception, policy_loss(batch, outputs, self.config.objective)
        changed, logprobs = batch.probes["contrast"], outputs.logprobs
        is_known = changed.isfinite()
        changed = changed.where(is_known, logprobs.detach())
        weight = batch.credit.weight * is_known
        k = k3(logprobs, changed, log_ratio_clamp=rules.difference_clamp, value_clamp=rules.value_clamp)
        counted = weight if rules.top_share is None else weight * _largest_by_reply(k.detach(), batch, rules.top_share)
        gamma = rules.gamma * (1 - batch.progress if rules.anneals else 1.0)
        perception = (counted * k).sum()
        entropy, entropy_changed = -(batch.credit.weight * logprobs).sum(), -(weight * changed).sum()
        more = -gamma * perception + rules.entropy * entropy + rules.entropy_changed * entropy_changed
        total = base.total + more
        terms = {
            "loss/total": total.detach(),
            "loss/perception": -gamma * perception.detach(),
            "loss/entropy": (rules.entropy * entropy + rules.entropy_changed * entropy_changed).detach(),
            "policy/dependence": perception.detach(),
        }
        return Loss(total, {**base.terms, **terms})


def _largest_by_reply(k: Tensor, batch: LossBatch, share: float) -> Tensor:
    """1 on the `ceil(share n)` tokens of the largest k in any reply they belong to, else 0."""
    import torch

    from sightline.credit.tokens import most_affected

    leaf, token = batch.paths.leaf.cpu().numpy(), batch.paths.token.cpu().numpy()
    values, kept = k.cpu().numpy(), torch.zeros(len(k))
    for number in range(int(leaf.max()) + 1 if len(leaf) else 0):
        own = token[leaf == number]
        kept[own[most_affected(values[own], own >= 0, share)]] = 1.0
    return kept.to(k)
