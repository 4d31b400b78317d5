"""Which rule scores an answer: decided by the kind that the record declares, not by the name of a data set.

| kind | score |
|---|---|
| option, yes_no, number, text, math | 1 or 0: rules first, the judge for what they leave open |
| text_ocr | 1 - word error rate, the better of both directions (`word_accuracy`) |
| free | mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (`rouge_mean`) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sightline.answers.judge import Judge
from sightline.rewards.answer import accuracies
from sightline.rewards.text_overlap import rouge_mean, word_accuracy
from sightline.rewards.turn_format import turns_of
from sightline.types import Reading, Record, Score

__all__ = ["OVERLAPS", "routed_answers"]

OVERLAPS: Mapping[str, tuple[str, Callable[[str, str], float]]] = MappingProxyType(
    {"text_ocr": ("words read", word_accuracy), "free": ("ROUGE", rouge_mean)}
)
"""Kinds whose answers earn a share instead of right or wrong: name of the measure, and the measure (gold, answer)."""


def routed_answers(readings: Sequence[Reading], record: Record, judge: Judge | None = None) -> list[Score]:
    """Scores the answer of the last turn of each reply, in [0, 1].

    A reply whose last turn has no answer block is wrong: there is nothing to score, whatever else it says. Of several
    right answers (`meta["aliases"]`) the one that fits best counts.

    Args:
        readings: replies, or whole conversations, to one record.
        record: declares the kind.
        judge: asked for what the rules leave open.

    Example:
        >>> record = Record(id="a", question="What is written?", answer="march 4", answer_kind="text_ocr")
        >>> [s.value for s in routed_answers([Reading(text="", answer="march"), Reading(text="march 4")], record)]
        [0.5, 0.0]
    """
    last = [turns_of(reading)[-1] for reading in readings]
    scores = [Score(0.0, "no answer block")] * len(last)
    given = [i for i, turn in enumerate(last) if turn.answer is not None]
    if record.answer_kind in OVERLAPS:
        found = [_overlap(last[i].answer or "", record) for i in given]
    else:
        found = accuracies([last[i] for i in given], record, judge) if given else []
    for i, score in zip(given, found, strict=True):
        scores[i] = score
    return scores


def _overlap(answer: str, record: Record) -> Score:
    name, measure = OVERLAPS[record.answer_kind]
    aliases = record.meta.get("aliases", ())
    golds = (record.answer, *((aliases,) if isinstance(aliases, str) else aliases))
    value = max(measure(str(gold), answer) for gold in golds)
    return Score(value, f"{name} {value:.2f}")
