"""Terms of tool-assisted reasoning as DeepEyes has them (arXiv 2505.14362): the form of the calls, and the bonus."""

from __future__ import annotations

from sightline.answers.match import MAX_ANSWER_CHARACTERS
from sightline.rewards.turn_format import turns_of
from sightline.types import Reading, Rollout, Score

__all__ = ["shown_crops", "tool_bonus", "tool_format"]

_PAIRS = ("think", "tool_call", "answer")


def tool_format(reading: Reading) -> Score:
    """A penalty: 0 where the tags of every turn pair up and the answer is of sane length, else -1. Range {-1, 0}.

    Example:
        >>> tool_format(Reading(text="<think>a</think><answer>b</answer>")).value
        0.0
        >>> tool_format(Reading(text="<think>a<answer>b</answer>"))
        Score(value=-1.0, why='turn 1: 1 <think>, 0 </think>', masked=False)
    """
    for number, turn in enumerate(turns_of(reading), 1):
        for tag in _PAIRS:
            opened, closed = turn.text.count(f"<{tag}>"), turn.text.count(f"</{tag}>")
            if opened != closed:
                return Score(-1.0, f"turn {number}: {opened} <{tag}>, {closed} </{tag}>")
    if len(reading.answer or "") > MAX_ANSWER_CHARACTERS:
        return Score(-1.0, f"answer longer than {MAX_ANSWER_CHARACTERS} characters")
    return Score(0.0, "tags pair up")


def tool_bonus(accuracy: Score, rollout: Rollout) -> Score:
    """1 where the answer is right and at least one crop was shown, else 0; masked where the answer is. Range {0, 1}.

    The condition is what keeps the bonus from paying calls for their own sake.

    Args:
        accuracy: of this Rollout; right is above a half.
        rollout: its turns tell what was shown.

    Example:
        >>> import numpy as np
        >>> from sightline.types import Prompt, Record, Span, Turn
        >>> prompt = Prompt(record=Record(id="a", question="?", answer="x"), stream="grounded", messages=())
        >>> empty = np.zeros(0, np.int64)
        >>> turns = (Turn(role="user", span=Span(0, 0), images=(1,)),)
        >>> seen = Rollout(prompt=prompt, branch=(0,), prompt_ids=empty, ids=empty, sampled=empty > 0,
        ...                logprobs=empty * 1.0, text="", finish="stop", turns=turns)
        >>> tool_bonus(Score(1.0), seen).value, tool_bonus(Score(0.0), seen).why
        (1.0, 'no bonus: the answer is wrong')
    """
    if accuracy.masked:
        return Score(0.0, accuracy.why, masked=True)
    if accuracy.value <= 0.5:
        return Score(0.0, "no bonus: the answer is wrong")
    crops = shown_crops(rollout)
    return Score(1.0, f"right with {crops} crops" if crops > 1 else "right with a crop") if crops else _UNUSED


def shown_crops(rollout: Rollout) -> int:
    """Images that later turns of the user added.

    Example:
        >>> import numpy as np
        >>> from sightline.types import Prompt, Record
        >>> prompt = Prompt(record=Record(id="a", question="?", answer="x"), stream="grounded", messages=())
        >>> empty = np.zeros(0, np.int64)
        >>> shown_crops(Rollout(prompt=prompt, branch=(0,), prompt_ids=empty, ids=empty, sampled=empty > 0,
        ...                     logprobs=empty * 1.0, text="", finish="stop"))
        0
    """
    return sum(len(turn.images) for turn in rollout.turns if turn.role == "user")


_UNUSED = Score(0.0, "no bonus: no crop was shown")
