"""Faithful-MR1, in our reading: Tian et al., Faithful Multimodal Reasoning via Anchoring and Reinforcing Visual
Attention, arXiv 2605.22072. Only the idea is public; every value below it is a choice, and a key of this config.

*Anchoring* (supervised). Each reply begins with the token `<Focus>`, whose attention row, mean over heads of the last
third of the decoder, becomes the region's distribution over the image:  L = KL(T, p) + L_language on a right reply of
the start policy, so that behaviour stays while attention moves.

*Reinforcing*. With c_t the causal effect of a counterfactual image on token t, and a_t its attention to the image,

    r = mean of a_t over the 40 % of the tokens with the largest c_t / mean of a_t,    s = r^2 / (1 + r^2),
    R = R_accuracy + 0.1 R_format + 0.3 R_accuracy s,

where the attention part is standardised among the correct rollouts by itself (`decoupled`). See
docs/methods/faithful_mr1.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from sightline.credit.config import AnchorConfig, FocusConfig, HeadList, LayerChoice, ObjectiveConfig, Settings
from sightline.credit.group import credit_for
from sightline.credit.tokens import causal_effect, content_tokens, decoupled_advantages, section_tokens
from sightline.geometry.grid import membership
from sightline.interventions import Intervention, Kind
from sightline.methods.base import Context, Method, MethodConfig, Probe, Stage, Stream, StreamConfig, score_table
from sightline.methods.probes import Contrast, FocusAttention, RegionAttention
from sightline.rewards.answer import accuracies
from sightline.rewards.attention import Concentration, concentration, focus_overlap, ratio_score, region_ratio
from sightline.rewards.format import think_answer_format
from sightline.types import Credit, Group, Measurement, Reading, Record, Rollout, Score, Scores

if TYPE_CHECKING:
    from sightline.objectives import Loss, LossBatch, LossOutputs

__all__ = ["FaithfulMR1", "FaithfulMR1Config"]


class Streams(Settings):
    """The only stream."""

    textual: StreamConfig = Field(default=StreamConfig(n=8), description="reasoning in words behind the token")


class Counterfactual(Settings):
    """The image that tokens are compared under; one draw per record and step, shared by its rollouts."""

    kind: Kind = Field(default="patch_blacken", description="what is done to it")
    prob: float = Field(default=0.6, ge=0, le=1, description="of each patch to be blackened")
    patch: int = Field(default=14, ge=1, description="side of a patch, px of the resized image")
    draws: int = Field(default=1, ge=1, le=16, description="independent draws whose effects are averaged (K)")


class Causal(Settings):
    """How much the image matters to a token."""

    estimator: Literal["k3", "logratio_pos", "full_kl", "topk_kl", "jsd", "tv"] = Field(
        default="k3", description="effect c_t; k3 and logratio_pos need the sampled token's log-probs only"
    )
    clip: float = Field(default=10.0, gt=0, description="bound on c_t, nats")
    mask_answer: bool = Field(default=False, description="leave the answer block out")


class Attend(Settings):
    """The score s of a reply's attention."""

    axis: Literal["token", "region", "both"] = Field(
        default="token", description="which tokens, which part of the image, or the product of both scores"
    )
    attend_to: Literal["image", "boxes", "focus_map", "boxes_given_image"] = Field(
        default="image", description="what a_t is the attention to"
    )
    weights: Literal["topk", "soft"] = Field(default="topk", description="equal on the largest c_t, or in proportion")
    rho: float = Field(default=0.4, gt=0, le=1, description="share of the tokens with the largest c_t")
    form: Concentration = Field(default="ratio_tanh", description="from a_t and c_t to s")
    row_align: Literal["producer", "consumer"] = Field(default="producer", description="row that predicts the token")
    layers: LayerChoice = Field(default="last_third", description="decoder layers of a_t")
    heads: HeadList | None = Field(default=None, description="(layer, head) pairs in place of layers")
    heads_file: str | None = Field(default=None, description="list of heads by `sightline attention calibrate`")
    n_min: int = Field(default=4, ge=1, description="replies with fewer tokens get what constant attention would")
    tau: float = Field(default=0.0, description="least effect of masking the region beyond a random one, nats")


