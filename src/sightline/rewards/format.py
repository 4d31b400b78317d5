"""Does a reply have the form it was asked for?"""

from __future__ import annotations

import re

from sightline.types import Reading, Score

__all__ = ["think_answer_format"]

_FORM = re.compile(r"\s*<\s*think\s*>(.*?)<\s*/\s*think\s*>\s*<\s*answer\s*>(.*?)<\s*/\s*answer\s*>\s*", re.DOTALL)
_TAG = re.compile(r"<\s*/?\s*(?:think|answer)\s*>")


def think_answer_format(reading: Reading) -> Score:
    """1 if the reply is exactly one think block, then one answer block, both with a word in them; else 0.

    White space is free everywhere; text before, between or behind the blocks, repeated or nested blocks, and blocks
    that hold only punctuation (an echo of the instruction's "...") are not. Range {0, 1}.

    Example:
        >>> think_answer_format(Reading(text="<think> a cup </think> <answer> red </answer>")).value
        1.0
        >>> think_answer_format(Reading(text="<think></think><answer>red</answer>"))
        Score(value=0.0, why='empty think block', masked=False)
    """
    form = _FORM.fullmatch(reading.text)
    if form is None:
        return Score(0.0, _fault(reading.text))
    for name, content in zip(("think", "answer"), form.groups(), strict=True):
        if _TAG.search(content):
            return Score(0.0, f"tags inside the {name} block")
        if not re.search(r"\w", content):
            return Score(0.0, f"empty {name} block")
    return Score(1.0, "one think block, then one answer block")


def _fault(text: str) -> str:
    """The first thing wrong with a text that has not the form."""
    tags = [re.sub(r"\s", "", tag) for tag in _TAG.findall(text)]
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        if tag not in tags:
            return f"no {tag}"
    if tags != ["<think>", "</think>", "<answer>", "</answer>"]:
        return "tags repeated or out of order"
    return "text outside the blocks"
