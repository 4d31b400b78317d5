"""The sections of a recipe, except `sampling` (see `config/sampling.py`) and `method` and `judge`, which stand with the
code that reads them.

Every field has a type, a limit and a description; the description names the unit and, in parentheses, the symbol the
papers use. `sightline recipe show NAME` prints them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sightline.tools.settings import ModeConfig

__all__ = [
    "Alarms",
    "Data",
    "DynamicSampling",
    "Evaluation",
    "FrameName",
    "Lora",
    "Mode",
    "Model",
    "Optim",
    "Section",
    "Strata",
    "Track",
    "Train",
]

FrameName = Literal[
    "original_px",
    "original_px_xywh",
    "norm_1",
    "norm_1_xywh",
    "norm_1000",
    "norm_1000_xywh",
    "padded_square_1",
]
Mode = Literal["textual", "grounded", "crops", "crops+union", "turns", "grit"]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, types are not coerced, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lora(Section):
    """Low-rank matrices that are trained in place of the weights: y = W x + (alpha / rank) B A x."""

    rank: int = Field(default=32, ge=1, le=1024, description="rank of the added matrices (r)")
    alpha: float = Field(default=64.0, gt=0, description="the added product is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout in front of the added matrices, in updates")
    dora: bool = Field(
        default=False, description="train the length of every weight row apart from its direction (DoRA)"
    )
    targets: Literal["language", "all"] | Names = Field(
        default="language",
        description="layers: all linear ones of the language model, those of the vision tower too, or names, each of "
        "the language model's layers so called, else of the tower's",
    )
    quantise: Literal["nf4"] | None = Field(
        default=None, description="keep the frozen weights of these layers in four bits (QLoRA); null keeps model.dtype"
    )

    @field_validator("targets")
    @classmethod
    def _names_something(cls, value: Any) -> Any:
        if not isinstance(value, str) and (not value or "" in value):
            raise ValueError("names no layer; leave it at language, or give names: [q_proj, v_proj]")
        return value


class Model(Section):
    """Which policy is trained, and how it sits in memory."""

    name: str = Field(
        default="embedded:qwen3_vl",
        min_length=1,
        description="policy to start from: `embedded:FAMILY`, a folder in Hugging Face layout, or a Hub name",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="number format of the weights"
    )
    device: str = Field(
        default="cpu", pattern=r"^(cpu|mps|auto|cuda(:\d+)?)$", description="device: cpu, cuda, cuda:N, mps, or auto"
    )
    checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, about 30 % more time"
    )
    threads: int = Field(
        default=1, ge=1, le=256, description="CPU threads per process; results repeat bit by bit per count"
    )
    attention: Literal["tree", "padded"] = Field(
        default="tree", description="`tree` shares common prefixes of a group, `padded` computes each rollout by itself"
    )
    min_pixels: int | None = Field(
        default=None, ge=1, description="least image area after resizing, in pixels; null keeps the processor's value"
    )
    max_pixels: int | None = Field(
        default=None, ge=1, description="largest image area after resizing, in pixels; null keeps the processor's value"
    )

    lora: Lora | None = Field(
        default=None, description="train an adapter in place of the weights; null trains the weights themselves"
    )
    train_vision: bool = Field(
        default=True, description="train the vision tower; a frozen one encodes an image once and keeps the features"
    )
    feature_cache: float = Field(
        default=1024.0, ge=0, description="features of a frozen vision tower to keep, in megabytes of the device"
    )
    masters: Literal["fp32", "stochastic"] = Field(
        default="fp32",
        description="where bfloat16 weights take their steps: in fp32 copies, or in place and rounded at random",
    )
    compile: bool = Field(
        default=False,
        description="compile decoder layers and vision blocks on CUDA: a minute per width of row once, then faster "
        "steps",
    )
    kernels: Literal["none", "liger", "auto"] = Field(
        default="none",
        description="fused kernels for norms and feed-forward layers: liger, or auto for liger where it can run",
    )
    reference: Literal["auto", "device", "cpu"] = Field(
        default="auto",
        description="where the frozen copy for the KL term lives; auto: none under LoRA, where the adapter is switched "
        "off, else on the device",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Model:
        if self.masters == "stochastic" and self.dtype != "bfloat16":
            raise ValueError(f"masters: stochastic rounds bfloat16 weights, but dtype is {self.dtype}")
        if self.lora is not None and self.reference != "auto":
            raise ValueError("with lora the reference is the adapter switched off; leave reference at auto")
        if self.lora is not None and self.lora.targets == "all" and not self.train_vision:
            raise ValueError("lora.targets: all adapts the vision tower, which train_vision: false freezes")
        if self.kernels == "liger" and self.device in ("cpu", "mps"):
            raise ValueError(f"kernels: liger needs cuda, but device is {self.device}; auto leaves them out")
        if self.kernels == "liger" and self.compile:
            raise ValueError("kernels: liger and compile both fuse these layers; choose one")
        return self

    @model_validator(mode="after")
    def _pixels_in_order(self) -> Model:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels must not exceed max_pixels")
        return self


class Strata(Section):
    """How a batch of records is split."""

    regions: Share = Field(description="share of the records of a step that carry regions, between 0 and 1")


class Data(Section):
    """Where records come from and how many enter a step."""

    train: str = Field(
        default="scenes:hard",
        min_length=1,
        description="training records: a .jsonl or .parquet file, or `scenes:LEVEL` with LEVEL easy, hard or zoom",
    )
    validation: str | None = Field(
        default=None, description="held-out records for evaluation, same forms as `train`; null for none"
    )
    types: Names | None = Field(
        default=None,
        description="question types of the scenes to draw, taking turns: mark, count, relation, region; null for mark",
    )
    reader: str = Field(
        default="ours",
        min_length=1,
        description="reader of a file: a name of the readers table, or `package.module:function`",
    )
    image_root: str | None = Field(
        default=None, description="folder that relative image paths start from; null for the folder of the data file"
    )
    frame: FrameName | None = Field(
        default=None,
        description="coordinate frame of the boxes; null for what the rows declare, else original pixels xyxy",
    )
    limit: int | None = Field(default=None, ge=1, description="use only the first so many records; null for all")
    shuffle: bool = Field(default=True, description="draw the records in a new order in every epoch")
    workers: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="threads that prepare images ahead, with the same result; null for 4 on CUDA and none elsewhere",
    )
    records_per_step: int = Field(
        default=32, ge=1, le=65536, description="records per training step, each at most once"
    )
    strata: Strata | None = Field(default=None, description="fixed shares per batch; null draws all records alike")


class Optim(Section):
    """The optimiser (AdamW) and how a rollout batch is cut into updates."""

    lr: float = Field(default=1e-6, gt=0, le=1, description="peak learning rate (eta)")
    warmup_steps: int = Field(default=0, ge=0, description="training steps of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="decoupled weight decay (lambda)")
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = Field(
        default=(0.9, 0.999), description="decay of the two moment estimates (beta1, beta2)"
    )
    clip_norm: float = Field(
        default=1.0, gt=0, description="largest gradient norm; larger gradients are scaled down to it"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="learning rate after warm-up: constant, or falling to zero at the last step"
    )
    inner_steps: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="optimiser steps per rollout batch; each takes an equal part of whole groups",
    )
    epochs: int = Field(default=1, ge=1, le=64, description="passes over each rollout batch (PPO epochs, mu)")
    states: Literal["fp32", "8bit"] = Field(
        default="fp32", description="number format of the moment estimates: 4 bytes each, or 1 in blocks of 256"
    )


class DynamicSampling(Section):
    """Replacement of groups whose rollouts all score the same."""

    max_rounds: int = Field(
        default=0,
        ge=0,
        le=64,
        description="extra sampling rounds that replace flat groups; 0 keeps them; the cost is counted",
    )


class Train(Section):
    """The loop: how long, from which seed, what is written when."""

    steps: int = Field(default=100, ge=0, description="training steps")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of data order, sampling and evaluation order")
    checkpoint_every: int = Field(default=50, ge=0, description="steps between checkpoints; 0 saves only the last")
    keep: int = Field(default=2, ge=1, description="newest checkpoints that stay on disk, beside the best")
    log_groups_every: int = Field(default=10, ge=0, description="steps between logged rollouts; 0 logs none")
    log_groups: int = Field(default=4, ge=0, description="groups written to rollouts.jsonl at a logged step")
    log_attention: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="where the replies of logged groups look, for the page; one more pass over them. auto: where the "
        "method measures attention or changes images",
    )
    evaluate_every: int = Field(
        default=0, ge=0, description="steps between evaluations; 0 evaluates at start and end only"
    )
    dynamic_sampling: DynamicSampling = Field(
        default=DynamicSampling(max_rounds=0), description="replacement of groups without signal"
    )
    mask_truncated: bool = Field(default=False, description="rollouts cut by max_new_tokens carry no loss")
    old_logprobs: Literal["learner", "sampler", "auto"] = Field(
        default="auto",
        description="origin of log pi_old: a scoring pass of the learner, the sampler's record, or auto: none where "
        "the only update is on-policy, else the learner",
    )
    token_budget: int = Field(default=8192, ge=64, description="tokens (text and visual) packed into one forward pass")
    parallel: Literal["auto", "fsdp", "ddp"] = Field(
        default="auto",
        description="weights on several processes (torchrun): fsdp holds a share on each, ddp a whole copy; auto: fsdp "
        "from half a billion trained parameters on",
    )
    timeout: float = Field(
        default=1800.0, gt=0, description="seconds that a process waits for another before the run ends"
    )


class Evaluation(Section):
    """What is measured on held-out records at the start, at the end and in between."""

    data: str | None = Field(default=None, description="records to evaluate on; null for `data.validation`")
    n: int = Field(default=512, ge=1, description="records per mode")
    modes: Annotated[tuple[Mode, ...], Field(strict=False)] = Field(
        default=("textual", "grounded"),
        description="modes of inference: textual, grounded, crops, crops+union, turns, grit",
    )
    crops: ModeConfig = Field(default=ModeConfig(), description="how the crops of a mode are cut and shown")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed that chooses the records and shuffles options")
    temperature: float = Field(
        default=0.0, ge=0, le=10, description="sampling temperature; 0 takes the likeliest token"
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="longest reply in tokens; null for `sampling.max_new_tokens`"
    )
    faithfulness: bool = Field(
        default=False,
        description="also measure whether replies use the evidence: accuracy with the regions filled against as much "
        "elsewhere, dependence on the image, attention; three times more answers",
    )


class Track(Section):
    """Where metrics go beside events.jsonl and the console."""

    sinks: Annotated[tuple[Literal["trackio", "wandb", "tensorboard"], ...], Field(strict=False)] = Field(
        default=(), description="trackers that also receive the metrics"
    )
    project: str = Field(default="sightline", min_length=1, description="project name shown by the tracker")


class Alarms(Section):
    """Health limits. An alarm rings when a limit is passed for `patience` steps in a row; null switches it off."""

    reward_std_min: float | None = Field(
        default=0.01, ge=0, description="least mean standard deviation of the reward within groups"
    )
    box_rate_min: Share | None = Field(default=0.3, description="least share of grounded replies with a valid box")
    masked_max: Share | None = Field(
        default=0.5, description="largest share of the rollouts of a stream that a failed judgement masks"
    )
    kl_max: float | None = Field(
        default=1.0,
        gt=0,
        description="largest KL from the start per token, in nats; silent with method.objective.kl 0, where the KL is "
        "not measured (policy/shift is no substitute: it starts anew at every batch)",
    )
    empty_answer_max: Share | None = Field(default=0.3, description="largest share of replies without an answer")
    full_image_box_max: Share | None = Field(
        default=0.3, description="largest share of boxes that cover nearly the whole image"
    )
    boxes_per_reply_max: float | None = Field(default=16.0, gt=0, description="largest mean number of boxes in a reply")
    patience: int = Field(default=3, ge=1, description="steps in a row that must pass the limit")