class Reward(Settings):
    """From terms to advantages."""

    lam_fmt: float = Field(default=0.1, ge=0, description="weight of R_format (lambda_f)")
    lam_attn: float = Field(default=0.3, ge=0, description="weight of the attention part (lambda_a)")
    gate: Literal["correct_only", "none", "multiplicative", "group_window"] = Field(
        default="correct_only", description="whose s counts; group_window: correct ones of groups neither easy nor hard"
    )
    window_low: float = Field(default=0.01, ge=0, le=1, description="least mean accuracy of gate: group_window")
    window_high: float = Field(default=0.99, ge=0, le=1, description="largest mean accuracy of gate: group_window")
    advantage_mix: Literal["decoupled", "summed"] = Field(
        default="decoupled", description="standardise s among the correct, or R as a whole"
    )
    anchor_coef_rl: float = Field(default=0.0, ge=0, description="weight of the anchor loss during reinforcement")


class FaithfulMR1Config(MethodConfig):
    """Faithful-MR1-style. Nothing here reproduces the paper, whose values are not published."""

    name: str = "faithful_mr1"
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    focus: FocusConfig = Field(default=FocusConfig(), description="the token whose attention is supervised")
    anchor: AnchorConfig = Field(default=AnchorConfig(steps=200), description="the first stage, Anchoring")
    cf: Counterfactual = Field(default=Counterfactual(), description="the counterfactual image")
    causal: Causal = Field(default=Causal(), description="effect of the image on a token")
    score: Attend = Field(default=Attend(), description="attention score")
    reward: Reward = Field(default=Reward(), description="weights and gates")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="what reinforcement minimises")

    @property
    def acts_without_advantage(self) -> bool:
        return self.reward.anchor_coef_rl > 0

    @model_validator(mode="after")
    def _focus_rows_can_be_read(self) -> FaithfulMR1Config:
        reads = self.score.attend_to == "focus_map" or self.reward.anchor_coef_rl > 0
        if reads and self.focus.mode != "forced":
            raise ValueError("score.attend_to: focus_map and reward.anchor_coef_rl need focus.mode: forced")
        if self.reward.anchor_coef_rl and self.anchor.sink_exclude:
            raise ValueError("reward.anchor_coef_rl knows no anchor.sink_exclude")
        if self.reward.anchor_coef_rl and self.anchor.target not in ("coverage", "binary"):
            raise ValueError("reward.anchor_coef_rl needs anchor.target coverage or binary")
        return self


