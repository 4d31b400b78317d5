"""How a question is put to a policy: textual | grounded | crops | crops+union | turns | grit.

`crops` is two passes. The grounded pass localises in text; each box is cut out of the *original* image; the second
pass answers over the original images and the crops. `crops+union` adds the least rectangle that covers all crops.
`turns` is a conversation: the policy asks for regions, one reply after the other, until it answers. Where nothing was
looked at and nothing answered, the textual prompt is asked instead, and the result says so. `grit` is one pass that
thinks with boxes, rethinks and answers.

`ask`, `eval` and the evaluation during training all call `answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from sightline.errors import UserError
from sightline.sampling.crops import Crop, CropPlan, cut_crops, plan_crops, shown_crops
from sightline.tools.settings import ModeConfig
from sightline.types import ImageRef, Prompt, ReadBox, Reading, Record, Rollout

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame
    from sightline.sampling.base import Request, Sampler, SamplingSettings
    from sightline.tools.rule import CropTurns

__all__ = [
    "CROP_MODES",
    "FALLBACK",
    "MODES",
    "Crop",
    "CropPlan",
    "Mode",
    "ModeConfig",
    "ModeResult",
    "Speaker",
    "answer",
    "plan_crops",
    "turn_rule",
]

Mode = Literal["textual", "grounded", "crops", "crops+union", "turns", "grit"]
MODES: tuple[str, ...] = get_args(Mode)
CROP_MODES = ("crops", "crops+union")
FALLBACK = "no usable box: answered from the textual prompt"


_Pass = tuple[Rollout, Reading]
_Sampled = Callable[[Sequence["Request"]], list[_Pass]]


class Speaker(Protocol):
    """How a policy is spoken to: the frame of its boxes and the wording of its prompts. A loaded policy is one."""

    @property
    def frame(self) -> Frame: ...
    @property
    def style(self) -> Literal["full", "compact"]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """One answered Record. `rollouts` and `readings` run in parallel, one entry per pass; the last pass answers.

    A conversation is one pass, whatever its turns.
    """

    record: Record
    mode: str
    rollouts: tuple[Rollout, ...]
    readings: tuple[Reading, ...]
    crops: tuple[Crop, ...] = ()
    note: str = ""

    @property
    def reading(self) -> Reading:
        return self.readings[-1]

    @property
    def boxes(self) -> tuple[ReadBox, ...]:
        """The boxes of the first pass, the one that looks at the original images; of a conversation, of all turns."""
        return self.readings[0].boxes

    @property
    def answer(self) -> str:
        """The final answer; empty where there is none, or where the last turn of a conversation asks for more."""
        from sightline.answers.extract import final_answer

        reading = self.reading
        is_open = reading.answer is None and ("box" in reading.sections or "tool_call" in reading.sections)
        return "" if self.mode == "turns" and is_open else final_answer(reading)


def answer(
    sampler: Sampler,
    records: Sequence[Record],
    mode: str,
    config: ModeConfig | None = None,
    *,
    speaker: Speaker,
    settings: SamplingSettings,
    seed: int = 0,
    step: int = 0,
    known: Sequence[ModeResult] = (),
) -> list[ModeResult]:
    """Answers each record in `mode`, one rollout per pass; results stand in the order of the records.

    Args:
        known: results of another mode with boxes on the same records, seed and step. A crop mode starts from their
            grounded replies, and where the same crops come out, takes their answers: it would sample the same again.

    Raises:
        UserError: for an unknown mode.
    """
    from sightline.sampling.base import Request

    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}", hint=f"one of {', '.join(MODES)}")
    config = config or ModeConfig()

    def one_pass(requests: Sequence[Request]) -> list[_Pass]:
        groups = sampler.sample(requests, settings, seed=seed, step=step)
        return [(group[0], _read(group[0], speaker)) for group in groups]

    if mode == "turns":
        return _conversations(records, config, speaker, seed, one_pass)
    if mode in CROP_MODES and known:
        first = [(result.rollouts[0], result.readings[0]) for result in known]
    else:
        stream = mode if mode in ("textual", "grit") else "grounded"
        asked = [replace(_prompt(record, stream, speaker), forced_prefix=config.forced_prefix) for record in records]
        first = one_pass([Request(prompt) for prompt in asked])
    results = [
        ModeResult(record=record, mode=mode, rollouts=(rollout,), readings=(reading,))
        for record, (rollout, reading) in zip(records, first, strict=True)
    ]
    return _looked_again(results, known, config, speaker, seed, one_pass) if mode in CROP_MODES else results


def _looked_again(
    results: Sequence[ModeResult], known: Sequence[ModeResult], config: ModeConfig, speaker: Speaker, seed: int,
    one_pass: _Sampled,
) -> list[ModeResult]:  # fmt: skip
    """The second pass of a crop mode; what `known` has seen already is taken over."""
    from sightline.sampling.base import Request

    results = [_look_closer(result, config, seed) for result in results]
    same = {i for i, (result, other) in enumerate(zip(results, known, strict=False)) if _shows_the_same(result, other)}
    asked = [_second_prompt(result, config, speaker) for i, result in enumerate(results) if i not in same]
    fresh = iter(one_pass([Request(prompt) for prompt in asked]))
    second = [(known[i].rollouts[1], known[i].readings[1]) if i in same else next(fresh) for i in range(len(results))]
    return [_with_pass(result, later) for result, later in zip(results, second, strict=True)]


def _conversations(
    records: Sequence[Record], config: ModeConfig, speaker: Speaker, seed: int, one_pass: _Sampled
) -> list[ModeResult]:
    """One conversation per record, then the textual pass of those that came to nothing."""
    from sightline.sampling.base import Request

    rule = turn_rule(config, seed)
    first = one_pass([Request(_prompt(r, rule.syntax.template, speaker), turns=rule) for r in records])
    results = [_talked(record, *talk, rule) for record, talk in zip(records, first, strict=True)]
    lost = [i for i, result in enumerate(results) if result.note == FALLBACK]
    again = one_pass([Request(_prompt(records[i], "textual", speaker)) for i in lost]) if lost else []
    for i, later in zip(lost, again, strict=True):
        results[i] = _with_pass(results[i], later)
    return results


def turn_rule(config: ModeConfig, seed: int = 0) -> CropTurns:
    """The rule of the conversations of the mode `turns`.

    Example:
        >>> turn_rule(ModeConfig()).syntax.template, turn_rule(ModeConfig()).tool.settings.policy
        ('ground_r1', 'lenient')
    """
    from sightline.tools.crop import CropTool
    from sightline.tools.rule import CropTurns
    from sightline.tools.syntax import syntax_named

    turns = config.turns
    return CropTurns(
        tool=CropTool(config.crops(turns.policy)),
        syntax=syntax_named(turns.syntax, is_parity=turns.policy == "parity"),
        max_turns=turns.max_turns,
        repeat_template=turns.repeat_template,
        control=config.control,
        seed=seed,
    )


def _talked(record: Record, rollout: Rollout, reading: Reading, rule: CropTurns) -> ModeResult:
    """A conversation with its crops, and what went differently than asked."""
    readings = reading.turns or (reading,)
    result = ModeResult(record=record, mode="turns", rollouts=(rollout,), readings=(reading,))
    followed = rule.looks(rollout.prompt, readings)[: sum(turn.role == "user" for turn in rollout.turns)]
    looks = [look for turn in followed for look in turn]
    if not result.answer and all(look.shown is None or look.is_whole for look in looks):
        return replace(result, note=FALLBACK)
    refused = dict.fromkeys(look.problem for look in looks if look.shown is None)
    notes = [f"not shown: {problem}" for problem in refused]
    if rule.control != "none" and looks:
        notes.append(f"control: {rule.control}")
    if not result.answer:
        notes.append(f"no answer within {len(readings)} turns")
    return replace(result, crops=shown_crops(rule, rollout, readings), note="; ".join(notes))


def _with_pass(result: ModeResult, later: _Pass) -> ModeResult:
    rollout, reading = later
    return replace(result, rollouts=(*result.rollouts, rollout), readings=(*result.readings, reading))


def _look_closer(result: ModeResult, config: ModeConfig, seed: int) -> ModeResult:
    """The result with the crops that its second pass shows, or with the note of the fall-back."""
    sizes = [image.size for image in result.record.images]
    plan = plan_crops(result.boxes, sizes, config, adds_union=result.mode == "crops+union")
    if not plan.pieces:
        return replace(result, note=FALLBACK)
    notes = [f"{plan.left_out} boxes beyond the first {config.max_crops} left out"] if plan.left_out else []
    if config.control != "none":
        notes.append(f"control: {config.control}")
    return replace(result, crops=cut_crops(plan.pieces, result.record, config, seed), note="; ".join(notes))


def _shows_the_same(result: ModeResult, other: ModeResult) -> bool:
    """Whether the second pass of `result` would repeat the one that `other` has made."""
    places = [[(crop.image, crop.box) for crop in one.crops] for one in (result, other)]
    return len(other.rollouts) == 2 and places[0] == places[1] and result.note == other.note


def _second_prompt(result: ModeResult, config: ModeConfig, speaker: Speaker) -> Prompt:
    if result.note == FALLBACK:
        return _prompt(result.record, "textual", speaker)
    crops = tuple(crop.pixels for crop in result.crops)
    originals = result.record.images
    images = (*originals, *crops) if config.order == "original-first" else (*crops, *originals)
    return _prompt(result.record, "crops", speaker, images)


def _prompt(record: Record, stream: str, speaker: Speaker, images: tuple[ImageRef, ...] | None = None) -> Prompt:
    from sightline.language.prompts import prompt

    return prompt(record, stream, stream, speaker.style, images=images, frame=speaker.frame)


def _read(rollout: Rollout, speaker: Speaker) -> Reading:
    from sightline.language.parse import read_turns

    sizes = [image.size for image in rollout.prompt.images]
    said = [turn.text for turn in rollout.turns if turn.role == "assistant"] if len(rollout.turns) > 1 else []
    text = rollout.text.removeprefix(rollout.prompt.forced_prefix)
    return read_turns(said or [text], speaker.frame, sizes, finish=rollout.finish)
