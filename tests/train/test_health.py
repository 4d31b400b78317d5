"""Metrics by hand, and every alarm rung by a group that deserves it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.config import Alarms
from sightline.credit import credit_for
from sightline.report.metrics import METRICS, metric
from sightline.train.health import alarms, group_metrics
from sightline.types import (
    Box,
    Group,
    ImageRef,
    Measurement,
    Message,
    Prompt,
    ReadBox,
    Reading,
    Record,
    Region,
    Rollout,
    Score,
    Scores,
    Size,
    Span,
)

IMAGE = ImageRef(size=Size(100, 100), digest="d")
RECORD = Record(id="r", question="?", answer="a", images=(IMAGE,), regions=(Region(box=Box(0, 0, 20, 20)),))
GOOD = Box(0, 0, 20, 10)


def group(
    *rewards: float | None,
    boxes: tuple[Box, ...] = (GOOD,),
    answer: str | None = "a",
    stream: str = "grounded",
    finish="stop",
) -> Group:
    """One stream; every Rollout reads alike, rewards differ, None is a masked one."""
    prompt = Prompt(record=RECORD, stream=stream, messages=(Message("user", ("?",)),), images=RECORD.images)
    sampled = np.array([True, True, False, True])
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            branch=(i,),
            prompt_ids=np.arange(2),
            ids=np.arange(4),
            sampled=sampled,
            logprobs=np.zeros(4),
            text="",
            finish=finish,
        )
        for i in range(len(rewards))
    )
    read = tuple(ReadBox(box=b, written=(0, 0, 0, 0), span=Span(0, 1), is_valid=b.area > 0) for b in boxes)
    readings = tuple(Reading(text="", answer=answer, boxes=read) for _ in rewards)
    scores = tuple(
        Scores(terms={"format": Score(1.0), "accuracy": Score(r or 0.0, masked=r is None)}, weights={"accuracy": 2.0})
        for r in rewards
    )
    return Group(record=RECORD, rollouts=rollouts, readings=readings, scores=scores)


def test_metrics_by_hand() -> None:
    g = group(1.0, 0.0, None, stream="s")
    measured = Measurement(entropies=np.array([1.0, 1.0, 99.0, 4.0]))
    g = Group(
        record=g.record,
        rollouts=g.rollouts,
        readings=g.readings,
        scores=g.scores,
        credits=credit_for(g, how="dr_grpo"),
        measurements=(measured,) * 3,
    )
    found = group_metrics([g, group(0.5, 0.5, stream="s")])
    assert found == pytest.approx(
        {
            "reward/s/format": 1.0,
            "reward/s/accuracy": 0.5,
            "reward/s/total": (3 + 1 + 2 + 2) / 4,
            "reward/s/deviation": math.sqrt(2) / 2,
            "reward/s/masked": 0.2,
            "rollout/s/count": 5,
            "rollout/s/tokens": 3,
            "rollout/s/truncated": 0,
            "rollout/s/empty_answers": 0,
            "rollout/s/entropy": 2.0,
            "rollout/s/boxes": 1,
            "rollout/s/box_rate": 1,
            "rollout/s/invalid_boxes": 0,
            "rollout/s/full_image_boxes": 0,
            "rollout/s/box_spam": 0,
            "rollout/s/iou": 0.5,
            "credit/s/flat_groups": 0.5,
            "credit/s/masked_groups": 0,
            "credit/s/advantage": 1.0,
        }
    )


def test_what_nothing_defines_is_left_out() -> None:
    found = group_metrics([group(None, boxes=(), answer=" ", finish="length")])
    assert "reward/grounded/total" not in found
    assert "reward/grounded/accuracy" not in found
    assert "rollout/grounded/full_image_boxes" not in found
    assert "rollout/grounded/entropy" not in found
    assert (found["rollout/grounded/box_rate"], found["rollout/grounded/iou"]) == (0, 0)
    assert (found["rollout/grounded/empty_answers"], found["rollout/grounded/truncated"]) == (1, 1)
    assert found["credit/grounded/masked_groups"] == 1
    assert group_metrics([]) == {}


def test_every_metric_is_defined_for_the_page() -> None:
    assert len(METRICS) > 0
    assert [key for key in group_metrics([group(1.0, 0.0)]) if metric(key) is None] == []


def test_overlap_belongs_to_streams_that_point() -> None:
    silent = group_metrics([group(1.0, boxes=(), stream="textual")])
    assert "rollout/textual/iou" not in silent
    assert silent["rollout/textual/box_rate"] == 0
    assert group_metrics([group(1.0, boxes=(), stream="textual")], grounded=["textual"])["rollout/textual/iou"] == 0
    assert group_metrics([group(1.0, stream="textual")])["rollout/textual/iou"] == 0.5


def test_an_answer_without_a_letter_or_digit_is_empty() -> None:
    for answer, share in (("red", 0), (".", 1)):
        found = group_metrics([group(1.0, answer=answer)])
        assert found["rollout/grounded/empty_answers"] == share


def test_full_image_boxes_and_spam_are_seen() -> None:
    assert group_metrics([group(1.0, boxes=(Box(0, 0, 100, 91),))])["rollout/grounded/full_image_boxes"] == 1
    assert group_metrics([group(1.0, boxes=(GOOD, GOOD))])["rollout/grounded/box_spam"] == 1
    many = tuple(Box(10 * i, 0, 10 * i + 5, 5) for i in range(5))
    assert group_metrics([group(1.0, boxes=many)])["rollout/grounded/box_spam"] == 1
    assert group_metrics([group(1.0, boxes=many[:4])])["rollout/grounded/box_spam"] == 0
    assert group_metrics([group(1.0, boxes=(Box(5, 5, 5, 9),))])["rollout/grounded/invalid_boxes"] == 1


HEALTHY = {**group_metrics([group(1.0, 0.0)]), "policy/kl": 0.01}
SPAMMED = tuple(Box(i, 0, i + 1, 5) for i in range(20))
SICK = {
    "reward deviation": group_metrics([group(1.0, 1.0)]),
    "box rate": group_metrics([group(1.0, 0.0, boxes=())]),
    "share of masked rollouts": group_metrics([group(1.0, 0.0, None, None, None)]),
    "KL to the reference": {**HEALTHY, "policy/kl": 3.0},
    "share of empty answers": group_metrics([group(1.0, 0.0, answer=None)]),
    "share of full-image boxes": group_metrics([group(1.0, 0.0, boxes=(Box(0, 0, 100, 100),))]),
    "boxes per reply": group_metrics([group(1.0, 0.0, boxes=SPAMMED)]),
}


@pytest.mark.parametrize("name", SICK)
def test_each_alarm_rings_alone_and_after_its_patience(name) -> None:
    limits = Alarms(patience=3)
    assert alarms([HEALTHY] * 5, limits) == ()
    assert alarms([HEALTHY, SICK[name], SICK[name]], limits) == ()
    assert alarms([SICK[name], SICK[name], HEALTHY, SICK[name]], limits) == ()
    rung = alarms([HEALTHY, *[SICK[name]] * 3], limits)
    assert len(rung) == 1
    assert rung[0].startswith(name)
    assert "for 3 steps" in rung[0]


def test_recovered_runs_are_quiet_again() -> None:
    assert alarms([*[SICK["box rate"]] * 4, HEALTHY], Alarms(patience=3)) == ()


def test_steps_without_the_metric_do_not_interrupt_a_row() -> None:
    sick = SICK["box rate"]
    assert len(alarms([sick, {"data/epoch": 0.0}, sick], Alarms(patience=2))) == 1


def test_limits_can_be_switched_off_and_textual_streams_need_no_boxes() -> None:
    textual = group_metrics([group(1.0, 0.0, boxes=(), stream="textual")])
    assert alarms([textual] * 3, Alarms(patience=3)) == ()
    assert len(alarms([textual] * 3, Alarms(patience=3), grounded=("textual",))) == 1
    off = Alarms.model_validate({name: None for name in Alarms.model_fields if name != "patience"} | {"patience": 1})
    assert [alarms([sick], off) for sick in SICK.values()] == [()] * len(SICK)
    assert alarms([], Alarms()) == ()


def test_a_metric_that_is_not_a_number_rings() -> None:
    assert alarms([{"policy/kl": math.nan}], Alarms(patience=1))[0].startswith("KL")


def test_a_run_without_kl_term_has_no_kl_alarm() -> None:
    assert alarms([{"policy/shift": 9.0}] * 3, Alarms(patience=3)) == ()
    assert "not measured" in (Alarms.model_fields["kl_max"].description or "")


def test_two_streams_ring_separately() -> None:
    metrics = {"reward/a/deviation": 0.0, "reward/b/deviation": 0.0, "reward/c/deviation": 1.0}
    assert [line.split(" 0 ")[0] for line in alarms([metrics], Alarms(patience=1))] == [
        "reward deviation of a",
        "reward deviation of b",
    ]
