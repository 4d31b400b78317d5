"""GRPO: Shao et al., DeepSeekMath, arXiv 2402.03300. The baseline of every comparison.

Objective. Of each prompt N replies are sampled, each earns `R = w_f R_format + w_a R_accuracy`, and its advantage is

    A_i = (R_i - mean(R)) / (std(R) + eps),

which stands on every token of the reply in the clipped surrogate of PPO; beta k3 is added to the loss. Asymmetric
clipping (arXiv 2503.14476), no deviation (Dr.GRPO, arXiv 2503.20783), leave-one-out baselines (arXiv 2402.14740) and
sequence ratios (GSPO, arXiv 2507.18071) are values of `credit` and `objective`. See docs/methods/grpo.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sightline.credit.config import Settings
from sightline.methods.base import Context, Method, MethodConfig, Stream, StreamConfig, score_table
from sightline.rewards.answer import accuracies
from sightline.rewards.format import think_answer_format
from sightline.types import Group, Record, Scores

__all__ = ["GRPO", "GRPOConfig"]

Template = Literal["textual", "grounded", "general", "direct"]


class Weights(Settings):
    """Weight of each reward term."""

    format: float = Field(default=1.0, ge=0, description="think block, then answer block (w_f)")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right (w_a)")


class GRPOConfig(MethodConfig):
    """Plain GRPO. `streams` names the templates every record is asked with, each a group of its own."""

    name: str = "grpo"
    streams: dict[Template, StreamConfig] = Field(
        default={"textual": StreamConfig()}, min_length=1, description="streams by the name of their template"
    )
    weights: Weights = Field(default=Weights(), description="weight of each reward term")


class GRPO(Method[GRPOConfig]):
    """Format and accuracy, one baseline per record and stream."""

    Config = GRPOConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return tuple(config.stream(name) for name, config in self.config.streams.items())

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        return score_table(
            self.config.weights.model_dump(),
            format=[think_answer_format(reading) for reading in group.readings],
            accuracy=accuracies(group.readings, group.record, context.judge),
        )
