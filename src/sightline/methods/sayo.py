"""SAYO: Ou et al., Do MLLMs Really See It: Reinforcing Visual Attention in Multimodal LLMs, arXiv 2602.08241.

Objective. A reply is rewarded for looking at the evidence region more than at the average image token. With Q the 30 %
of its tokens of the highest entropy, A the attention of the last decoder layer, R the region's tokens, V the image's,

    a = mean over Q, heads, R of A,    v = mean over Q, heads, V of A,
    R_attention = tanh(log((a + eps) / (v + eps))),

an ordinary reward without gradient. The released recipe sums it with a format reward that holds replies inside a window
of lengths, and has no accuracy term (preset `parity`). The preset `gated` adds accuracy and pays for attention only
where the answer is right. docs/methods/sayo.md lists what was not taken over from the release.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from sightline.credit.config import HeadList, LayerChoice, ObjectiveConfig, Settings
from sightline.credit.tokens import causal_effect, section_tokens
from sightline.geometry.grid import Membership, membership
from sightline.interventions import Intervention
from sightline.methods.base import Context, Method, MethodConfig, Probe, Stream, StreamConfig, score_table
from sightline.methods.probes import BoxChoice, Contrast, RegionAttention
from sightline.rewards.answer import accuracies
from sightline.rewards.attention import (
    Denominator,
    Pooling,
    RatioForm,
    length_factor,
    ratio_score,
    region_ratio,
    sinks,
    top_rows,
)
from sightline.types import Group, Measurement, Reading, Record, Rollout, Score, Scores

__all__ = ["SAYO", "SAYOConfig"]


class Streams(Settings):
    """The only stream of SAYO."""

    textual: StreamConfig = Field(default=StreamConfig(n=16), description="reasoning in words")


class Weights(Settings):
    """Weight of each reward term."""

    attention: float = Field(default=1.0, ge=0, description="R_attention")
    format: float = Field(default=1.0, ge=0, description="an answer block, times the length window")
    accuracy: float = Field(default=0.0, ge=0, description="the answer is right; not in the released recipe")


class Attention(Settings):
    """Which rows are read and how they become a number."""

    layers: LayerChoice = Field(default=(-1,), description="decoder layers, negative ones from the end")
    heads: HeadList | None = Field(default=None, description="(layer, head) pairs in place of layers; null for all")
    heads_file: str | None = Field(default=None, description="list of heads by `sightline attention calibrate`")
    row_select: Literal["entropy_top", "all", "answer_excluded", "causal_top"] = Field(
        default="entropy_top",
        description="rows: highest entropy, all, outside the answer, or most changed by the image",
    )
    row_fraction: float = Field(default=0.3, gt=0, le=1, description="share of the tokens that *_top keeps")
    row_align: Literal["consumer", "producer"] = Field(
        default="consumer", description="row in which the token is the query (release), or the row that predicts it"
    )
    pooling: Pooling = Field(
        default="ratio_of_means", description="one ratio of pooled means, or mean of ratios by row"
    )
    denominator: Denominator = Field(default="image_mean", description="what the region is compared with (v)")
    form: RatioForm = Field(default="tanh_log", description="from the ratio to the reward")
    eps: float = Field(default=1e-8, gt=0, description="added to a and v")
    gate: Literal["none", "correct_only", "scaled_if_wrong"] = Field(
        default="none", description="what a wrong answer does to R_attention: nothing, 0, or times wrong_scale"
    )
    wrong_scale: float = Field(default=0.5, ge=0, le=1, description="factor of gate: scaled_if_wrong")
    membership: Membership = Field(default="overlap", description="cells of a region; inclusive_floor as released")
    boxes: BoxChoice = Field(default="all", description="all regions, or the first as released")
    without_regions: Literal["mask", "skip"] = Field(
        default="mask", description="records without regions: out of the loss, or trained on the other terms"
    )


class Window(Settings):
    """Tokens a reply should have."""

    shortest: int = Field(default=60, ge=1, description="below: format x 0.6 n / shortest")
    longest: int = Field(default=100, ge=1, description="above: format x 0.6 longest / n")

    @model_validator(mode="after")
    def _is_ordered(self) -> Window:
        if self.shortest > self.longest:
            raise ValueError("shortest must not exceed longest")
        return self


class SAYOConfig(MethodConfig):
    """SAYO. Presets: `parity` as released (its defects repaired), `gated` with accuracy."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"gated": {"weights": {"accuracy": 1.0, "attention": 0.3}, "attention": {"gate": "correct_only"}}}
    )

    name: str = "sayo"
    preset: Literal["parity", "gated"] = Field(default="parity", description="what the other keys default to")
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    attention: Attention = Field(default=Attention(), description="rows and their reward")
    window: Window = Field(default=Window(), description="lengths that the format term wants")
    objective: ObjectiveConfig = Field(
        default=ObjectiveConfig(kl=0.001, clip_high=0.2, dual_clip=None), description="what the learner minimises"
    )

    @model_validator(mode="after")
    def _something_ties_it_to_the_task(self) -> SAYOConfig:
        if self.objective.kl == 0 and self.weights.accuracy == 0:
            warnings.warn(
                "method sayo: objective.kl and weights.accuracy are both 0, so nothing but the length window ties the "
                "policy to its task",
                stacklevel=2,
            )
        return self


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the rows of one Rollout say; without a value, why there is none."""

    why: str
    value: float | None = None
    ratio: float | None = None
    top: float | None = None


class SAYO(Method[SAYOConfig]):
    """Attention to the region, format within a window of lengths, and accuracy where its weight says so."""

    Config = SAYOConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return (self.config.streams.textual.stream("textual"),)

    def probes(self) -> tuple[Probe, ...]:
        rules = self.config.attention
        region = RegionAttention(
            layers=rules.layers, heads=rules.heads, heads_file=rules.heads_file, align=rules.row_align,
            membership=rules.membership, boxes=rules.boxes, keeps_maps=rules.denominator == "image_mean_no_sink",
        )  # fmt: skip
        changed = (Contrast(intervention=Intervention("patch_blacken")),) if rules.row_select == "causal_top" else ()
        return (region, *changed)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        window, weights = self.config.window, self.config.weights.model_dump()
        right = accuracies(group.readings, group.record, context.judge)
        seen = self._attention(group, context)
        if not group.record.regions and self.config.attention.without_regions == "skip":
            weights["attention"] = 0.0
        return score_table(
            weights | {"region_ratio": 0.0, "top_share": 0.0},
            attention=[self._gated(*pair) for pair in zip(seen, right, strict=True)],
            format=[_format(*pair, window) for pair in zip(group.readings, group.rollouts, strict=True)],
            accuracy=right,
            region_ratio=[_shown(x.ratio, "region over average cell") for x in seen],
            top_share=[_shown(x.top, "of the image's attention on its strongest cell") for x in seen],
        )

    def _attention(self, group: Group, context: Context) -> list[_Seen]:
        rules, sizes = self.config.attention, [image.size for image in group.record.images]
        if not group.record.regions:
            return [_Seen("the record has no regions")] * len(group)
        if not group.measurements or "attention" not in group.measurements[0].probes:
            return [_Seen("attention was not measured")] * len(group)
        is_first = rules.boxes == "first"
        owned = membership(group.record.regions, sizes, context.frame, rules.membership, is_first_only=is_first)
        rollouts = zip(group.rollouts, group.measurements, strict=True)
        return [self._seen(rollout, measured, owned, context) for rollout, measured in rollouts]

    def _seen(self, rollout: Rollout, measured: Measurement, owned: np.ndarray, context: Context) -> _Seen:
        """The ratio of one Rollout over its selected rows."""
        rules, rows = self.config.attention, self._rows(rollout, measured, context)
        if not rows.any():
            return _Seen("no row to read")
        region, image = measured.probes["attention"][rows, :2].astype(np.float64).T
        sink, sink_cells = None, 0
        if rules.denominator == "image_mean_no_sink":
            attention = measured.maps["attention"]
            dropped = sinks(attention[rollout.sampled], owned > 0)
            sink, sink_cells = attention[rows][:, dropped].sum(axis=1), int(dropped.sum())
        ratio = region_ratio(
            region, image, float(owned.sum()), len(owned), pooling=rules.pooling, denominator=rules.denominator,
            sink=sink, sink_cells=sink_cells, eps=rules.eps,
        )  # fmt: skip
        on_image = max(float((region + image).sum()), rules.eps)
        top = float(measured.probes["attention/top1"][rows].sum()) / on_image
        value = ratio_score(ratio, rules.form, share=float(region.sum()) / on_image)
        return _Seen(f"region over average cell {ratio:.2f} at {rows.sum()} tokens", value, ratio, top)

    def _rows(self, rollout: Rollout, measured: Measurement, context: Context) -> np.ndarray:
        """The tokens whose rows count; only what the policy wrote, so never padding or what follows the end."""
        rules, valid = self.config.attention, rollout.sampled
        if rules.row_select == "entropy_top":
            assert measured.entropies is not None
            return top_rows(measured.entropies, valid, rules.row_fraction)
        if rules.row_select == "causal_top":
            assert measured.logprobs is not None
            effect = causal_effect(measured.logprobs, measured.probes["contrast"])
            return top_rows(effect, valid, rules.row_fraction)
        if rules.row_select == "answer_excluded" and context.pieces is not None:
            return valid & ~section_tokens(context.pieces(rollout.ids.tolist()), "answer")
        return valid

    def _gated(self, seen: _Seen, right: Score) -> Score:
        rules = self.config.attention
        if seen.value is None:
            return Score(0.0, seen.why, masked=True)
        if rules.gate == "none" or right.value >= 1:
            return Score(seen.value, seen.why)
        if rules.gate == "correct_only":
            return Score(0.0, f"the answer is wrong; {seen.why}", masked=right.masked)
        return Score(rules.wrong_scale * seen.value, f"scaled, the answer is wrong; {seen.why}", masked=right.masked)


def _format(reading: Reading, rollout: Rollout, window: Window) -> Score:
    count = int(rollout.sampled.sum())
    if reading.answer is None:
        return Score(0.0, "no answer block")
    return Score(length_factor(count, window.shortest, window.longest), f"an answer block, {count} tokens")


def _shown(value: float | None, what: str) -> Score:
    """A figure for the report, without weight."""
    return Score(0.0, "not read", masked=True) if value is None else Score(value, f"{value:.2f} {what}")
