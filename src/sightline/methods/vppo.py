"""VPPO: Huang et al., Spotlight on Token Perception for Multimodal RL, arXiv 2510.09285.

Objective. GRPO whose credit goes to what depends on the image. With p' the probability under an image with blackened
patches and c_t = k3(p, p') of each sampled token, both under the policy that sampled,

    token filter:  only the ceil(0.4 n) tokens of the largest c_t of a reply carry its advantage;
    rollouts:      S_i = mean_t c_t, u_i = S_i scaled to 0..1 over the rollouts of the step,
                   A_i <- A_i (beta_min + (beta_max - beta_min) u_i), with beta_max such that the mean factor is 1.

The loss still divides by all tokens. An entropy penalty is added. See docs/methods/vppo.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from sightline.credit.config import ObjectiveConfig, Settings
from sightline.credit.group import credit_for
from sightline.credit.tokens import Estimator, causal_effect, most_affected, rollout_scales
from sightline.interventions import Intervention
from sightline.methods.base import Context, Method, MethodConfig, Probe, Stream, StreamConfig, score_table
from sightline.methods.probes import Contrast
from sightline.rewards.answer import accuracies
from sightline.rewards.format import think_answer_format
from sightline.types import Credit, Group, Measurement, Record, Score, Scores

if TYPE_CHECKING:
    from sightline.objectives import Loss, LossBatch, LossOutputs

__all__ = ["VPPO", "VPPOConfig"]


class Streams(Settings):
    """The only stream of VPPO."""

    textual: StreamConfig = Field(default=StreamConfig(n=8), description="reasoning in words")


class Weights(Settings):
    """Weight of each reward term."""

    format: float = Field(default=1.0, ge=0, description="think block, then answer block")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right")


class Dependence(Settings):
    """How dependence on the image is measured and what follows from it."""

    probability: float = Field(default=0.5, ge=0, le=1, description="of each patch to be blackened")
    patch: int = Field(default=14, ge=1, description="side of a patch, px of the resized image")
    estimator: Estimator = Field(default="k3", description="effect of the image on a token (c_t)")
    value_clamp: float = Field(default=10.0, gt=0, description="bound on c_t, nats")
    token_share: float = Field(default=0.4, gt=0, le=1, description="share of a reply's tokens that carry advantage")
    lowest_scale: float = Field(default=0.9, ge=0, le=1, description="least factor of an advantage (beta_min)")
    entropy: float = Field(default=0.06, ge=0, description="weight of H = -mean log-prob in the loss")


class VPPOConfig(MethodConfig):
    """VPPO with the values of its released runs."""

    name: str = "vppo"
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    dependence: Dependence = Field(default=Dependence(), description="token filter and factors of whole rollouts")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="what the learner minimises besides")

    @property
    def acts_without_advantage(self) -> bool:
        return self.dependence.entropy > 0


class VPPO(Method[VPPOConfig]):
    """Advantages on the tokens, and by the rollouts, that depend on the image."""

    Config = VPPOConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return (self.config.streams.textual.stream("textual"),)

    def probes(self) -> tuple[Probe, ...]:
        rules = self.config.dependence
        blackened = Intervention("patch_blacken", probability=rules.probability, patch=rules.patch)
        return (Contrast(intervention=blackened),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        measured = zip(group.rollouts, group.measurements or (None,) * len(group), strict=True)
        effects = [None if seen is None else self._effect(seen)[rollout.sampled] for rollout, seen in measured]
        return score_table(
            {**self.config.weights.model_dump(), "dependence": 0.0},
            format=[think_answer_format(reading) for reading in group.readings],
            accuracy=accuracies(group.readings, group.record, context.judge),
            dependence=[_mean_effect(effect) for effect in effects],
        )

    def credit(self, group: Group) -> tuple[Credit, ...]:
        credits = credit_for(group, **self.config.credit.model_dump())
        if not group.measurements:  # replies that were logged and are scored again
            return credits
        scales = self._scales(group)
        found = []
        for rollout, seen, credit, scale in zip(group.rollouts, group.measurements, credits, scales, strict=True):
            kept = most_affected(self._effect(seen), rollout.sampled, self.config.dependence.token_share)
            parts = {**credit.parts, "scale": float(scale), "kept": float(kept.sum())}
            found.append(replace(credit, advantage=credit.advantage * kept * scale, parts=parts))
        return tuple(found)

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        from sightline.objectives import Loss, policy_loss

        base, weight = policy_loss(batch, outputs, self.config.objective), self.config.dependence.entropy
        penalty = -weight * (batch.credit.weight * outputs.logprobs).sum()
        total = base.total + penalty
        return Loss(total, {**base.terms, "loss/total": total.detach(), "loss/entropy": penalty.detach()})

    def _effect(self, measured: Measurement) -> np.ndarray:
        rules = self.config.dependence
        assert measured.logprobs is not None
        changed = measured.probes["contrast"]
        return causal_effect(measured.logprobs, changed, rules.estimator, value_clamp=rules.value_clamp)

    def _scales(self, group: Group) -> np.ndarray:
        """Factor of each Rollout of the group, over all unmasked Rollouts of the step."""
        members = [s for peer in (group.peers or (group,)) for s in peer.scores if not s.is_masked]
        place = {id(s): i for i, s in enumerate(members)}
        factors = rollout_scales([s.terms["dependence"].value for s in members], self.config.dependence.lowest_scale)
        return np.array([factors[place[id(s)]] if id(s) in place else 1.0 for s in group.scores])


def _mean_effect(effect: np.ndarray | None) -> Score:
    if effect is None or not len(effect):
        return Score(0.0, "not measured", masked=True)
    return Score(float(effect.mean()), f"{effect.mean():.3f} nats per token between the image and a blackened one")
