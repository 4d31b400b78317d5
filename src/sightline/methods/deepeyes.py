"""DeepEyes: Zheng et al., Incentivizing Thinking with Images via Reinforcement Learning, arXiv 2505.14362. A baseline.

Objective. The policy may call a zoom tool between its thoughts, any number of times up to a limit of turns, and gets
the region as an image. N Rollouts of each record, plain GRPO on the outcome:

    R = w_a R_acc + w_f R_format + w_t [R_acc > 0 and a crop was shown] R_tool,   R_format in {-1, 0}

with w = (0.8, 0.2, 1.2). The bonus is conditional: a call that does not end in a right answer earns nothing. Records of
kind `math` have no bonus, `1.2 R_acc + 0.4 R_format`. No gold box is used. See docs/methods/deepeyes.md.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from sightline.credit.config import ObjectiveConfig, Settings
from sightline.methods.base import Context, Method, MethodConfig, Stream, score_table
from sightline.rewards.answer import accuracies
from sightline.rewards.tool_use import tool_bonus, tool_format
from sightline.tools.crop import CropTool
from sightline.tools.rule import CropTurns
from sightline.tools.settings import CropSettings
from sightline.tools.syntax import ToolCallSyntax
from sightline.types import Group, Record, Scores

__all__ = ["DeepEyes", "DeepEyesConfig"]


class Turns(Settings):
    """How a conversation runs."""

    max: int = Field(default=5, ge=1, le=64, description="replies per conversation; the last gets no crop")
    max_tokens: int | None = Field(
        default=None, ge=1, description="longest reply of one turn, in tokens; null for sampling.max_new_tokens"
    )


class Weights(Settings):
    """Weight of each reward term."""

    accuracy: float = Field(default=0.8, ge=0, description="the answer is right (R_acc)")
    format: float = Field(default=0.2, ge=0, description="tags that do not pair up cost this much (R_format)")
    tool: float = Field(default=1.2, ge=0, description="the answer is right and a crop was shown (R_tool)")


class MathWeights(Settings):
    """Weights for records of kind `math`, where nothing can be zoomed at."""

    accuracy: float = Field(default=1.2, ge=0, description="the answer is right")
    format: float = Field(default=0.4, ge=0, description="tags that do not pair up cost this much")
    tool: float = Field(default=0.0, ge=0, description="the answer is right and a crop was shown")


class DeepEyesConfig(MethodConfig):
    """DeepEyes: outcome reward with a conditional bonus for the tool."""

    name: str = "deepeyes"
    n: int = Field(default=16, ge=1, le=4096, description="rollouts per record (N)")
    turns: Turns = Field(default=Turns(), description="how a conversation runs")
    crop: CropSettings = Field(
        default=CropSettings(policy="strict", padding=0.0, min_side=31, max_aspect=100.0),
        description="how boxes become crops; strict tells the policy what is wrong with a box",
    )
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    math: MathWeights = Field(default=MathWeights(), description="the same for records of kind math")
    objective: ObjectiveConfig = Field(
        default=ObjectiveConfig(clip_high=0.2, kl=0.0), description="what the learner minimises"
    )


class DeepEyes(Method[DeepEyesConfig]):
    """Tool-assisted reasoning with an outcome reward."""

    Config = DeepEyesConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        c = self.config
        turns = CropTurns(CropTool(c.crop), ToolCallSyntax(), max_turns=c.turns.max)
        sampling = {"max_new_tokens": c.turns.max_tokens} if c.turns.max_tokens else None
        return (Stream("grounded", "deepeyes", c.n, turns=turns, sampling=sampling),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        # without an answer block nothing is answered; a tool call would pass for an answer otherwise
        answered = [replace(reading, answer=reading.answer or "") for reading in group.readings]
        right = accuracies(answered, group.record, context.judge)
        weights = self.config.math if group.record.answer_kind == "math" else self.config.weights
        return score_table(
            weights.model_dump(),
            accuracy=right,
            format=[tool_format(reading) for reading in group.readings],
            tool=[tool_bonus(*pair) for pair in zip(right, group.rollouts, strict=True)],
        )
