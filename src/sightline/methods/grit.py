"""GRIT: Fan et al., Teaching MLLMs to Think with Images, arXiv 2505.15879 (NeurIPS 2025).

Objective. A reply mixes words and boxes in one go: it thinks and writes boxes as JSON, rethinks on what it wrote, and
answers. Over N replies to a record plain GRPO on

    R       = R_format + R_count + R_answer
    R_format = s_st + s_bf        s_st = 1/2 [think pair] + 1/2 [rethink pair],  s_bf = 1/2 [at least one box]
    R_count  = 1/2 [as many boxes as there are things to count]                  counting records only
    R_answer = s_judge + 0.1 s_BLEU                                              s_judge in {0, 1}

with `A_i = (R_i - mean R) / (std R + eps)` and a KL term to the start. No trace of reasoning and no gold box is used:
that boxes come to lie where they should is what the paper shows twenty triplets can do. The preset `release` scores
like the released code, which differs in six terms; docs/methods/grit.md lists every difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sightline.credit.config import CreditConfig, ObjectiveConfig, Settings
from sightline.methods.base import Context, Method, MethodConfig, Stream, StreamConfig, score_table, verdicts
from sightline.rewards import grit, grit_release
from sightline.rewards.answer import accuracies
from sightline.rewards.boxes import box_validity
from sightline.rewards.counting import COUNT_SETS, COUNT_TYPES, count_match, gold_count
from sightline.types import Group, Reading, Record, Score, Scores

__all__ = ["GRIT", "GRITConfig"]

_KNOWN = ("dataset", "type", "aliases")  # what rewards may know of `meta`; the truth of a scene is not among it


class Streams(Settings):
    """The only stream of GRIT."""

    grit: StreamConfig = Field(default=StreamConfig(n=4), description="thinking with boxes, rethinking, answering")


class Weights(Settings):
    """Weight of each reward term; every term lies in [0, 1], repetition in [-1, 1]."""

    tags: float = Field(default=1.0, ge=0, description="think and rethink tags in their places (s_st)")
    box: float = Field(default=0.5, ge=0, description="at least one box before the rethink (s_bf)")
    count: float = Field(default=0.5, ge=0, description="as many boxes as the answer counts (R_count)")
    accuracy: float = Field(default=1.0, ge=0, description="the answer is right (s_judge)")
    bleu: float = Field(default=0.1, ge=0, description="BLEU-1 of the answer with the reference (s_BLEU)")
    answer_tag: float = Field(default=0.0, ge=0, description="the answer tag occurs, and once; in the release only")
    repetition: float = Field(default=0.0, ge=0, description="the text does not repeat itself; in the release only")
    validity: float = Field(default=0.0, ge=0, description="share of well-formed boxes; in neither")


class Counting(Settings):
    """Which records count: those of these data sets or question types whose answer is a whole number."""

    sets: tuple[str, ...] = Field(default=COUNT_SETS, strict=False, description="values of `meta.dataset`")
    types: tuple[str, ...] = Field(default=COUNT_TYPES, strict=False, description="values of `meta.type`")
    boxes: grit.CountAs = Field(
        default="written", description="what counts as a box; valid and distinct ask that it lies in the image"
    )


class Answers(Settings):
    """What becomes of the judge's number."""

    binarise: Literal["half", "positive", "none"] = Field(
        default="half", description="1 from a half on, 1 above zero (release), or the number as it is"
    )
    unjudged: tuple[str, ...] = Field(
        default=(), strict=False, description="records whose data set's name holds one of these earn no accuracy"
    )


