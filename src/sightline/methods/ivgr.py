"""iVGR: Zhang et al., Internalizing Visually Grounded Reasoning for MLLMs with RL, arXiv 2605.31096 (ICML 2026).

Objective. A record with regions is asked twice, N rollouts each: the *grounded* stream must write boxes while it
reasons, the *textual* stream reasons in words only. Both are trained by GRPO with baselines of their own on

    R_grounded = R_format + R_accuracy + R_box
    R_textual  = R_format + R_accuracy + R_consistency.

R_box is the dual IoU of written and gold boxes. R_consistency in {0, 0.3, 0.7, 1} is a judge's verdict on whether the
textual reasoning agrees with the *reference*: the reasoning of the best grounded rollout of this record in the archive,

    reference = argmax R_box over all steps so far, among rollouts with R_accuracy = 1, R_format = 1 and R_box >= tau.

So what the policy learns to see by pointing, it learns to say without pointing; at inference only the textual stream is
used. Records without regions have a *general* stream, R_format + w R_accuracy. The preset `release` scores like the
released code, which differs from the paper; docs/methods/ivgr.md lists every difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sightline.archive import ArchiveConfig, record_key
from sightline.credit.config import ObjectiveConfig, Settings
from sightline.language.parse import strict_read, without_boxes
from sightline.methods.base import (
    Context,
    Method,
    MethodConfig,
    Stream,
    StreamConfig,
    in_order,
    score_table,
    verdicts,
)
from sightline.rewards import release
from sightline.rewards.answer import accuracies
from sightline.rewards.boxes import box_iou, box_validity
from sightline.rewards.consistency import consistency, consistency_requests
from sightline.rewards.format import think_answer_format
from sightline.types import Group, Reading, Record, Reference, Score, Scores

__all__ = ["IVGR", "IVGRConfig"]


class Streams(Settings):
    """Rollouts and loss weight of each stream. All are group-normalised by themselves."""

    grounded: StreamConfig = Field(default=StreamConfig(), description="reasoning that writes boxes; has regions")
    textual: StreamConfig = Field(default=StreamConfig(), description="reasoning in words; has regions")
    general: StreamConfig = Field(default=StreamConfig(), description="reasoning in words; records without regions")


class Weights(Settings):
    """Weight of each reward term."""

    format: float = Field(default=1.0, ge=0, description="think block, then answer block (R_format)")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right (R_accuracy)")
    box: float = Field(default=1.0, ge=0, description="overlap of written and gold boxes (R_box)")
    validity: float = Field(default=0.0, ge=0, description="share of well-formed boxes; in the release only")
    consistency: float = Field(default=1.0, ge=0, description="agreement with the reference; 0 asks no judge")
    general_accuracy: float = Field(default=1.0, ge=0, description="R_accuracy in the general stream")


class Boxes(Settings):
    """How boxes are compared."""

    match: Literal["dual", "recall", "precision", "hungarian"] = Field(default="dual", description="matching in R_box")
    duplicate_iou: float = Field(default=0.9, gt=0, le=1, description="two boxes above this IoU are duplicates")
    zero_duplicates: bool = Field(default=False, description="a reply that repeats a box has R_box = 0")


class References(ArchiveConfig):
    """Which grounded rollouts become references. `policy: current_step` is the paper's ablation without archive."""

    min_box: float = Field(default=0.3, gt=0, le=1, description="least R_box of a reference (tau)")
    require_format: bool = Field(default=True, description="a reference needs R_format = 1")


class Consistency(Settings):
    """Guards on R_consistency; all are off in the paper."""

    gate_on_correct: bool = Field(default=False, description="a wrong textual answer has R_consistency = 0")
    penalise_boxes: bool = Field(default=False, description="a textual reply that writes boxes has R_consistency = 0")
    min_think: int = Field(default=0, ge=0, description="fewer words of reasoning have R_consistency = 0")
    strip_reference_boxes: bool = Field(default=False, description="the judge sees the reference without its boxes")


