"""The reward terms of the released GRIT code, to the letter, oddities included (arXiv 2505.15879, preset `release`).

Everything works on the text of a reply (and its token ids). Values stand before their weights, which are the preset's
(`methods/grit.py`). The differences from the paper are listed in docs/methods/grit.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.language.strict import comma_lists
from sightline.rewards.bleu import bleu_1
from sightline.types import Record, Score

__all__ = [
    "release_answer",
    "release_answer_request",
    "release_answer_tag",
    "release_bleu",
    "release_boxes",
    "release_repetition",
    "release_tags",
]

N_GRAM = 8
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>")


def release_tags(text: str) -> Score:
    """Think and rethink tags, a fifth for each and a fifth for two words between the first two; steps of 0.2.

    The tags are sought in order, each behind the *last* occurrence of the one before it that was found. The fifth step
    needs all four; for it a mark behind a letter splits a word in two.

    Example:
        >>> release_tags("<rethink>b</rethink><think>a cat</think>").value
        0.4
        >>> release_tags("<think></think><rethink>b</rethink>").value, release_tags("<think>a.</think><rethink>").value
        (0.8, 0.6)
    """
    rest, found = text, 0
    for tag in _TAGS:
        if tag in rest:
            found += 1
            rest = rest.rpartition(tag)[2]
    if found < len(_TAGS):
        return Score(found / 5, f"{found} of 4 tags in order")
    thought = text.rpartition("<think>")[2].partition("</think>")[0].strip()
    has_words = len(thought) > 1 and " " in re.sub(r"[^a-zA-Z0-9\s]", " ", thought)
    return Score((4 + has_words) / 5, "all tags" if has_words else "all tags, fewer than two words of thought")


def release_boxes(text: str) -> int | None:
    """Groups of four whole numbers before the first `<rethink>`; None without that tag, where no box term is paid.

    Example:
        >>> release_boxes("(9, 9, 1, 1), -3,0,0,0 <rethink> 1,2,3,4"), release_boxes("[1,2,3,4]")
        (2, None)
    """
    head, tag, _ = text.partition("<rethink>")
    return len(comma_lists(head)) if tag else None


def release_answer_tag(text: str) -> Score:
    """1/2 if `<answer>` occurs, 1/2 more if it occurs once. Range {0, 0.5, 1}.

    Example:
        >>> [release_answer_tag(text).value for text in ("5", "<answer> 5", "<answer> 5 <answer> 6")]
        [0.0, 1.0, 0.5]
    """
    count = text.count("<answer>")
    return Score(1.0 if count == 1 else 0.5 if count else 0.0, f"{count} answer tag{'' if count == 1 else 's'}")


def release_bleu(text: str, record: Record) -> Score:
    """BLEU-1 of everything behind the first `<answer>`; a closing tag counts as the word "answer". In [0, 1].

    Example:
        >>> record = Record(id="a", question="How many?", answer="5")
        >>> release_bleu("<answer> 5", record).value, release_bleu("<answer> 5 </answer>", record).value
        (1.0, 0.5)
    """
    _, tag, rest = text.partition("<answer>")
    if not tag:
        return Score(0.0, "no answer tag")
    value = bleu_1(_words(record.answer), _words(rest))
    return Score(value, f"BLEU-1 {value:.2f}")


def release_repetition(text: str, ids: Sequence[int]) -> Score:
    """`s_ids - (1 - s_words)`: 1 for a text that never repeats itself at once, -1 for nothing else. In [-1, 1].

    `s` is 1 less the share of places whose 8-gram equals the 8-gram right behind it. Texts of fewer than 8 words or 16
    tokens get 1. The places of words run to the eighth-last, those of tokens to the last whole pair.

    Example:
        >>> release_repetition("one two", [1, 2]).value
        1.0
        >>> round(release_repetition("a b c d e f g h " * 4, list(range(8)) * 4).value, 2)
        -0.71
    """
    tokens = text.split()
    if len(tokens) < N_GRAM or len(ids) < 2 * N_GRAM:
        return Score(1.0, "too short to repeat")
    by_word = _repeated(tokens, len(tokens) - N_GRAM)
    by_id = _repeated(ids, len(ids) - 2 * N_GRAM + 1)
    return Score(1.0 - by_id - by_word, f"{by_word:.0%} of words and {by_id:.0%} of tokens repeat")


def release_answer_request(text: str, record: Record) -> JudgeRequest | None:
    """What the judge is asked; None without `<answer>`. The answer ends at the first closing tag behind it.

    Example:
        >>> record = Record(id="a", question="How many?", answer="5")
        >>> release_answer_request("<answer> 5 </answer> or <answer> 6", record).candidate
        ' 5 '
    """
    _, tag, rest = text.partition("<answer>")
    if not tag:
        return None
    return JudgeRequest(
        kind="answer",
        question=record.question,
        reference=record.answer,
        candidate=rest.partition("</answer>")[0],
        record_id=record.id,
        answer_kind=record.answer_kind,
        options=record.options,
    )


def release_answer(verdict: Verdict | None) -> Score:
    """The judge's number as it is; 0 where nothing was asked; masked where the judge failed.

    Example:
        >>> release_answer(Verdict(value=0.2, why="close")), release_answer(None).why
        (Score(value=0.2, why='close', masked=False), 'no answer tag')
    """
    if verdict is None:
        return Score(0.0, "no answer tag")
    if verdict.failed or verdict.value is None:
        return Score(0.0, f"judge failed: {verdict.why}", masked=True)
    return Score(verdict.value, verdict.why)


def _words(text: str) -> list[str]:
    return re.sub(r"[^a-zA-Z0-9\s]", " ", text).lower().split()


def _repeated(tokens: Sequence[object], places: int) -> float:
    """Share of the first `places` places whose 8-gram equals the one right behind it."""
    if places < 1:
        return 0.0
    same = (list(tokens[i : i + N_GRAM]) == list(tokens[i + N_GRAM : i + 2 * N_GRAM]) for i in range(places))
    return sum(same) / places
