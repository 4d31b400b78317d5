from __future__ import annotations

from collections.abc import Sequence

import pytest

from sightline.answers.judge import JudgeRequest, RulesJudge, Verdict
from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.rewards import (
    accuracies,
    accuracy,
    box_iou,
    box_validity,
    consistency,
    consistency_requests,
    is_box_spam,
    is_empty_answer,
    is_full_image,
    think_answer_format,
)
from sightline.types import Box, ImageRef, Reading, Record, Reference, Region, Score, Size

FRAME, SIZE = Frame("absolute", 16, 256, 36864), Size(96, 96)
IMAGE = ImageRef(size=SIZE, digest="d")
RECORD = Record(
    id="r",
    question="What color is the mark on the red square?",
    answer="green",
    images=(IMAGE,),
    regions=(Region(box=Box(10, 10, 30, 30)),),
)


def reading(text: str, sizes: Sequence[Size] = (SIZE,)) -> Reading:
    return read(text, FRAME, sizes)


class StubJudge:
    """Gives what it is told and remembers what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts, self.asked = list(verdicts), []

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        self.asked.append(list(requests))
        return self.verdicts[: len(requests)]

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        return


GOOD = "<think> the red square <box>[10,10,30,30]</box> . the mark is green . </think> <answer> green </answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "<think>a</think><answer>b</answer>",
        "\n <think>\na\n</think>\n\n<answer>\nb\n</answer>\n",
        "< think > a </ think ><answer>b</answer>",
    ],
)
def test_well_formed(text: str) -> None:
    assert think_answer_format(reading(text)).value == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "green",
        "<think></think><answer></answer>",
        "<think> ... </think> <answer> ... </answer>",
        "<think>a</think><answer> </answer>",
        "<think>a</think>",
        "<answer>b</answer>",
        "<think>a<answer>b</answer>",
        "so <think>a</think><answer>b</answer>",
        "<think>a</think> so <answer>b</answer>",
        "<think>a</think><answer>b</answer> so",
        "<answer>b</answer><think>a</think>",
        "<think>a</think><think>a</think><answer>b</answer>",
        "<think>a</think><answer>b</answer><answer>b</answer>",
        "<think>a <think>b</think></think><answer>b</answer>",
        RECORD.question,
        f"{RECORD.question} <think> reasoning </think> <answer> final answer </answer>",
    ],
)
def test_malformed(text: str) -> None:
    score = think_answer_format(reading(text))
    assert score.value == 0.0
    assert score.why


def test_box_terms_on_a_good_reply() -> None:
    good = reading(GOOD)
    assert box_iou(good, RECORD).value == 1.0
    assert box_validity(good).value == 1.0


@pytest.mark.parametrize("match", ["dual", "recall", "precision", "union", "greedy", "hungarian"])
def test_every_measure_is_in_bounds(match: str) -> None:
    shifted = reading("<box>[20,20,40,40]</box><box>[50,50,60,60]</box>")
    assert 0 < box_iou(shifted, RECORD, match).value < 0.5  # type: ignore[arg-type]
    assert box_iou(reading(GOOD), RECORD, match).value == pytest.approx(1.0)  # type: ignore[arg-type]
    assert box_iou(reading("none"), RECORD, match).value == 0.0  # type: ignore[arg-type]


def test_records_without_regions_mask_the_box_term() -> None:
    bare = Record(id="r", question="?", answer="x", images=(IMAGE,))
    assert box_iou(reading(GOOD), bare).masked
    assert box_iou(reading(GOOD), RECORD, roles=("clue",)).masked


def test_boxes_of_different_images_never_meet() -> None:
    second = Record(
        id="r", question="?", answer="x", images=(IMAGE, IMAGE), regions=(Region(box=Box(10, 10, 30, 30), image=1),)
    )
    assert box_iou(reading(GOOD, (SIZE, SIZE)), second).value == 0.0
    other = reading('{"image": 1, "bbox_2d": [10,10,30,30]}', (SIZE, SIZE))
    assert box_iou(other, second).value == pytest.approx(1.0)
    same_place = reading('{"image": 0, "bbox_2d": [10,10,30,30]} {"image": 1, "bbox_2d": [10,10,30,30]}', (SIZE, SIZE))
    assert box_validity(same_place).value == 1.0


def test_validity_counts_what_is_no_box() -> None:
    assert box_validity(reading("<box>[10,10,30,30]</box><box>[40,40,40,40]</box>")).value == 0.5
    assert box_validity(reading("<box>[10,10,30,30]</box><box>somewhere</box>")).value == 0.5
    assert box_validity(reading("no box")).value == 0.0
    assert box_validity(reading("<box>[1,1,9,9]</box><box>[30,30,50,50]</box><box>[30,30,50,51]</box>")).value == 0.0


def test_one_box_around_everything_pays_little() -> None:
    full = reading("<think><box>[0,0,96,96]</box></think><answer>x</answer>")
    assert box_iou(full, RECORD).value < 0.05
    assert is_full_image(full.boxes[0], RECORD.images)


def test_boxes_everywhere_pay_little() -> None:
    grid = "".join(f"<box>[{x},{y},{x + 20},{y + 20}]</box>" for x in range(0, 76, 10) for y in range(0, 76, 10))
    spam = reading(grid)
    assert box_iou(spam, RECORD, "recall").value == 1.0
    assert box_iou(spam, RECORD, "dual").value < 0.6
    assert box_iou(spam, RECORD, "hungarian").value < 0.05
    assert is_box_spam(spam, RECORD)
    assert not is_box_spam(reading(GOOD), RECORD)
    assert is_box_spam(reading(GOOD + "<box>[10,10,30,30]</box>"), RECORD)


def test_repeating_a_good_box_is_noticed() -> None:
    twice = reading("<box>[10,10,30,30]</box>" * 2)
    assert box_validity(twice).value == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think> a </think> <answer> </answer>",
        "<think> a </think> <answer> . </answer>",
        RECORD.question,
        f"<think> {RECORD.question} </think> <answer> {RECORD.question} </answer>",
        "<think> the mark is green",
        "<think> a </think> <answer> green blue red </answer>",
        "<think> a </think> <answer> not green </answer>",
        "<think> a </think> <answer> greenish </answer>",
    ],
)
def test_no_accuracy_without_the_answer(text: str) -> None:
    score = accuracy(reading(text), RECORD)
    assert (score.value, score.masked) == (0.0, False)
    assert score.why


def test_an_answer_cut_by_the_limit_is_none() -> None:
    cut = read("<think> the mark is green </think> <answer> green", FRAME, (SIZE,), finish="length")
    assert accuracy(cut, RECORD).value == 0.0


def test_accuracy_asks_the_judge_once_for_what_is_open() -> None:
    free = Record(id="r", question="What?", answer="a red car", answer_kind="free")
    judge = StubJudge(Verdict(value=1.0, why="same"), Verdict(value=None, why="down", failed=True))
    replies = [Reading(text="", answer=a) for a in ("The red car", "an automobile", "a van", "", "an automobile")]
    scores = accuracies(replies, free, judge)
    assert [(s.value, s.masked) for s in scores] == [(1, False), (1, False), (0, True), (0, False), (1, False)]
    assert [[r.candidate for r in asked] for asked in judge.asked] == [["an automobile", "a van"]]
    assert judge.asked[0][0].answer_kind == "free"


def test_open_answers_without_a_judge_are_masked() -> None:
    free = Record(id="r", question="What?", answer="a red car", answer_kind="free")
    assert accuracy(Reading(text="", answer="a van"), free).masked


def test_math_goes_through_the_judge() -> None:
    judge = RulesJudge(math_timeout=30)
    record = Record(id="r", question="?", answer="\\frac{1}{2}", answer_kind="math")
    scores = accuracies([Reading(text="", answer=a) for a in ("0.5", "0.6")], record, judge)
    assert [s.value for s in scores] == [1.0, 0.0]
    judge.close()


def test_consistency_is_zero_masked_or_the_verdict() -> None:
    reference = Reference(key="k", text="the red square", boxes=(), rank=(1.0,))
    replies = [reading(GOOD), reading("<think> </think><answer>x</answer>"), reading("x")]
    requests = consistency_requests(replies, RECORD, reference, FRAME)
    assert [r is None for r in requests] == [False, True, True]
    assert requests[0] is not None
    assert (requests[0].frame, requests[0].size, requests[0].reference) == (FRAME, SIZE, reference.text)
    verdicts = [Verdict(value=0.3, why="both"), None, Verdict(value=None, why="down", failed=True)]
    scores = consistency(verdicts, reference)
    assert [(s.value, s.masked) for s in scores] == [(0.3, False), (0.0, False), (0.0, True)]
    assert consistency_requests(replies, RECORD, None) == [None] * 3
    assert consistency(verdicts, None) == [Score(0.0, "no reference yet")] * 3


def test_signs_of_hacking() -> None:
    good = reading(GOOD)
    assert not is_empty_answer(good)
    assert is_empty_answer(reading("<think>a</think><answer>?</answer>"))
    assert not any(is_full_image(box, RECORD.images) for box in good.boxes)
    [whole] = reading("<box>[0,0,96,90]</box>").boxes
    assert is_full_image(whole, RECORD.images)
    assert not is_full_image(whole, ())
