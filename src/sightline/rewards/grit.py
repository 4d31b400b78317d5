"""The reward terms of GRIT as the paper states them (arXiv 2505.15879, section 3): pure functions of a Reading.

No term reads a gold box. What the released code computes instead stands in `sightline.rewards.grit_release`.
"""

from __future__ import annotations

import re
from typing import Literal

from sightline.geometry.boxes import iou
from sightline.language.strict import comma_lists
from sightline.rewards.bleu import bleu_1, words
from sightline.types import Reading, Record, Score

__all__ = ["CountAs", "answer_bleu", "any_box", "chain_boxes", "chain_end", "grit_format", "tag_pairs"]

CountAs = Literal["written", "valid", "distinct"]

_DUPLICATE_IOU = 0.9
_FORM = re.compile(r"\s*<think>(.*?)</think>\s*<rethink>(.*?)</rethink>\s*<answer>(.*?)(?:</answer>)?\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|rethink|answer)>")


def tag_pairs(reading: Reading) -> Score:
    """s_st: 1/2 for one think block, 1/2 for one rethink block behind it. Range {0, 0.5, 1}.

    A pair is right if its two tags stand once each, the opening one first.

    Example:
        >>> from sightline.geometry.frames import Frame
        >>> from sightline.language.parse import read
        >>> frame = Frame("relative_1000", 32, 1024, 65536)
        >>> tag_pairs(read("<think>a</think><rethink>b</rethink>", frame, [])).value
        1.0
        >>> tag_pairs(read("<rethink>b</rethink><think>a</think>", frame, []))
        Score(value=0.5, why='think pair only', masked=False)
    """
    has_think, has_rethink = (_is_pair(reading, name) for name in ("think", "rethink"))
    if has_think and has_rethink:
        has_rethink = reading.sections["think"].end < reading.sections["rethink"].start
    if has_think and has_rethink:
        return Score(1.0, "think pair, then rethink pair")
    if has_think or has_rethink:
        return Score(0.5, f"{'think' if has_think else 'rethink'} pair only")
    return Score(0.0, "neither pair")


def _is_pair(reading: Reading, name: str) -> bool:
    odd = {f"{name} twice", f"unclosed {name}", f"unopened {name}"}
    return name in reading.sections and odd.isdisjoint(reading.problems)


def chain_boxes(reading: Reading, count_as: CountAs = "written") -> int:
    """Boxes that a reply writes before it rethinks (or answers, where it does not rethink).

    Args:
        reading: the reply.
        count_as: `written`: four whole numbers with commas between them are a box, wherever they lie, as in paper and
            release. `valid`: boxes of any notation with a positive area inside their image. `distinct`: valid boxes,
            of which those that overlap an earlier one by an IoU above 0.9 are not counted again.

    Example:
        >>> chain_boxes(Reading(text='<think> {"bbox_2d": [0, 0, 0, 0]} (9, 9, 1, 1) </think><rethink> 1,2,3,4'))
        2
    """
    end = chain_end(reading)
    if count_as == "written":
        return len(comma_lists(reading.text[:end]))
    valid = [found for found in reading.boxes if found.is_valid and found.span.start < end]
    if count_as == "valid":
        return len(valid)
    repeated = (
        any(other.image == found.image and iou(other.box, found.box) > _DUPLICATE_IOU for other in valid[:place])
        for place, found in enumerate(valid)
    )
    return sum(not is_repeated for is_repeated in repeated)


def chain_end(reading: Reading) -> int:
    """The character at which a reply rethinks, or answers where it does not rethink; its length without either.

    Example:
        >>> chain_end(Reading(text="<think> a </think><rethink> b"))
        18
    """
    starts = [reading.text.find(tag) for tag in ("<rethink>", "<answer>")]
    return min((at for at in starts if at >= 0), default=len(reading.text))


def any_box(written: int) -> Score:
    """s_bf before its weight: 1 if the chain holds a box, else 0.

    Example:
        >>> any_box(0).value, any_box(3)
        (0.0, Score(value=1.0, why='3 boxes before the rethink', masked=False))
    """
    return Score(float(written > 0), f"{written} box{'' if written == 1 else 'es'} before the rethink")


def answer_bleu(reading: Reading, record: Record) -> Score:
    """s_BLEU: BLEU-1 of the answer with the reference, in [0, 1]; tags are no words, closed or not.

    Example:
        >>> record = Record(id="a", question="How many?", answer="5")
        >>> answer_bleu(Reading(text="<answer> 5 </answer>", answer="5"), record).value
        1.0
    """
    if reading.answer is None:
        return Score(0.0, "no answer")
    value = bleu_1(words(record.answer), words(reading.answer))
    return Score(value, f"BLEU-1 {value:.2f}")


def grit_format(reading: Reading) -> Score:
    """1 if a reply is one think block, one rethink block and one answer, each with a word in it; else 0.

    For evaluation. The answer may stay open at the end of a finished reply, as in the published transcripts.

    Example:
        >>> grit_format(Reading(text="<think>a</think><rethink>b</rethink><answer> 7")).value
        1.0
        >>> grit_format(Reading(text="<think>a</think><answer> 7</answer>")).value
        0.0
    """
    form = _FORM.fullmatch(reading.text)
    if form is None or "truncated" in reading.problems:
        return Score(0.0, "not think, rethink, answer")
    for name, content in zip(("think", "rethink", "answer"), form.groups(), strict=True):
        if _TAG.search(content):
            return Score(0.0, f"tags inside the {name} block")
        if not re.search(r"\w", content):
            return Score(0.0, f"empty {name} block")
    return Score(1.0, "think, rethink, answer")
