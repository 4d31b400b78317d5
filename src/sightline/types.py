"""The nouns: Record -> Prompt -> Rollout -> Reading -> Measurement -> Scores -> Credit, and the Group that holds them.

Everything here is frozen data. A stage of the loop takes nouns and returns new ones. Coordinates are original-image
pixels, `xyxy`, floats, unless a name says otherwise. This module imports neither torch nor transformers.

One step, by example (two streams, five rollouts each)::

    Record(id="s17", question="What color is the mark on the red square?", answer="green", regions=(Region(...),))
    Prompt(record=..., stream="grounded", messages=(Message("user", (ImageSlot(0), "What color ...")),))
    Rollout(prompt=..., branch=(3,), ids=[151, 12, ...], sampled=[True, True, ...], logprobs=[-0.02, ...])
    Reading(text="<think> the red square <box>[...]", answer="green", boxes=(ReadBox(...),), ...)
    Scores({"format": Score(1.0, "one think block, then one answer block"), "box": Score(0.74, "dual IoU 0.74")})
    Credit(advantage=[0.9, 0.9, ...], weight=[1, 1, ...], parts={"advantage": 0.9})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int

__all__ = [
    "AnswerKind",
    "Box",
    "Credit",
    "Finish",
    "Group",
    "ImageRef",
    "ImageSlot",
    "Measurement",
    "Message",
    "NextTurn",
    "Prompt",
    "ReadBox",
    "Reading",
    "Record",
    "Reference",
    "Region",
    "Rollout",
    "Score",
    "Scores",
    "Size",
    "Span",
    "StepStats",
    "Turn",
]

AnswerKind = Literal["option", "yes_no", "number", "text", "text_ocr", "free", "math"]
Finish = Literal["stop", "length"]


class Box(NamedTuple):
    """An axis-aligned box, `x1 <= x2`, `y1 <= y2`, in the pixels of an original image unless stated otherwise."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        """Area, 0 for a reversed or empty box."""
        return max(self.width, 0.0) * max(self.height, 0.0)


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Span(NamedTuple):
    """A half-open range `[start, end)` of characters or tokens; the owner says which."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image before it is opened: a path, or pixels held in memory.

    `size` is the size after the EXIF rotation was applied, the size every box of a Record refers to.
    `digest` identifies the content (sha256 of the file bytes, or of the pixels) and keys caches and archives.
    """

    size: Size
    digest: str
    path: str | None = None
    pixels: np.ndarray | None = field(default=None, compare=False)  # uint8, (height, width, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A gold region: a box in the original pixels of image number `image` of its Record."""

    box: Box
    label: str | None = None
    role: str = "evidence"
    image: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One question about zero or more images, with its answer and, where known, the regions that hold the evidence."""

    id: str
    question: str
    answer: str
    answer_kind: AnswerKind = "text"
    images: tuple[ImageRef, ...] = ()
    options: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Stands in a message where image number `index` of the Prompt is inserted."""

    index: int


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: tuple[str | ImageSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a stream shows the policy for one Record. `images` are the Record's, then any that the mode adds (crops)."""

    record: Record
    stream: str
    messages: tuple[Message, ...]
    images: tuple[ImageRef, ...] = ()
    forced_prefix: str = ""


@dataclass(frozen=True, slots=True)
class NextTurn:
    """A turn of the user that a rule inserts after a reply: its images, then its text.

    `boxes`: where each image was cut out, in original pixels of the Prompt's image 0. `opening`: words ahead of them.
    """

    text: str
    images: tuple[ImageRef, ...] = ()
    boxes: tuple[Box, ...] = ()
    opening: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a Rollout.

    Attributes:
        role: who wrote it.
        span: its tokens within `Rollout.ids`, the marks of the chat format included.
        text: what it says, without those marks.
        images: the images it added, as indices into Prompt.images + Rollout.images.
        boxes: where those were cut out, in original pixels of the Prompt's first image; one per image, or none.
        finish: `length` where the token limit cut a turn of the policy.
    """

    role: Literal["assistant", "user"]
    span: Span
    text: str = ""
    images: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One root-to-leaf path: everything after the prompt, token-exact.

    Attributes:
        branch: path in the sampling tree, `(i,)` without branching, `(i, j)` with two levels.
        prompt_ids: ids of the prompt, image placeholders expanded.
        ids: ids after the prompt, exactly as sampled or inserted (later turns of the user).
        sampled: which of `ids` the policy sampled; the others carry no loss.
        logprobs: log-probability of each sampled id under the sampling distribution; 0 where not sampled.
        images: images added in later turns.
        text: the prompt's forced prefix, then `ids` decoded without the marks that end a turn.
        finish: `stop` where the policy ended its turn, `length` where the token limit cut it.
        forks: offsets in `ids` at which the deeper levels of `branch` begin; tokens before a fork are shared by all
            Rollouts of the Prompt whose `branch` agrees up to there.
    """

    prompt: Prompt
    branch: tuple[int, ...]
    prompt_ids: Int[np.ndarray, "prompt"]
    ids: Int[np.ndarray, "tokens"]
    sampled: Bool[np.ndarray, "tokens"]
    logprobs: Float[np.ndarray, "tokens"]
    text: str
    finish: Finish
    turns: tuple[Turn, ...] = ()
    images: tuple[ImageRef, ...] = ()
    forks: tuple[int, ...] = ()

    @property
    def stream(self) -> str:
        return self.prompt.stream

    @property
    def record(self) -> Record:
        return self.prompt.record


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBox:
    """A box found in a text.

    Attributes:
        box: the box in original pixels, ordered and clamped to its image.
        written: the four numbers as they were written, in the model's frame.
        span: characters of the text that hold it, the surrounding tag included.
        problems: what had to be normalised (`"spaces"`, `"floats"`, `"reversed"`, `"outside"`, `"json"`...).
        is_valid: it has a positive area inside the image.
        image: index of the image it refers to.
    """

    box: Box
    written: tuple[float, float, float, float]
    span: Span
    problems: tuple[str, ...] = ()
    is_valid: bool = True
    image: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a reply says: its sections, boxes and answer. Reading never fails; what is odd stands in `problems`.

    Attributes:
        text: the whole reply.
        sections: first block of each tag that occurs closed, as characters between the tags.
        think: content of the think block (None if there is none).
        answer: content of the answer block, stripped (None if there is none).
        boxes: every box of the reply, in order of appearance.
        problems: e.g. `"no think block"`, `"text before think"`, `"answer twice"`, `"truncated"`.
        turns: of a conversation, the Reading of each turn of the policy; the whole is then the last turn's, except that
            `text` and `boxes` are those of all turns. Empty for a single reply.
    """

    text: str
    sections: Mapping[str, Span] = field(default_factory=dict)
    think: str | None = None
    answer: str | None = None
    boxes: tuple[ReadBox, ...] = ()
    problems: tuple[str, ...] = ()
    turns: tuple[Reading, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the learner measured about one Rollout in a scoring pass; fields stay None or empty unless a method asked.

    Attributes:
        logprobs, entropies: per token of `Rollout.ids`, nats; 0 where not sampled.
        probes: result of each probe by its name, first axis the tokens of `Rollout.ids`.
        maps: attention over the visual tokens of the Prompt's images, (rows, visual), by the name of a probe.
        images: by the name of a probe that intervenes, the images it showed in place of the Prompt's.
    """

    logprobs: Float[np.ndarray, "tokens"] | None = None
    entropies: Float[np.ndarray, "tokens"] | None = None
    probes: Mapping[str, np.ndarray] = field(default_factory=dict)
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, tuple[ImageRef, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """One reward term of one Rollout: a value, one line that says why, and whether a failed judge masks it."""

    value: float
    why: str = ""
    masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All reward terms of one Rollout with their weights; `total` is the weighted sum of the unmasked terms."""

    terms: Mapping[str, Score]
    weights: Mapping[str, float] = field(default_factory=dict)

    def weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)

    @property
    def total(self) -> float:
        return sum(self.weight(name) * s.value for name, s in self.terms.items() if not s.masked)

    @property
    def is_masked(self) -> bool:
        """A term of non-zero weight is masked: the Rollout leaves its group and carries no loss."""
        return any(s.masked and self.weight(name) != 0 for name, s in self.terms.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Advantage and loss weight per token of `Rollout.ids`; `parts` are the scalars the report shows."""

    advantage: Float[np.ndarray, "tokens"]
    weight: Float[np.ndarray, "tokens"]
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A candidate for the archive: the reasoning of a Rollout, its boxes (original pixels) and what ranks it."""

    key: str
    text: str
    boxes: tuple[Box, ...]
    rank: tuple[float, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All Rollouts of one Record, ordered by stream, then branch. The tuples run in parallel.

    `group["grounded"]` is the sub-group of one stream; `group.scored` holds the sub-group that an earlier scoring
    phase finished (streams that read the archive are scored after those that feed it). While credit is given, `peers`
    are all scored groups of the step, this one among them.
    """

    record: Record
    rollouts: tuple[Rollout, ...]
    readings: tuple[Reading, ...]
    measurements: tuple[Measurement, ...] = ()
    scores: tuple[Scores, ...] = ()
    credits: tuple[Credit, ...] = ()
    reference: Reference | None = None
    scored: Group | None = None
    peers: tuple[Group, ...] = field(default=(), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def streams(self) -> tuple[str, ...]:
        """Stream names in order of first appearance."""
        return tuple(dict.fromkeys(r.stream for r in self.rollouts))

    def __getitem__(self, stream: str) -> Group:
        return self.of(stream)

    def of(self, *streams: str) -> Group:
        """The sub-group of the named streams (empty if there are none)."""
        return self.at([i for i, r in enumerate(self.rollouts) if r.stream in streams])

    def at(self, indices: Sequence[int]) -> Group:
        """The sub-group at the given positions."""

        def pick(values: tuple) -> tuple:
            return tuple(values[i] for i in indices) if values else ()

        return replace(
            self,
            rollouts=pick(self.rollouts),
            readings=pick(self.readings),
            measurements=pick(self.measurements),
            scores=pick(self.scores),
            credits=pick(self.credits),
        )

    def by_stream(self) -> Iterator[tuple[str, Group]]:
        for stream in self.streams:
            yield stream, self.of(stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One event line of a run; console, tracker and page are views of it. `metrics` keys are `area/name`."""

    step: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