class IVGRConfig(MethodConfig):
    """iVGR. Presets: `paper` follows the text, `release` the released reward code."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "release": {
                "weights": {"validity": 1.0, "general_accuracy": 1.5},
                "archive": {"require_format": False},
                "reading": "strict",
                "on_judge_failure": "zero",
            }
        }
    )

    name: str = "ivgr"
    preset: Literal["paper", "release"] = Field(default="paper", description="what the other keys default to")
    streams: Streams = Field(default=Streams(), description="rollouts and loss weights")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    boxes: Boxes = Field(default=Boxes(), description="comparison of boxes")
    archive: References = Field(default=References(), description="choice and keeping of references")
    consistency: Consistency = Field(default=Consistency(), description="guards on R_consistency")
    reading: Literal["tolerant", "strict"] = Field(
        default="tolerant", description="strict: replies are read and boxes scored to the letter of the released code"
    )
    on_judge_failure: Literal["mask", "zero"] = Field(
        default="mask", description="mask: the rollout leaves its group; zero: all rewards of the record are 0"
    )
    objective: ObjectiveConfig = Field(default=ObjectiveConfig(kl=0.01), description="what the learner minimises")

    @model_validator(mode="after")
    def _strict_reading_has_no_choice_of_boxes(self) -> IVGRConfig:
        ignored = [f"boxes.{name}" for name, value in Boxes() if getattr(self.boxes, name) != value]
        ignored += ["consistency.strip_reference_boxes"] if self.consistency.strip_reference_boxes else []
        if self.reading == "strict" and ignored:
            raise ValueError(f"reading: strict ignores {', '.join(ignored)}; leave it out or set reading: tolerant")
        return self


class IVGR(Method[IVGRConfig]):
    """Two streams, a reward across them, and a memory of the best grounded reasoning."""

    Config = IVGRConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:
        streams = self.config.streams
        if not record.regions:
            return (streams.general.stream("general"),)
        textual = streams.textual.stream("textual", reads_archive=self.config.weights.consistency > 0)
        return (streams.grounded.stream("grounded"), textual)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        scores = in_order(group, {name: self._stream(name, part, context) for name, part in group.by_stream()})
        return _zero_on_failure(scores, group.scored) if self.config.on_judge_failure == "zero" else scores

    def references(self, group: Group) -> list[Reference]:
        rules, part, found = self.config.archive, group["grounded"], []
        for reading, scores in zip(part.readings, part.scores, strict=True):
            value = {name: term.value for name, term in scores.terms.items()}
            is_right = value["accuracy"] == 1 and (value["format"] == 1 or not rules.require_format)
            if is_right and value["box"] >= rules.min_box:
                rank = (value["accuracy"], value["box"])
                boxes = tuple(box.box for box in reading.boxes if box.is_valid)
                text = self._reasoning(reading)
                found.append(Reference(key=record_key(group.record), text=text, boxes=boxes, rank=rank, scores=value))
        return found

    def _stream(self, stream: str, part: Group, context: Context) -> tuple[Scores, ...]:
        """Every term of the rollouts of one stream."""
        is_strict = self.config.reading == "strict"
        terms = _released_terms(stream, part, context) if is_strict else self._terms(stream, part, context)
        if stream == "textual" and self.config.weights.consistency > 0:
            judged = _released_consistency if is_strict else _judged_consistency
            terms["consistency"] = self._guarded(judged(part, context), terms["accuracy"], part.readings)
        weights = self.config.weights.model_dump()
        if stream == "general":
            weights["accuracy"] = weights["general_accuracy"]
        return score_table(weights, **terms)

    def _terms(self, stream: str, part: Group, context: Context) -> dict[str, list[Score]]:
        """R_format, R_accuracy, and R_box in the grounded stream; boxes are compared in original pixels."""
        terms = {
            "format": [think_answer_format(reading) for reading in part.readings],
            "accuracy": accuracies(part.readings, part.record, context.judge),
        }
        if stream == "grounded":
            rules = self.config.boxes
            valid = [box_validity(reading, rules.duplicate_iou) for reading in part.readings]
            boxes = [box_iou(reading, part.record, match=rules.match) for reading in part.readings]
            if rules.zero_duplicates:
                boxes = [
                    v if r.boxes and not v.value else b for r, v, b in zip(part.readings, valid, boxes, strict=True)
                ]
            terms |= {"box": boxes, "validity": valid}
        return terms

    def _guarded(self, scores: list[Score], accuracy: list[Score], readings: Sequence[Reading]) -> list[Score]:
        """R_consistency, zero where an optional guard forbids it."""
        rules = self.config.consistency

        def guarded(score: Score, right: Score, reading: Reading) -> Score:
            if rules.gate_on_correct and right.value < 1 and not right.masked:
                return Score(0.0, "the answer is wrong")
            if rules.penalise_boxes and reading.boxes:
                return Score(0.0, "a textual reply wrote boxes")
            if len((reading.think or "").split()) < rules.min_think:
                return Score(0.0, f"fewer than {rules.min_think} words of reasoning")
            return score

        return [guarded(*row) for row in zip(scores, accuracy, readings, strict=True)]

    def _reasoning(self, reading: Reading) -> str:
        """What a judge will read of a reference."""
        if self.config.reading == "strict":
            return strict_read(reading.text).think or ""
        if self.config.consistency.strip_reference_boxes and "think" in reading.sections:
            return without_boxes(reading, reading.sections["think"]).strip()
        return reading.think or ""


def _judged_consistency(part: Group, context: Context) -> list[Score]:
    requests = consistency_requests(part.readings, part.record, part.reference, context.frame)
    return consistency(verdicts(context.judge, requests), part.reference)


def _released_terms(stream: str, part: Group, context: Context) -> dict[str, list[Score]]:
    """The same terms as the released code computes them: strict reading, gold boxes rounded to model coordinates."""
    read = [strict_read(reading.text) for reading in part.readings]
    judged = verdicts(context.judge, [release.release_answer_request(strict, part.record) for strict in read])
    terms = {
        "format": [release.release_format(strict) for strict in read],
        "accuracy": [release.release_accuracy(*pair) for pair in zip(read, judged, strict=True)],
    }
    if stream == "grounded":
        gold = release.release_gold(part.record, context.frame)
        terms["box"] = [release.release_dual_iou(strict, gold) for strict in read]
        terms["validity"] = [release.release_validity(strict, gold) for strict in read]
    return terms


def _released_consistency(part: Group, context: Context) -> list[Score]:
    read = [strict_read(reading.text) for reading in part.readings]
    text = part.reference.text if part.reference else None
    requests = [release.release_consistency_request(s, part.record, text, context.frame) for s in read]
    return [
        release.release_consistency(s, text, v) for s, v in zip(read, verdicts(context.judge, requests), strict=True)
    ]


_LOST = Score(0.0, "a judgement of this record failed")


def _zero_on_failure(scores: tuple[Scores, ...], earlier: Group | None) -> tuple[Scores, ...]:
    """If one judgement failed, here or in the streams scored earlier, nothing counts."""
    seen = (*scores, *(earlier.scores if earlier else ()))
    if not any(s.is_masked or _LOST in s.terms.values() for s in seen):
        return scores
    return tuple(replace(s, terms=dict.fromkeys(s.terms, _LOST)) for s in scores)