class GRITConfig(MethodConfig):
    """GRIT. Presets: `paper` follows the text, `release` the released reward code."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "release": {
                "weights": {"tags": 0.5, "count": 1.0, "answer_tag": 0.5, "repetition": 0.5},
                "answers": {"binarise": "positive", "unjudged": ("ovd",)},
                "reading": "strict",
                "on_judge_failure": "zero",
                "credit": {"eps": 1e-4, "ddof": 1},
            }
        }
    )

    name: str = "grit"
    preset: Literal["paper", "release"] = Field(default="paper", description="what the other keys default to")
    streams: Streams = Field(default=Streams(), description="rollouts of the stream")
    weights: Weights = Field(default=Weights(), description="weight of each reward term")
    counting: Counting = Field(default=Counting(), description="which records earn the count term, and for what")
    answers: Answers = Field(default=Answers(), description="what becomes of the judge's number")
    reading: Literal["tolerant", "strict"] = Field(
        default="tolerant", description="strict: every term is computed to the letter of the released code"
    )
    on_judge_failure: Literal["mask", "zero"] = Field(
        default="mask", description="mask: the rollout leaves its group; zero: its answer earns nothing"
    )
    credit: CreditConfig = Field(default=CreditConfig(eps=1e-8, ddof=0), description="how rewards become advantages")
    objective: ObjectiveConfig = Field(
        default=ObjectiveConfig(kl=0.01, normalisation="sequence"), description="what the learner minimises"
    )

    @model_validator(mode="after")
    def _strict_reading_counts_what_is_written(self) -> GRITConfig:
        if self.reading == "strict" and self.counting.boxes != "written":
            raise ValueError("reading: strict ignores counting.boxes; leave it out or set reading: tolerant")
        return self


class GRIT(Method[GRITConfig]):
    """Format, count and answer on one stream that reasons in words and boxes."""

    Config = GRITConfig

    def streams(self, record: Record) -> tuple[Stream, ...]:  # noqa: ARG002
        return (self.config.streams.grit.stream("grit"),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        group = replace(group, record=_without_truth(group.record))
        gold = gold_count(group.record, self.config.counting.sets, self.config.counting.types)
        released = self.config.reading == "strict"
        terms = _released_terms(group, gold) if released else self._terms(group, gold)
        texts = [reading.text for reading in group.readings]
        terms |= {
            "accuracy": self._accuracy(group, context),
            "answer_tag": [grit_release.release_answer_tag(text) for text in texts],
            "repetition": [
                grit_release.release_repetition(text, rollout.ids[rollout.sampled].tolist())
                for text, rollout in zip(texts, group.rollouts, strict=True)
            ],
            "validity": [box_validity(reading) for reading in group.readings],
        }
        return score_table(self.config.weights.model_dump(), **terms)

    def _terms(self, group: Group, gold: int | None) -> dict[str, list[Score]]:
        """Format, count and BLEU as the paper has them."""
        written = [grit.chain_boxes(reading, self.config.counting.boxes) for reading in group.readings]
        return {
            "tags": [grit.tag_pairs(reading) for reading in group.readings],
            "box": [grit.any_box(count) for count in written],
            **({} if gold is None else {"count": [count_match(count, gold) for count in written]}),
            "bleu": [grit.answer_bleu(reading, group.record) for reading in group.readings],
        }

    def _accuracy(self, group: Group, context: Context) -> list[Score]:
        """s_judge: rules first and the judge for what they leave open; to the letter, the judge for everything."""
        rules = self.config.answers
        dataset = str(group.record.meta.get("dataset", ""))
        if any(name in dataset for name in rules.unjudged):
            return [Score(0.0, f"answers of {dataset} are not judged")] * len(group)
        if self.config.reading == "strict":
            asked = [grit_release.release_answer_request(r.text, group.record) for r in group.readings]
            found = [grit_release.release_answer(verdict) for verdict in verdicts(context.judge, asked)]
        else:
            found = accuracies(_answered(group.readings), group.record, context.judge)
        is_zero = self.config.on_judge_failure == "zero"
        return [_binary(Score(0.0, s.why) if s.masked and is_zero else s, rules.binarise) for s in found]


def _without_truth(record: Record) -> Record:
    """The record without its gold boxes, and without what a scene's truth would tell about them."""
    return replace(record, regions=(), meta={key: record.meta[key] for key in _KNOWN if key in record.meta})


def _answered(readings: Sequence[Reading]) -> list[Reading]:
    """Without an answer block nothing is answered; otherwise text behind the thought would pass for an answer."""
    return [replace(reading, answer=reading.answer or "") for reading in readings]


def _binary(score: Score, how: str) -> Score:
    if score.masked or how == "none":
        return score
    is_right = score.value > 0 if how == "positive" else score.value >= 0.5
    return replace(score, value=float(is_right))


def _released_terms(group: Group, gold: int | None) -> dict[str, list[Score]]:
    """The same terms as the released code computes them; without a rethink tag neither box term is paid."""
    texts = [reading.text for reading in group.readings]
    written = [grit_release.release_boxes(text) for text in texts]
    unpaid = Score(0.0, "no rethink tag")
    terms = {
        "tags": [grit_release.release_tags(text) for text in texts],
        "box": [unpaid if count is None else grit.any_box(count) for count in written],
        "bleu": [grit_release.release_bleu(text, group.record) for text in texts],
    }
    if gold is not None:
        terms["count"] = [unpaid if count is None else count_match(count, gold) for count in written]
    return terms