class FaithfulMR1(Method[FaithfulMR1Config]):
    """Anchoring, then Reinforcing."""

    Config = FaithfulMR1Config

    def stages(self) -> tuple[Stage, ...]:
        config = self.config
        anchoring = Stage("supervised", config.anchor.steps, config.anchor, config.focus, config.anchor.lr, True)
        first = (Stage("supervised", config.cold_start),) if config.cold_start else ()
        return (*first, anchoring, Stage(restarts=True))

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        stream, focus = self.config.streams.textual.stream("textual"), self.config.focus
        return (replace(stream, forced_prefix=focus.prefix) if focus.mode == "forced" else stream,)

    def probes(self) -> tuple[Probe, ...]:
        score, anchor, cf, causal = self.config.score, self.config.anchor, self.config.cf, self.config.causal
        keeps = score.attend_to == "focus_map"
        where = {"layers": score.layers, "heads": score.heads, "heads_file": score.heads_file}
        asked: list[Probe] = [RegionAttention(**where, align=score.row_align, keeps_maps=keeps)]
        if score.axis != "region":
            divergence = None if causal.estimator in ("k3", "logratio_pos") else causal.estimator
            changed = Intervention(cf.kind, probability=cf.prob, patch=cf.patch)
            asked.append(Contrast(intervention=changed, draws=cf.draws, divergence=divergence))  # type: ignore[arg-type]
        if score.axis != "token":
            asked += [Contrast(name=kind, intervention=Intervention(kind)) for kind in ("region_mask", "random_region")]
        if self.config.focus.mode == "forced":
            shape = "overlap" if anchor.target == "binary" else "coverage"
            asked.append(
                FocusAttention(
                    token=self.config.focus.text, count=self.config.focus.count, layers=anchor.layers,
                    heads=anchor.heads, heads_file=anchor.heads_file, membership=shape,
                    in_update=self.config.reward.anchor_coef_rl > 0,
                )
            )  # fmt: skip
        return tuple(asked)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        reward, right = self.config.reward, accuracies(group.readings, group.record, context.judge)
        weights = {"format": reward.lam_fmt, "accuracy": 1.0, "attention": reward.lam_attn, "focus_region": 0.0}
        if self._needs_regions and not group.record.regions:
            weights["attention"] = 0.0  # not applicable to this record: the other terms still teach
            seen = [Score(0.0, "the record has no regions", masked=True)] * len(group)
        else:
            seen = self._attention(group, context)
        gates = self._gates([s.value for s in right])
        return score_table(
            weights,
            format=[self._format(reading) for reading in group.readings],
            accuracy=right,
            attention=[
                replace(s, value=gate * s.value, why=s.why if gate else f"does not count; {s.why}")
                for s, gate in zip(seen, gates, strict=True)
            ],
            focus_region=[_focus_region(group, i, context) for i in range(len(group))],
        )

    def credit(self, group: Group) -> tuple[Credit, ...]:
        base = credit_for(group, **self.config.credit.model_dump())
        weight = group.scores[0].weight("attention") if group.scores else 0.0
        if self.config.reward.advantage_mix == "summed" or not weight:
            return base
        values = np.array([s.terms["attention"].value for s in group.scores])
        rewards = np.array([s.total for s in group.scores]) - weight * values
        counted = np.array(self._gates([s.terms["accuracy"].value for s in group.scores])) > 0
        masked = np.array([s.is_masked for s in group.scores], bool)
        rules = self.config.credit.model_dump(include={"how", "eps", "ddof"})
        advantages = decoupled_advantages(rewards, values, counted, weight, masked, **rules)
        return tuple(
            replace(c, advantage=r.sampled * a, parts={**c.parts, "advantage": float(a)})
            for c, r, a in zip(base, group.rollouts, advantages, strict=True)
        )

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        from sightline.objectives import Loss, anchor_losses, cover_target, policy_loss

        base, anchor = policy_loss(batch, outputs, self.config.objective), self.config.anchor
        seen, weight = outputs.maps.get("focus"), self.config.reward.anchor_coef_rl
        if not weight or seen is None:
            return base
        losses = anchor_losses(
            seen.values, cover_target(seen.region, seen.is_visual, anchor.smooth), seen.is_visual,
            loss=anchor.loss, normalise=anchor.normalise, region=seen.region > 0,
        )  # fmt: skip
        anchoring = weight * (seen.weight * losses).sum()
        total = base.total + anchoring
        return Loss(total, {**base.terms, "loss/total": total.detach(), "loss/anchor": anchoring.detach()})

    @property
    def _needs_regions(self) -> bool:
        score = self.config.score
        return score.axis != "token" or "boxes" in score.attend_to or Intervention(self.config.cf.kind).is_regional

    def _gates(self, accuracy: list[float]) -> list[float]:
        """The factor of each rollout's s."""
        reward = self.config.reward
        if reward.gate == "none":
            return [1.0] * len(accuracy)
        if reward.gate == "multiplicative":
            return list(accuracy)
        within = reward.gate != "group_window" or reward.window_low <= np.mean(accuracy) <= reward.window_high
        return [float(within and value >= 1) for value in accuracy]

    def _format(self, reading: Reading) -> Score:
        """Think block, then answer block, behind the token; the policy writes it only where it is told to."""
        focus = self.config.focus
        if not reading.text.startswith(focus.prefix):
            return Score(0.0, f"does not begin with {focus.text}")
        if reading.text.count(focus.text) != focus.count:
            return Score(0.0, f"{focus.text} more than {focus.count} times")
        return think_answer_format(replace(reading, text=reading.text.removeprefix(focus.prefix)))

    def _attention(self, group: Group, context: Context) -> list[Score]:
        if not group.measurements or "attention" not in group.measurements[0].probes:
            return [Score(0.0, "attention was not measured", masked=True)] * len(group)
        found = []
        for rollout, seen in zip(group.rollouts, group.measurements, strict=True):
            if rollout.finish == "length":
                found.append(Score(0.0, "cut by the token limit"))
                continue
            value, why = 1.0, []
            if self.config.score.axis != "region":
                token = self._token_score(rollout, seen, context)
                value, why = value * token, [*why, f"at tokens the image decides {token:.2f}"]
            if self.config.score.axis != "token":
                region = self._region_score(group.record, rollout, seen, context)
                value, why = value * region, [*why, f"on the region {region:.2f}"]
            found.append(Score(value, "attention " + ", ".join(why)))
        return found

    def _token_score(self, rollout: Rollout, seen: Measurement, context: Context) -> float:
        """Attention at the tokens that the counterfactual image changes, against the reply's mean."""
        score, causal, counted = self.config.score, self.config.causal, rollout.sampled
        if context.pieces is not None:
            pieces = context.pieces(rollout.ids.tolist())
            counted = content_tokens([_bare(p, self.config.focus.text) for p in pieces], counted)
            counted = counted & ~section_tokens(pieces, "answer") if causal.mask_answer else counted
        if causal.estimator in ("k3", "logratio_pos"):
            assert seen.logprobs is not None
            effect = causal_effect(seen.logprobs, seen.probes["contrast"], causal.estimator, value_clamp=causal.clip)
        else:
            effect = seen.probes[f"contrast/{causal.estimator}"].clip(0.0, causal.clip)
        region, image = seen.probes["attention"][:, :2].astype(np.float64).T
        if score.attend_to == "focus_map":
            attention = focus_overlap(seen.maps["attention"], seen.maps["focus"][0])
        elif score.attend_to == "image":
            attention = region + image
        else:
            attention = region if score.attend_to == "boxes" else region / np.maximum(region + image, 1e-12)
        return concentration(
            attention[counted], effect[counted], form=score.form, weights=score.weights, share=score.rho,
            least=score.n_min,
        )  # fmt: skip

    def _region_score(self, record: Record, rollout: Rollout, seen: Measurement, context: Context) -> float:
        """SAYO's ratio, x^2 / (x^2 + 1), where masking the region harms the answer more than masking elsewhere."""
        answer = rollout.sampled
        if context.pieces is not None:
            answer = answer & section_tokens(context.pieces(rollout.ids.tolist()), "answer")
        harm = (seen.probes["random_region"] - seen.probes["region_mask"])[answer]
        if not len(harm) or float(harm.mean()) <= self.config.score.tau:
            return 0.0
        owned = membership(record.regions, [image.size for image in record.images], context.frame)
        region, image = seen.probes["attention"][rollout.sampled, :2].astype(np.float64).T
        return ratio_score(region_ratio(region, image, float(owned.sum()), len(owned)), "half_shifted")


def _bare(piece: str | bytes, mark: str) -> str | bytes:
    """A token without the mark: what the policy writes of it says nothing."""
    return "" if piece in (mark, mark.encode()) else piece


def _focus_region(group: Group, index: int, context: Context) -> Score:
    """For the report: the mass of the token's row on the cells of the region, among the image's."""
    measured = group.measurements[index] if group.measurements else None
    if measured is None or not group.record.regions or "focus" not in measured.maps:
        return Score(0.0, "not read", masked=True)
    row = measured.maps["focus"][0]
    owned = membership(group.record.regions, [image.size for image in group.record.images], context.frame)
    value = float(row[owned > 0].sum() / max(float(row.sum()), 1e-12))
    return Score(value, f"{value:.2f} of the token's attention to the image lies on the region")
