"""Configuration of credit and objective. It stands apart from both so that reading a recipe needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sightline.credit.group import Baseline
from sightline.credit.weights import Normalisation

__all__ = ["CreditConfig", "ObjectiveConfig", "Settings"]


class Settings(BaseModel):
    """Base of every section of a method: unknown keys are errors, types are not coerced, values never change."""

    # validators are built at first use: importing a method stays light
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CreditConfig(Settings):
    """How the rewards of one (Record, stream) group become advantages."""

    how: Baseline = Field(
        default="grpo", description="baseline and scale: grpo, dr_grpo (no deviation) or rloo (leave-one-out)"
    )
    eps: float = Field(default=1e-6, ge=0, description="added to the deviation of the rewards (grpo only)")
    ddof: int = Field(default=1, ge=0, le=1, description="1: unbiased deviation, n - 1; 0: biased, n")
    mask_flat: bool = Field(
        default=False, description="take groups of equal rewards out of the loss and its denominators"
    )


class ObjectiveConfig(Settings):
    """Clipped surrogate with a KL term to the reference policy.

    With `ratio: sequence` the defaults are those of GSPO (arXiv 2507.18071): its clip range, no dual clip, and the mean
    over sequences.
    """

    clip_low: float = Field(
        default=0.2, ge=0, lt=1, description="epsilon low: ratios below 1 - clip_low stop pushing down"
    )
    clip_high: float = Field(default=0.28, ge=0, description="epsilon high: ratios above 1 + clip_high stop pushing up")
    dual_clip: float | None = Field(
        default=3.0, gt=1, description="c: bound on the ratio where the advantage is negative"
    )
    log_ratio_clamp: float = Field(default=20.0, gt=0, description="bound on |log ratio|, nats")
    kl: float = Field(default=0.0, ge=0, description="beta: weight of the k3 estimate of KL(policy || reference)")
    kl_clamp: float = Field(default=10.0, gt=0, description="bound on the k3 estimate of one token, nats")
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="importance ratio of a token, or GSPO's of a Rollout"
    )
    normalisation: Normalisation = Field(default="token", description="mean over tokens, over sequences, or by stream")

    @model_validator(mode="before")
    @classmethod
    def _sequence_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("ratio") == "sequence":
            return {"clip_low": 3e-4, "clip_high": 4e-4, "dual_clip": None, "normalisation": "sequence", **values}
        return values
