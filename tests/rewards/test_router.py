"""Answers by kind, and the released rules by data set, against vectors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.answers.judge import RulesJudge
from sightline.errors import UserError
from sightline.rewards.ground_r1_release import RELEASE_RULES, release_answers, release_rule
from sightline.rewards.router import routed_answers
from sightline.types import Reading, Record, Score

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1.json").read_text())


OPTIONS = ("a cat", "a dog", "a cow", "a bird")


def scored(kind: str, gold: str, answer: str, **record) -> Score:
    made = Record(id="r", question="?", answer=gold, answer_kind=kind, **record)  # type: ignore[arg-type]
    return routed_answers([Reading(text=answer, answer=answer)], made)[0]


@pytest.mark.parametrize(
    ("kind", "gold", "answer", "value"),
    [
        ("option", "B", "(B) a dog", 1),
        ("option", "D", "a dog", 0),
        ("yes_no", "no", "No, it is not.", 1),
        ("yes_no", "no", "yes", 0),
        ("number", "3", "three", 1),
        ("text", "red", "Red.", 1),
        ("text", "no", "nobody knows", 0),
        ("math", "4", "4", 1),
        ("text_ocr", "march 4", "the date is march 4", 0.4),
        ("free", "a red cup", "a red cup", 1),
        ("free", "red", "red", 1),
    ],
)
def test_the_kind_decides(kind, gold, answer, value) -> None:
    score = scored(kind, gold, answer, options=OPTIONS if kind == "option" else ())
    assert not score.masked
    assert score.value == pytest.approx(value)


def test_what_rules_leave_open_waits_for_a_judge() -> None:
    assert scored("option", "B", "A or B").masked
    assert scored("free", "a red cup", "a crimson mug").value == pytest.approx(2 * 1 / 6 * 2 / 3)


@pytest.mark.parametrize("kind", ["option", "yes_no", "number", "text", "text_ocr", "free", "math"])
def test_without_an_answer_block_nothing_is_answered(kind) -> None:
    text = "<think>x</think> 4 yes A <box>[1,2,3,4]</box>"
    record = Record(id="r", question="?", answer="4", answer_kind=kind)
    assert routed_answers([Reading(text=text)], record)[0].why == "no answer block"


def test_only_the_last_turn_counts() -> None:
    first, last = Reading(text="", answer="red"), Reading(text="", answer="blue")
    record = Record(id="r", question="?", answer="red")
    assert routed_answers([replace(last, turns=(first, last))], record)[0].value == 0


def test_the_best_alias_counts() -> None:
    assert scored("text_ocr", "exit 12", "gate 12 b", meta={"aliases": ["gate 12"]}).value == pytest.approx(2 / 3)


@pytest.mark.parametrize("case", GOLDEN["release"], ids=lambda c: c["case"])
def test_released_rules(case) -> None:
    record = Record(id="r", question="?", answer=case["truth"], meta={"dataset": case["dataset"]})
    score = release_answers([Reading(text=case["text"])], record)[0]
    assert score.value == pytest.approx(case["value"], abs=1e-4)


def test_ours_pays_none_of_the_exploits() -> None:
    options = ("a", "b", "c", "d")
    option = Record(id="r", question="?", answer="D", answer_kind="option", options=options)
    named = "<think>it must be D. the car</think>"
    assert [s.value for s in routed_answers([Reading(text="", answer="dog"), Reading(text=named)], option)] == [0, 0]
    assert scored("text", "no", "yes or no").value == 0


def test_released_math_is_equality_or_the_only_letter() -> None:
    judge = RulesJudge()

    def value(gold: str, text: str) -> float:
        record = Record(id="r", question="?", answer=gold, meta={"dataset": "CLEVR"})
        return release_answers([Reading(text=text)], record, judge)[0].value

    try:
        assert value("1/2", "<think>x</think><answer>0.5</answer>") == 1
        assert value("3", "<answer>4</answer>") == 0
        assert value("B", "<answer>option (B)</answer>") == 1
        assert value("B", "<answer>B or C</answer>") == 0
        assert value("4", "so it is <answer> 4") == 1
    finally:
        judge.close()


def test_an_unknown_data_set_is_the_users_to_mend() -> None:
    record = Record(id="r7", question="?", answer="x", meta={"dataset": "mine"})
    with pytest.raises(UserError, match="no rule for the data set 'mine'") as caught:
        release_rule(record)
    assert "r7" in str(caught.value.where)
    assert "method.answers: kind" in str(caught.value.hint)


NAMES = [name for name, rule in RELEASE_RULES.items() if rule != "math"]


@given(st.sampled_from(NAMES), st.text(max_size=80), st.text(max_size=20))
def test_any_text_scores(name, text, gold) -> None:
    record = Record(id="r", question="?", answer=gold, meta={"dataset": name})
    assert 0 <= release_answers([Reading(text=text)], record)[0].value <= 1
    for kind in ("text_ocr", "free"):
        given_answer = Reading(text=text, answer=text)
        assert 0 <= routed_answers([given_answer], replace(record, answer_kind=kind))[0].value <= 1
