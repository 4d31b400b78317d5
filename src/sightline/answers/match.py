"""Does a final answer match the answer of its Record: rules first, by `answer_kind`.

A rule decides (right or wrong) or leaves the question open; only open questions reach a judge. An empty answer never
matches and a part of the answer is not the answer.
"""

from __future__ import annotations

from typing import NamedTuple

from sightline.answers.extract import normal_text, ocr_text, option_letter, yes_no
from sightline.answers.math_worker import MathWorker
from sightline.answers.numbers import number
from sightline.types import Record

__all__ = ["MAX_ANSWER_CHARACTERS", "Match", "is_match"]

MAX_ANSWER_CHARACTERS = 1000


class Match(NamedTuple):
    """Result of the rules.

    Attributes:
        value: 1 for a match, 0 otherwise.
        why: one line.
        decided: whether the rules could tell; if not, `value` is 0 and a judge may decide.
        failed: the check itself broke (time limit of the math worker): masked, never a zero.
    """

    value: float
    why: str
    decided: bool = True
    failed: bool = False


def is_match(prediction: str, record: Record, *, worker: MathWorker | None = None) -> Match:
    """Compare a final answer with `record.answer`, by the rule of `record.answer_kind`.

    Args:
        prediction: the answer alone, as `final_answer` returns it.
        record: holds answer, kind and options; `meta["aliases"]` may list further right answers.
        worker: compares expressions of kind `math`; without it only equal texts and numbers are decided.

    Example:
        >>> record = Record(id="a", question="How many dogs?", answer="3", answer_kind="number")
        >>> is_match("three dogs", record)
        Match(value=1.0, why='number 3', decided=True, failed=False)
        >>> is_match("", record).why
        'empty answer'
    """
    if not normal_text(prediction) and not ocr_text(prediction):
        return Match(0.0, "empty answer")
    if len(prediction) > MAX_ANSWER_CHARACTERS:
        return Match(0.0, f"answer longer than {MAX_ANSWER_CHARACTERS} characters")
    best = Match(0.0, "no answer to compare with", decided=False)
    for gold in (record.answer, *_aliases(record)):
        match = _compare(prediction, gold, record, worker)
        if match.value > 0 and match.decided:
            return match
        if gold == record.answer or not match.decided:
            best = match
    return best


def _aliases(record: Record) -> tuple[str, ...]:
    aliases = record.meta.get("aliases", ())
    return (aliases,) if isinstance(aliases, str) else tuple(str(a) for a in aliases)


def _compare(prediction: str, gold: str, record: Record, worker: MathWorker | None) -> Match:
    kind = record.answer_kind
    if kind == "option":
        return _option(prediction, gold, record.options)
    if kind == "yes_no":
        return _same(yes_no(prediction), yes_no(gold), "yes or no")
    if kind == "number":
        return _number(prediction, gold)
    if kind == "text_ocr":
        return _exact(ocr_text(prediction), ocr_text(gold), decides=True)
    exact = _exact(normal_text(prediction), normal_text(gold), decides=kind == "text")
    if kind != "math" or exact.value > 0:
        return exact
    return _math(prediction, gold, worker)


def _same(found: str | None, gold: str | None, what: str) -> Match:
    if found is None or gold is None:
        return Match(0.0, f"{what} not found in the {'answer' if found is None else 'record'}", decided=False)
    return Match(float(found == gold), f"{found}" if found == gold else f"{found} instead of {gold}")


def _option(prediction: str, gold: str, options: tuple[str, ...]) -> Match:
    return _same(option_letter(prediction, options), option_letter(gold, options), "option letter")


def _number(prediction: str, gold: str) -> Match:
    found, wanted = number(prediction), number(gold)
    if found is None or wanted is None:
        return Match(0.0, f"no single number in the {'answer' if found is None else 'record'}", decided=False)
    right = found.matches(wanted)
    text = f"{found.value:g}{' ' + found.unit if found.unit else ''}"
    return Match(float(right), f"number {text}" if right else f"number {text} instead of {wanted.value:g}")


def _exact(found: str, gold: str, *, decides: bool) -> Match:
    if found and found == gold:
        return Match(1.0, "same text")
    return Match(0.0, "different text", decided=decides)


def _math(prediction: str, gold: str, worker: MathWorker | None) -> Match:
    if worker is None:
        return Match(0.0, "different text; no math check given", decided=False)
    result = worker.equality(gold, prediction)
    return Match(
        float(result.is_equal and not result.failed), result.why, decided=not result.failed, failed=result.failed
    )
