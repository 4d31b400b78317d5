"""The form of conversations: golden table of the released rule, the rule as one expression, and geometry."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.rewards.turn_format import action, turn_fault, turn_format
from sightline.types import Reading, Size

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1.json").read_text())["format"]
FRAME = Frame("absolute", 28, 4 * 28**2, 4096 * 28**2)
PIECES = [
    "<think>",
    "</think>",
    "<box>",
    "</box>",
    "<answer>",
    "</answer>",
    "[1,2,3,4]",
    "[1, 2.5,3., 4 ]",
    "a",
    " ",
    "\n",
]
NUMBER = r"\s*\d+\.?\d*\s*"
PATTERNS = {
    False: rf"<think>.+</think>\s*<box>\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]</box>",
    True: r"<think>.+</think>\s*<answer>.+</answer>",
}


def reading(texts: list[str]) -> Reading:
    turns = tuple(read(text, FRAME, [Size(280, 280)]) for text in texts)
    return turns[0] if len(turns) == 1 else replace(turns[-1], turns=turns)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: c["case"])
def test_golden(case) -> None:
    assert 2 * turn_format(reading(case["turns"])).value == pytest.approx(case["value"], abs=1e-4)


@pytest.mark.parametrize("case", [c for c in GOLDEN if "geometry" in c], ids=lambda c: c["case"])
def test_geometry_refuses_boxes_that_lie_badly(case) -> None:
    score = turn_format(reading(case["turns"]), geometry=True)
    assert 2 * score.value == case["geometry"]
    assert re.search("turn 1: box (reversed|outside)", score.why)


def test_geometry_looks_at_the_box_behind_the_reasoning() -> None:
    text = "<think>not [30,40,1,2]</think><box>[1,2,30,40]</box>"
    assert turn_fault(reading([text]), is_last=False, geometry=True) == ""
    text = "<think>but [1,2,30,40]</think><box>[7,7,7,7]</box>"
    assert turn_fault(reading([text]), is_last=False, geometry=True) == "box empty"


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans())
def test_the_rule_as_one_expression(pieces, is_last) -> None:
    text = "".join(pieces)
    name = "answer" if is_last else "box"
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", f"<{name}>", f"</{name}>"))
    expected = once and re.fullmatch(PATTERNS[is_last], text, re.DOTALL) is not None
    assert (turn_fault(Reading(text=text), is_last=is_last) == "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><box>[1,2,3,4]</box>", "box"),
        ('<think>a</think><tool_call>{"bbox_2d": [1,2,3,4]}</tool_call>', "box"),
        ("<think>a</think><answer>b</answer>", "answer"),
        ("<think>a</think><box>[1,2,3,4]</box><answer>b</answer>", "both"),
        ("<think>a</think>", "none"),
        ("", "none"),
    ],
)
def test_the_action_of_a_turn(text, expected) -> None:
    assert action(reading([text])) == expected


@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.booleans())
def test_any_conversation_scores(texts, geometry) -> None:
    score = turn_format(reading(texts), geometry=geometry)
    assert 0 <= score.value <= 1
    assert "\n" not in score.why
