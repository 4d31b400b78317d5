"""Configuration of credit and objective. It stands apart from both so that reading a recipe needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sightline.credit.group import Baseline
from sightline.credit.weights import Normalisation
from sightline.geometry.targets import TargetShape

__all__ = [
    "AnchorConfig",
    "AnchorLoss",
    "AnchorNormalise",
    "CreditConfig",
    "FocusConfig",
    "HeadList",
    "LayerChoice",
    "ObjectiveConfig",
    "Settings",
]

AnchorLoss = Literal["kl", "mass_nll"]
AnchorNormalise = Literal["mean_then_norm", "norm_then_mean", "raw"]
LayerChoice = Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | Literal["all", "last_third"]
HeadList = Annotated[tuple[Annotated[tuple[int, int], Field(strict=False)], ...], Field(strict=False, min_length=1)]


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


class FocusConfig(Settings):
    """The token whose attention row is supervised and read."""

    token: str = Field(default="<Focus>", min_length=1, description="the token; made and initialised where unknown")
    reuse: str | None = Field(
        default=None, min_length=1, description="an unused special token of the checkpoint to take in place of `token`"
    )
    mode: Literal["forced", "generated"] = Field(
        default="forced", description="forced: part of the prompt; generated: written by the policy, once and first"
    )
    lead: str = Field(default="", description="text of the reply before the token, e.g. a short evidence phrase")
    count: int = Field(default=1, ge=1, le=64, description="how often it stands in a row; the mean of its rows is used")
    initialise: Literal["mean", "description"] = Field(
        default="mean", description="a new row: mean of all rows, or of those of the words in `description`"
    )
    description: str = Field(default="focus look region", min_length=1, description="words for `initialise`")

    @property
    def text(self) -> str:
        """The token as it is written."""
        return self.reuse or self.token

    @property
    def prefix(self) -> str:
        """How a reply begins."""
        return f"{self.lead}{self.text * self.count}\n"


class AnchorConfig(Settings):
    """A supervised stage: `L = w_attn L_anchor + w_lm L_lm + w_vis L_vis + w_kl KL(policy || start)`."""

    steps: int = Field(default=0, ge=0, description="optimiser steps of the stage; 0 leaves it out")
    lr: float | None = Field(default=None, gt=0, description="learning rate of the stage; null for optim.lr")
    layers: LayerChoice = Field(
        default="last_third", description="decoder layers; last_third: L - 1 - ceil(L/3) to L - 2 of L, from 0"
    )
    heads: HeadList | None = Field(default=None, description="(layer, head) pairs in place of layers; null for all")
    heads_file: str | None = Field(default=None, description="list of heads by `sightline attention calibrate`")
    normalise: AnchorNormalise = Field(
        default="mean_then_norm", description="mean over heads before or after normalising over the image, or raw mass"
    )
    target: TargetShape = Field(default="coverage", description="shape of the target over the visual tokens (T)")
    smooth: float = Field(default=0.05, ge=0, lt=1, description="share of the target spread evenly (e)")
    blur: float = Field(default=1.0, gt=0, description="standard deviation of target: blur, in cells")
    loss: AnchorLoss = Field(default="kl", description="KL(T, p), or -log of the mass on the region")
    w_attn: float = Field(default=1.0, ge=0, description="weight of L_anchor (w_a)")
    w_lm: float = Field(default=1.0, ge=0, description="weight of the language loss")
    w_vis: float = Field(default=0.0, ge=0, description="weight of -log of the mass on the whole image")
    w_kl: float = Field(default=0.0, ge=0, description="weight of the KL to the start on the reply")
    lm_target: Literal["self_distilled", "dataset", "focus_only", "none"] = Field(
        default="self_distilled",
        description="reply of the language loss: a right one of the start policy, the record's own, the token alone",
    )
    attempts: int = Field(default=4, ge=1, le=256, description="replies sampled per record to find a right one")
    sink_exclude: bool = Field(
        default=False, description="leave out visual tokens that all text looks at (mean + 3 sd), outside the region"
    )
    max_region_frac: float = Field(default=0.6, gt=0, le=1, description="leave out records with larger regions")
    freeze_vision: bool = Field(default=True, description="train the language model only")
    row_steps: int = Field(default=0, ge=0, description="first steps of the stage that train the token's own row only")
    row_lr: float = Field(default=1e-4, gt=0, description="learning rate of those steps")
