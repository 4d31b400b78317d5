"""Does a reply point at as many things as it should count? (GRIT, arXiv 2505.15879)"""

from __future__ import annotations

from collections.abc import Collection

from sightline.types import Record, Score

__all__ = ["COUNT_SETS", "COUNT_TYPES", "count_match", "gold_count"]

COUNT_SETS = ("tallyqa",)
"""Data sets (`meta.dataset`) whose answer is a number of things."""

COUNT_TYPES = ("count",)
"""Question types (`meta.type`) whose answer is a number of things."""


def gold_count(record: Record, sets: Collection[str] = COUNT_SETS, types: Collection[str] = COUNT_TYPES) -> int | None:
    """The number of things a counting record asks for; None for every other record.

    A record counts if its data set or its question type is one of those named, and its answer is a whole number. That
    an answer is a number does not suffice: "how old" counts nothing.

    Example:
        >>> gold_count(Record(id="a", question="How many?", answer=" 3 ", meta={"dataset": "tallyqa"}))
        3
        >>> gold_count(Record(id="a", question="How old?", answer="3", answer_kind="number")) is None
        True
    """
    if record.meta.get("dataset") not in sets and record.meta.get("type") not in types:
        return None
    # ten digits are more things than a picture shows, and longer strings convert slowly
    answer = record.answer.strip()
    return int(answer) if answer.isdecimal() and len(answer) <= 10 else None


def count_match(written: int, gold: int) -> Score:
    """1 if as many boxes were written as there are things to count, else 0. No box is right where nothing is there.

    Example:
        >>> count_match(2, 2), count_match(0, 3).why
        (Score(value=1.0, why='2 of 2 boxes', masked=False), '0 boxes for a count of 3')
    """
    if written == gold:
        return Score(1.0, f"{written} of {gold} boxes")
    return Score(0.0, f"{written} boxes for a count of {gold}")
