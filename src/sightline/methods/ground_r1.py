"""Ground-R1: Cao et al., Thinking with Images via Scale Relative Policy Optimization, arXiv 2505.20272.

Objective. The policy thinks and writes one box, or answers at once. The box is cut out of the original image and shown
as a new turn; it may ask again, and answers in the end. Of each record G1 first turns are sampled and G2 continuations
of each, G = G1 G2 Rollouts in all, and no gold box is used:

    R = w_f f + w_a a,   f = mean over turns of [the turn has its form],   a = score of the answer in the last turn.

v1 (v2 changes nothing here) gives all tokens of a Rollout the advantage of GRPO, (R - mean R) / (std R + 1e-4). v3
compares like with like: s_i is the bin of the area of box i, and

    A_ij = (R_ij - mean_s) / (std_s + eps) + (b_ij - mean b) / (std b + eps),   b_ij = 1 if s_i = argmax_k mean_k else 0

(SRPO), since with one baseline large boxes win and looking closely dies out. The loss is the clipped surrogate, mean
over the tokens of a Rollout, then over Rollouts, + beta k3. docs/methods/ground_r1.md lists what is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sightline.credit.bin_credit import bin_credit, evidence_box, with_bins
from sightline.credit.bins import BinConfig
from sightline.credit.config import CreditConfig, ObjectiveConfig, Settings
from sightline.methods.base import Context, Method, MethodConfig, Stream, score_table
from sightline.rewards.evidence import coverage, overlap
from sightline.rewards.ground_r1_release import release_answers, release_rule
from sightline.rewards.router import routed_answers
from sightline.rewards.turn_format import turn_format
from sightline.tools.crop import CropTool
from sightline.tools.rule import CropTurns
from sightline.tools.settings import CropSettings
from sightline.tools.syntax import BoxSyntax
from sightline.types import Credit, Group, Record, Scores

__all__ = ["GroundR1", "GroundR1Config"]


class Tree(Settings):
    """Rollouts per record: every first turn has the same number of continuations."""

    n_ground: int = Field(default=4, ge=1, le=256, description="first turns per record (G1)")
    n_answer: int = Field(default=2, ge=1, le=256, description="continuations of each first turn (G2)")


class Turns(Settings):
    """How a conversation runs."""

    max: int = Field(default=5, ge=1, le=64, description="replies per conversation; the last gets no crop")
    max_tokens: int | None = Field(
        default=512, ge=1, description="longest reply of one turn, in tokens; null for sampling.max_new_tokens"
    )
    repeat_template: bool = Field(default=False, description="repeat the whole instruction with every crop")


class Weights(Settings):
    """Weight of each reward term. The last two compare with gold boxes, which the paper never does."""

    format: float = Field(default=1.0, ge=0, description="share of the turns that have their form (w_f)")
    accuracy: float = Field(default=1.0, ge=0, description="score of the answer (w_a)")
    overlap: float = Field(default=0.0, ge=0, description="(GIoU + 1) / 2 of the box with a gold region; logged only")
    coverage: float = Field(default=0.0, ge=0, description="share of a gold region inside the box; logged only")


class GroundR1Config(MethodConfig):
    """Ground-R1. Presets: `v3` is SRPO, `v1` the released code's GRPO."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "v1": {
                "tree": {"n_ground": 2, "n_answer": 4},
                "turns": {"repeat_template": True},
                "weights": {"format": 2.0},
                "advantage": "grpo",
            }
        }
    )

    name: str = "ground_r1"
    preset: Literal["v3", "v1"] = Field(default="v3", description="what the other keys default to")
    tree: Tree = Field(default=Tree(), description="rollouts per record")
    turns: Turns = Field(default=Turns(), description="how a conversation runs")
    crop: CropSettings = Field(
        default=CropSettings(padding=0.0), description="how boxes become crops; policy parity: as the release"
    )
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    answers: Literal["kind", "release"] = Field(
        default="kind", description="answers are scored by their kind, or by data set name to the letter of the release"
    )
    geometry: bool = Field(default=False, description="the form also asks that a box is ordered, inside, not empty")
    advantage: Literal["srpo", "grpo"] = Field(
        default="srpo", description="srpo: relative to boxes of like area (bins); grpo: to the whole group (credit)"
    )
    bins: BinConfig = Field(default=BinConfig(), description="bins of SRPO")
    credit: CreditConfig = Field(default=CreditConfig(eps=1e-4, ddof=1), description="baseline and scale of grpo")
    objective: ObjectiveConfig = Field(
        # the release bounds the exponent of k3 by 10 and not its value, which is then below e^10
        default=ObjectiveConfig(
            clip_high=0.2, dual_clip=None, log_ratio_clamp=10.0, kl=0.04, kl_clamp=25000.0, normalisation="sequence"
        ),
        description="what the learner minimises",
    )

    @model_validator(mode="after")
    def _crops_end_conversations(self) -> GroundR1Config:
        if self.turns.max == 1 and self.tree.n_answer > 1:
            raise ValueError("turns.max 1 leaves no second turn to continue: set tree.n_answer 1")
        return self


class GroundR1(Method[GroundR1Config]):
    """Boxes are asked for, looked at, and rewarded only by the form of the turns and the answer."""

    Config = GroundR1Config

    def streams(self, record: Record) -> tuple[Stream, ...]:
        c = self.config
        if c.answers == "release":
            release_rule(record)  # an unknown data set is told before anything is sampled
        return (
            Stream(
                "grounded",
                "ground_r1",
                c.tree.n_ground * c.tree.n_answer,
                branches=(c.tree.n_ground, c.tree.n_answer) if c.tree.n_answer > 1 else (c.tree.n_ground,),
                turns=CropTurns(
                    CropTool(c.crop), self._syntax, max_turns=c.turns.max, repeat_template=c.turns.repeat_template
                ),
                sampling={"max_new_tokens": c.turns.max_tokens} if c.turns.max_tokens else None,
            ),
        )

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        answers = release_answers if self.config.answers == "release" else routed_answers
        terms = {
            "format": [turn_format(reading, geometry=self.config.geometry) for reading in group.readings],
            "accuracy": answers(group.readings, group.record, context.judge),
        }
        if group.record.regions:
            boxes = [evidence_box(reading, self.config.bins, self._syntax.asks) for reading in group.readings]
            terms["overlap"] = [overlap(box, group.record) for box in boxes]
            terms["coverage"] = [coverage(box, group.record) for box in boxes]
        return score_table(self.config.weights.model_dump(), **terms)

    def credit(self, group: Group) -> tuple[Credit, ...]:
        bins, asks = self.config.bins, self._syntax.asks
        if self.config.advantage == "grpo":  # bins are shown there too: what a single baseline does to each of them
            return with_bins(group, super().credit(group), bins, asks)
        return bin_credit(group, bins, asks)

    @property
    def _syntax(self) -> BoxSyntax:
        return BoxSyntax(is_parity=self.config.crop.policy == "parity")
