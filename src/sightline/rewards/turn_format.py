"""The form of a conversation with boxes: every turn thinks, then either asks for a region or answers.

The rules are those of the released code of Ground-R1 (arXiv 2505.20272): the whole text of a turn must be one think
block and one box or answer block. What the box says is not looked at, unless `geometry` asks for it.
"""

from __future__ import annotations

import re
from typing import Literal

from sightline.types import Reading, Score

__all__ = ["Action", "action", "turn_fault", "turn_format", "turns_of"]

Action = Literal["box", "answer", "both", "none"]

_NUMBER = r"\s*+\d++\.?+\d*+\s*+"
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\]")
_MISPLACED = frozenset(("negative", "outside", "reversed", "empty", "huge", "no image"))


def turns_of(reading: Reading) -> tuple[Reading, ...]:
    """The Readings of the policy's turns; a single reply is its own only turn.

    Example:
        >>> reply = Reading(text="red")
        >>> turns_of(reply) == (reply,)
        True
    """
    return reading.turns or (reading,)


def action(turn: Reading) -> Action:
    """What a turn does: asks for a region, answers, both at once, or neither.

    Example:
        >>> from sightline.types import Span
        >>> action(Reading(text="", answer="red")), action(Reading(text="", sections={"box": Span(0, 9)}))
        ('answer', 'box')
    """
    asks = "box" in turn.sections or "tool_call" in turn.sections
    answers = turn.answer is not None
    if asks and answers:
        return "both"
    return "box" if asks else "answer" if answers else "none"


def turn_format(reading: Reading, *, geometry: bool = False) -> Score:
    """Share of the turns that have the form, in [0, 1]; `fmt` of Ground-R1 is twice this.

    Every turn but the last must be exactly `<think>..</think> <box>[x1,y1,x2,y2]</box>`, the last exactly
    `<think>..</think> <answer>..</answer>`: each tag once, nothing before or after, blanks only between the blocks.

    Args:
        reading: of the whole conversation.
        geometry: a box must also be ordered, lie inside its image and have an area.

    Example:
        >>> answer = Reading(text="<think>a</think><answer>red</answer>", answer="red")
        >>> turn_format(answer).value, turn_format(Reading(text="", turns=(answer, answer))).why
        (1.0, '1 of 2 turns have the form; turn 1: no <box>')
    """
    turns = turns_of(reading)
    faults = [turn_fault(turn, is_last=i == len(turns) - 1, geometry=geometry) for i, turn in enumerate(turns)]
    good = faults.count("")
    if good == len(turns):
        return Score(1.0, f"all {good} turns have the form" if good > 1 else "the turn has the form")
    first = next(i for i, fault in enumerate(faults) if fault)
    return Score(good / len(turns), f"{good} of {len(turns)} turns have the form; turn {first + 1}: {faults[first]}")


def turn_fault(turn: Reading, *, is_last: bool, geometry: bool = False) -> str:
    """The first thing that is wrong with the form of one turn, "" if nothing is.

    Example:
        >>> turn_fault(Reading(text="<think>a</think><box>[1,2,3,4]</box>"), is_last=False)
        ''
        >>> turn_fault(Reading(text=" <think>a</think><answer>b</answer>"), is_last=True)
        'text outside the blocks'
    """
    name = "answer" if is_last else "box"
    text, tags = turn.text, ("<think>", "</think>", f"<{name}>", f"</{name}>")
    for tag in tags:
        if text.count(tag) != 1:
            return f"{tag} {text.count(tag)} times" if tag in text else f"no {tag}"
    thought, closed, opened, end = (text.index(tag) for tag in tags)
    if not thought < closed < opened < end:
        return "tags out of order"
    if thought != 0 or end + len(tags[3]) != len(text) or text[closed + len(tags[1]) : opened].strip():
        return "text outside the blocks"
    if closed == len(tags[0]):
        return "empty think block"
    content = text[opened + len(tags[2]) : end]
    if not content:
        return f"empty {name} block"
    if is_last:
        return ""
    if not _BOX.fullmatch(content):
        return "no [x1,y1,x2,y2] in the box block"
    return _misplaced(turn, opened) if geometry else ""


def _misplaced(turn: Reading, opened: int) -> str:
    """What is wrong with the place of the box whose tag opens at this character."""
    found = [box for box in turn.boxes if box.span.start >= opened]
    if not found:
        return "the box cannot be read"
    odd = sorted(_MISPLACED & set(found[0].problems))
    if odd or not found[0].is_valid:
        return f"box {', '.join(odd) or 'without area'}"
    return ""
