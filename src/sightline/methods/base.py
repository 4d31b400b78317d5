"""What a method decides. Every member has a default, and the defaults together are plain GRPO (arXiv 2402.03300).

A method sees nouns and returns nouns: which streams a Record has, how a Group scores, how scores become credit, what
the loss is. It knows no sampler, no trainer and no device::

    class Brevity(Method):
        def score(self, group, context):
            lengths = [int(rollout.sampled.sum()) for rollout in group.rollouts]
            return score_table(brevity=[Score(1 - min(n, 100) / 100, f"{n} tokens") for n in lengths])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, cast, final, runtime_checkable

from pydantic import BaseModel, Field, model_validator

from sightline.credit.config import AnchorConfig, CreditConfig, FocusConfig, ObjectiveConfig, Settings
from sightline.credit.group import credit_for
from sightline.rewards.answer import accuracies
from sightline.rewards.format import think_answer_format
from sightline.types import Credit, Group, NextTurn, Prompt, Reading, Record, Reference, Score, Scores

if TYPE_CHECKING:
    from sightline.answers.judge import Judge, JudgeRequest, Verdict
    from sightline.archive import Archive
    from sightline.geometry.frames import Frame
    from sightline.objectives import Loss, LossBatch, LossOutputs

__all__ = [
    "Context",
    "Method",
    "MethodConfig",
    "NextTurn",
    "Probe",
    "Stage",
    "Stream",
    "StreamConfig",
    "TurnRule",
    "in_order",
    "score_table",
    "verdicts",
]


@runtime_checkable
class TurnRule(Protocol):
    """Decides after each turn of the policy whether a conversation goes on."""

    def next(self, prompt: Prompt, readings: Sequence[Reading]) -> NextTurn | None:
        """The next turn of the user, or None to stop. `readings` are the policy's turns so far, at least one."""
        ...


