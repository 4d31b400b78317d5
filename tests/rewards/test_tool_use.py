"""The conditional bonus, the penalty for tags, and how boxes lie to gold regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.rewards.evidence import coverage, generalised_iou, overlap
from sightline.rewards.tool_use import shown_crops, tool_bonus, tool_format
from sightline.types import Box, Prompt, ReadBox, Reading, Record, Region, Rollout, Score, Span, Turn

RECORD = Record(id="a", question="?", answer="x", regions=(Region(box=Box(0, 0, 10, 10)),))


def rollout(*crops: int) -> Rollout:
    """A Rollout whose turns of the user show so many images each."""
    turns = tuple(Turn(role="user", span=Span(0, 0), images=tuple(range(1, n + 1))) for n in crops)
    ids = np.zeros(1, np.int64)
    return Rollout(
        prompt=Prompt(record=RECORD, stream="grounded", messages=()), branch=(0,), prompt_ids=ids, ids=ids,
        sampled=ids == 0, logprobs=np.zeros(1), text="", finish="stop", turns=turns,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "crops", "bonus"), [(1, (1,), 1), (1, (0,), 0), (1, (), 0), (0, (1, 2), 0), (0.5, (1,), 0)]
)
def test_the_bonus_asks_for_a_right_answer_and_a_crop(accuracy, crops, bonus) -> None:
    assert tool_bonus(Score(float(accuracy)), rollout(*crops)).value == bonus
    assert shown_crops(rollout(*crops)) == sum(crops)


def test_an_unjudged_answer_masks_its_bonus() -> None:
    assert tool_bonus(Score(0.0, "judge failed", masked=True), rollout(1)).masked


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["<think>a</think><answer>b</answer>"], 0),
        (["<think>a</think><tool_call>{}</tool_call>", "<think>a</think><answer>b</answer>"], 0),
        (["<think>a<tool_call>{}</tool_call>", "<think>a</think><answer>b</answer>"], -1),
        (["<think>a</think><tool_call>{}", "<think>a</think><answer>b</answer>"], -1),
        (["<think>a</think><answer>b"], -1),
        (["no tags"], 0),
    ],
)
def test_tags_must_pair_up_in_every_turn(texts, value) -> None:
    turns = tuple(Reading(text=text) for text in texts)
    assert tool_format(Reading(text="\n".join(texts), turns=turns)).value == value


def test_an_endless_answer_is_malformed() -> None:
    assert tool_format(Reading(text="", answer="x" * 1001)).value == -1
    assert tool_format(Reading(text="", answer="x" * 1000)).value == 0


def seen(*box: float) -> ReadBox:
    return ReadBox(box=Box(*box), written=box, span=Span(0, 1))  # type: ignore[arg-type]


def test_overlap_and_coverage_by_hand() -> None:
    assert generalised_iou(Box(0, 0, 2, 2), Box(1, 1, 3, 3)) == pytest.approx(1 / 7 - 2 / 9)
    assert overlap(seen(0, 0, 10, 10), RECORD).value == 1
    assert overlap(seen(10, 0, 20, 10), RECORD).value == 0.5
    assert coverage(seen(-5, 0, 5, 10), RECORD).value == 0.5
    assert coverage(seen(0, 0, 50, 50), RECORD).value == 1
    assert overlap(None, RECORD).value == coverage(None, RECORD).value == 0
    assert overlap(seen(0, 0, 1, 1), Record(id="a", question="?", answer="x")).masked


SIDES = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
BOXES = st.tuples(SIDES, SIDES).map(lambda sides: Box(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))


@given(BOXES, BOXES)
def test_generalised_iou_is_symmetric_and_bounded(a, b) -> None:
    assert -1 <= generalised_iou(a, b) <= 1
    assert generalised_iou(a, b) == pytest.approx(generalised_iou(b, a))
