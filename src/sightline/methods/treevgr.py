"""TreeVGR: Wang et al., Traceable Evidence Enhanced Visual Grounded Reasoning, arXiv 2507.07999.

Objective. One grounded stream: the policy writes the boxes of what it refers to while it reasons. Over the N replies
to a record, plain GRPO on

    R = R_format + R_accuracy + R_box,
    R_box = 1/2 (mean over gold of the best IoU with a prediction + mean over predictions of the best IoU with gold).

The first half is recall, the second precision. The paper's ablations keep one half: without precision the policy
learns to enumerate boxes and never answers, without recall it localises less. Records without regions have no R_box.
See docs/methods/treevgr.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightline.credit.config import ObjectiveConfig, Settings
from sightline.methods.base import Context, Method, MethodConfig, Stream, StreamConfig, score_table
from sightline.rewards.answer import accuracies
from sightline.rewards.boxes import box_iou
from sightline.rewards.format import think_answer_format
from sightline.types import Group, Record, Scores

__all__ = ["TreeVGR", "TreeVGRConfig"]


class Streams(Settings):
    """The only stream of TreeVGR."""

    grounded: StreamConfig = Field(default=StreamConfig(), description="reasoning that writes boxes")


class Weights(Settings):
    """Weight of each reward term."""

    format: float = Field(default=1.0, ge=0, description="think block, then answer block")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right")
    box: float = Field(default=1.0, ge=0, description="overlap of the written boxes with the gold regions")


class TreeVGRConfig(MethodConfig):
    """TreeVGR. The objective is iVGR's, whose release builds on the same trainer."""

    name: str = "treevgr"
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    box: Literal["dual", "recall", "precision"] = Field(default="dual", description="which halves of R_box count")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(kl=0.01), description="what the learner minimises")


class TreeVGR(Method[TreeVGRConfig]):
    """Format, accuracy and dual box IoU on one grounded stream."""

    Config = TreeVGRConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return (self.config.streams.grounded.stream("grounded"),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        terms = {
            "format": [think_answer_format(reading) for reading in group.readings],
            "accuracy": accuracies(group.readings, group.record, context.judge),
        }
        if group.record.regions:
            terms["box"] = [box_iou(reading, group.record, match=self.config.box) for reading in group.readings]
        return score_table(self.config.weights.model_dump(), **terms)