@runtime_checkable
class Probe(Protocol):
    """Something the learner measures about each Rollout in a scoring pass."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Stream:
    """One way to ask a Record: a template, how many Rollouts, and how they are scored and weighed.

    Attributes:
        name: names the group of its Rollouts, which have a baseline of their own.
        template: name of the instruction, see `language/prompts.py`.
        n: Rollouts per Record.
        branches: Rollouts per level of the sampling tree; their product is n. Empty means `(n,)`.
        turns: what happens after a turn; None for a single turn.
        forced_prefix: text that begins every reply and carries no loss.
        sampling: settings in place of the recipe's, e.g. `{"max_new_tokens": 16}`; the temperature is the run's.
        loss_weight: weight of the stream in the loss.
        reads_archive: scored in the second phase, when the archive has seen the other streams.
    """

    name: str
    template: str
    n: int
    branches: tuple[int, ...] = ()
    turns: TurnRule | None = None
    forced_prefix: str = ""
    sampling: Mapping[str, Any] | None = None
    loss_weight: float = 1.0
    reads_archive: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", self.branches or (self.n,))
        if math.prod(self.branches) != self.n:
            raise ValueError(f"stream {self.name!r}: branches {self.branches} do not multiply to n = {self.n}")


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training. Stages run in order.

    Attributes:
        kind: replies that are given, or replies that are rewarded.
        steps: None for what the recipe says.
        anchor: a supervised stage in which attention learns from regions; the token that `focus` describes is made
            before training, also where `steps` is 0.
        focus: the token whose rows `anchor` supervises.
        lr: learning rate in place of the recipe's.
        restarts: begins with a fresh optimiser and a learning-rate schedule of its own.
    """

    kind: Literal["supervised", "reinforcement"] = "reinforcement"
    steps: int | None = None
    anchor: AnchorConfig | None = None
    focus: FocusConfig | None = None
    lr: float | None = None
    restarts: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What scoring may use besides the group: a judge, the archive (read only), the policy's frame, the step.

    `pieces` gives what each of some token ids decodes to, "" for the marks of the chat format; None without a policy.
    """

    judge: Judge
    archive: Archive
    frame: Frame
    step: int = 0
    pieces: Callable[[Sequence[int]], Sequence[str | bytes]] | None = None


class StreamConfig(Settings):
    """The part of a stream that a recipe may change."""

    n: int = Field(default=5, ge=1, le=4096, description="rollouts per record (N)")
    loss_weight: float = Field(default=1.0, ge=0, description="weight of the stream in the loss")

    def stream(self, name: str, *, reads_archive: bool = False) -> Stream:
        """The stream of this name, asked with the template of the same name."""
        return Stream(name, name, self.n, loss_weight=self.loss_weight, reads_archive=reads_archive)


class MethodConfig(Settings):
    """What every method has. A subclass with a field `preset` lists in `presets` what each sets; explicit keys win."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    name: str = Field(default="", description="the method: a name of the table, or `package.module:Class`")
    credit: CreditConfig = Field(default=CreditConfig(), description="how rewards become advantages")
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(), description="what the learner minimises")
    cold_start: int = Field(
        default=0, ge=0, description="supervised steps on the records' own replies before reinforcement begins"
    )

    @property
    def acts_without_advantage(self) -> bool:
        """A `loss` of the method's own also moves Rollouts of zero advantage, so the update must not leave them out."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _under_explicit_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        field_of_preset = cls.model_fields.get("preset")
        if field_of_preset is not None:
            values = _merged(cls.presets.get(str(values.get("preset", field_of_preset.default)), {}), values)
        return _completed(cls, values)


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


class Method(Generic[ConfigT]):
    """The seven decisions of a method. Override what the paper changes, and nothing else."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: ConfigT | None = None) -> None:
        self.config: ConfigT = config if config is not None else cast(ConfigT, self.Config())

    def streams(self, record: Record) -> tuple[Stream, ...]:
        """How a Record is asked. Default: textual reasoning, five Rollouts."""
        del record
        return (StreamConfig().stream("textual"),)

    def probes(self) -> tuple[Probe, ...]:
        """What the learner measures before scoring. Default: nothing."""
        return ()

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        """The reward terms of each Rollout of the group. Default: format + accuracy."""
        return score_table(
            format=[think_answer_format(reading) for reading in group.readings],
            accuracy=accuracies(group.readings, group.record, context.judge),
        )

    def references(self, group: Group) -> Sequence[Reference]:
        """Candidates for the archive among scored Rollouts (`step` is filled in by the loop). Default: none."""
        del group
        return ()

    def credit(self, group: Group) -> tuple[Credit, ...]:
        """Advantage and weight of every token of a scored group. Default: group-relative, each stream by itself."""
        return credit_for(group, **self.config.credit.model_dump())

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        """What the learner minimises. Default: clipped surrogate + KL to the reference."""
        from sightline.objectives import policy_loss

        return policy_loss(batch, outputs, self.config.objective)

    def stages(self) -> tuple[Stage, ...]:
        """The parts of training. Default: `cold_start` supervised steps, then reinforcement learning."""
        supervised = Stage("supervised", self.config.cold_start)
        return (supervised, Stage()) if self.config.cold_start else (Stage(),)

    @final
    def stream_weights(self, groups: Iterable[Group]) -> dict[str, float]:
        """Loss weight of every stream that the records of these groups have."""
        return {s.name: s.loss_weight for group in groups for s in self.streams(group.record)}


def score_table(weights: Mapping[str, float] | None = None, **terms: Sequence[Score]) -> tuple[Scores, ...]:
    """Columns of terms -> one Scores per Rollout. Terms of weight zero stay visible and count nothing.

    Example:
        >>> rows = score_table({"box": 0.5}, format=[Score(1.0), Score(0.0)], box=[Score(0.8), Score(0.4)])
        >>> [row.total for row in rows]
        [1.4, 0.2]
    """
    rows = zip(*terms.values(), strict=True)
    named = {name: (weights or {}).get(name, 1.0) for name in terms}
    return tuple(Scores(terms=dict(zip(terms, row, strict=True)), weights=named) for row in rows)


def in_order(group: Group, by_stream: Mapping[str, Sequence[Scores]]) -> tuple[Scores, ...]:
    """Scores that were computed stream by stream, back in the order of the group's Rollouts."""
    queues = {stream: iter(scores) for stream, scores in by_stream.items()}
    return tuple(next(queues[rollout.stream]) for rollout in group.rollouts)


def verdicts(judge: Judge, requests: Sequence[JudgeRequest | None]) -> list[Verdict | None]:
    """One call of the judge for all requests; None where there is nothing to ask."""
    asked = [request for request in requests if request is not None]
    given = iter(judge.judge(asked) if asked else ())
    return [None if request is None else next(given) for request in requests]


def _completed(config: type[BaseModel], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section given in part, by a recipe or a preset, keeps what its own default sets in the rest of it."""
    for key, field_info in config.model_fields.items():
        own, given = field_info.default, values.get(key)
        if isinstance(own, BaseModel) and isinstance(given, Mapping):
            section = _completed(type(own), _merged(own.model_dump(exclude_unset=True), given))
            values = {**values, key: section}
    return values


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result
