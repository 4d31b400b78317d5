"""The answer rewards of the released Ground-R1 code, oddities included (arXiv 2505.20272, `answers: release`).

They read the raw text of the last turn and are chosen by the name of the data set. Some of them can be gamed: `dog`
counts as the option D, an option named in the reasoning counts, and "yes or no" earns 0.6 wherever the answer is no.
`sightline.rewards.router` is what everything else uses; docs/methods/ground_r1.md lists the differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from sightline.answers.judge import Judge
from sightline.errors import UserError
from sightline.rewards.answer import accuracies
from sightline.rewards.text_overlap import rouge_mean, word_accuracy
from sightline.rewards.turn_format import turns_of
from sightline.types import Reading, Record, Score

__all__ = ["RELEASE_RULES", "release_answers", "release_rule"]

RELEASE_RULES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("v7w", "gqa", "openimages"), "letter"),
        **dict.fromkeys(("CLEVR", "data_thinklite_reasoning_acc"), "math"),
        **dict.fromkeys(("docvqa", "infographicsvqa", "textcap", "textvqa", "dude", "sroie"), "transcription"),
        "flickr30k": "caption",
        **dict.fromkeys(("vsr", "cub"), "substring"),
        "visual_toolbox_v2": "toolbox",
    }
)
"""The rule of each data set that the released code knows."""


def release_rule(record: Record) -> str:
    """The rule for the data set of a record (`meta["dataset"]`).

    Raises:
        UserError: the released code has no rule for it.

    Example:
        >>> release_rule(Record(id="a", question="?", answer="x", meta={"dataset": "cub"}))
        'substring'
    """
    name = str(record.meta.get("dataset"))
    if name not in RELEASE_RULES:
        raise UserError(
            f"the released code has no rule for the data set {name!r}", where=f"record {record.id}: meta.dataset",
            hint=f"one of {', '.join(RELEASE_RULES)}; or method.answers: kind",
        )  # fmt: skip
    return RELEASE_RULES[name]


def release_answers(readings: Sequence[Reading], record: Record, judge: Judge | None = None) -> list[Score]:
    """Scores the last turn of each reply by the rule of the record's data set, in [0, 1].

    Args:
        readings: replies, or whole conversations, to one record.
        record: `meta["dataset"]` decides.
        judge: decides mathematical equality (rule `math`).

    Raises:
        UserError: a data set that the released code does not know.

    Example:
        >>> record = Record(id="a", question="?", answer="no", meta={"dataset": "vsr"})
        >>> release_answers([Reading(text="<answer>yes or no</answer>")], record)[0].value
        0.6
    """
    rule, texts = release_rule(record), [turns_of(reading)[-1].text for reading in readings]
    if rule == "math":
        return _math(texts, record, judge)
    values = [_RULES[rule](text, record.answer.strip()) for text in texts]
    return [Score(value, f"release rule '{rule}': {value:.2f}") for value in values]


def _letter(text: str, gold: str) -> float:
    """The first letter a-d behind an answer tag, else any `X.` anywhere."""
    first = re.search(r"<answer>\s*+([A-Da-d])", text)
    other = re.search(r"\b([A-D])\.", text)
    candidates = [found[1] if found else text.strip() for found in (first, other)]
    return float(any(candidate.lower() == gold.lower() for candidate in candidates))


def _substring(text: str, gold: str) -> float:
    answer = _answer(text).lower()
    return 1.0 if answer == gold.lower() else 0.6 if gold.lower() in answer else 0.0


def _transcription(text: str, gold: str) -> float:
    return word_accuracy(gold, _answer(text))


def _caption(text: str, gold: str) -> float:
    return rouge_mean(gold, _answer(text), short=False)


def _toolbox(text: str, gold: str) -> float:
    """Yes or no by the first words, else an option letter with something behind it, else ROUGE."""
    answer = _answer(text)
    if not gold.split() or not answer.split():
        return 0.0
    wanted, found = gold.split()[0].lower(), answer.split()[0].lower()
    if any(word in wanted and found == word for word in ("yes", "no")):
        return 1.0
    option = re.match(r"\s*+([A-D])\W", answer)
    return 1.0 if option and option[1] == gold else rouge_mean(gold, answer, short=False)


def _math(texts: Sequence[str], record: Record, judge: Judge | None) -> list[Score]:
    """Mathematical equality, else the only letter a-d in the answer is the right one."""
    answers = [_between(text) if _between(text) is not None else text.rsplit("<answer>", 1)[-1] for text in texts]
    readings = [Reading(text=answer or "", answer=answer) for answer in answers]
    scores = accuracies(readings, replace(record, answer_kind="math"), judge)
    gold = record.answer.strip().lower()
    return [
        Score(1.0, f"the only letter is {gold}")
        if score.value == 0 and gold in tuple("abcd") and {c for c in (answer or "").lower() if c in "abcd"} == {gold}
        else score
        for score, answer in zip(scores, answers, strict=True)
    ]


def _answer(text: str) -> str:
    """The first answer block, else what follows an open one, else the whole text."""
    found = _between(text)
    if found is not None:
        return found
    return text.partition("<answer>")[2].strip() if "<answer>" in text else text.strip()


def _between(text: str) -> str | None:
    start = text.find("<answer>")
    end = text.find("</answer>", start + len("<answer>")) if start >= 0 else -1
    return text[start + len("<answer>") : end].strip() if end >= 0 else None


_RULES: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {
        "letter": _letter,
        "substring": _substring,
        "transcription": _transcription,
        "caption": _caption,
        "toolbox": _toolbox,
    }
)
