"""What counts as asking for a crop, and how the policy is answered."""

from __future__ import annotations

import pytest

from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.language.prompts import TEMPLATES
from sightline.tools.syntax import SYNTAXES, ZOOM_TOOL, BoxSyntax, ToolCallSyntax, syntax_named
from sightline.types import Reading, Size

SIZES = [Size(1000, 1000)]


@pytest.fixture
def turn(frame: Frame):
    return lambda text, **more: read(text, frame, SIZES, **more)


@pytest.mark.parametrize(
    ("text", "written", "parity"),
    [
        ("<think> a </think> <box>[1,2,30,40]</box>", (1, 2, 30, 40), (1, 2, 30, 40)),
        ("<think> at [5,6,70,80] </think> <box>[1,2,30,40]</box>", (1, 2, 30, 40), (5, 6, 70, 80)),
        ("<think> <box>[5,6,70,80]</box> </think> <box>[1,2,30,40]</box>", (1, 2, 30, 40), (5, 6, 70, 80)),
        ("<think> a </think> <box>[1,2,30,40]</box><box>[5,6,70,80]</box>", (1, 2, 30, 40), (1, 2, 30, 40)),
        ("<think> a <box>[1,2,30,40]</box>", (1, 2, 30, 40), (1, 2, 30, 40)),
        ("<think> <box>[1,2,30,40]</box> </think>", (1, 2, 30, 40), (1, 2, 30, 40)),
        ("<think> a </think> <box>1, 2, 30, 40</box>", (1, 2, 30, 40), None),
        ("<think> a </think> <box>[-1,2,30,40]</box>", (-1, 2, 30, 40), None),
        ("<think> a </think> <answer> red </answer>", None, None),
    ],
)
def test_which_box_is_asked_for(turn, text, written, parity) -> None:
    for syntax, expected in ((BoxSyntax(), written), (BoxSyntax(is_parity=True), parity)):
        calls = syntax.asks(turn(text))
        assert [call.box.written for call in calls if call.box] == ([] if expected is None else [expected])


def test_a_box_tag_without_numbers_is_a_call_with_a_problem(turn) -> None:
    (call,) = BoxSyntax().asks(turn("<think> a </think> <box>there</box>"))
    assert call.box is None
    assert call.problem
    assert BoxSyntax(is_parity=True).asks(turn("<think> a </think> <box>there</box>")) == ()


def zoom(box: str = "[100, 200, 300, 400]", name: str = ZOOM_TOOL, more: str = "") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{"bbox_2d": {box}{more}}}}}</tool_call>'


def test_tool_calls_carry_box_label_and_image(turn) -> None:
    text = "<think> at [1,2,3,4] </think>" + zoom(more=', "label": "cup"') + "\n" + zoom("[0, 0, 50, 60]")
    first, second = ToolCallSyntax().asks(turn(text))
    assert first.box is not None
    assert (first.box.written, first.label, first.problem) == ((100, 200, 300, 400), "cup", "")
    assert second.box is not None
    assert second.box.written == (0, 0, 50, 60)
    (other,) = ToolCallSyntax().asks(turn(zoom(more=', "img_idx": 2')))
    assert (other.image, "no image" in (other.box.problems if other.box else ())) == (2, True)


def test_the_numbers_of_the_arguments_count_not_others_in_the_call(turn) -> None:
    text = (
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"label": "[9, 9, 99, 99]", '
        '"bbox_2d": [1, 2, 30, 40]}}</tool_call>'
    )
    (call,) = ToolCallSyntax().asks(turn(text))
    assert call.box is not None
    assert call.box.written == (1, 2, 30, 40)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (zoom(name="rotate"), "unknown tool"),
        ("<tool_call>zoom</tool_call>", "broken JSON"),
        ('<tool_call>{"name": "image_zoom_in_tool"}</tool_call>', "no four numbers in the box"),
        (zoom("[1, 2, 3]"), "no four numbers in the box"),
    ],
)
def test_problems_of_tool_calls(turn, text, problem) -> None:
    (call,) = ToolCallSyntax().asks(turn(text))
    assert call.problem == problem


def test_a_box_tag_is_no_tool_call_and_an_empty_turn_asks_nothing(turn) -> None:
    assert ToolCallSyntax().asks(turn("<think> a </think><box>[1,2,30,40]</box>")) == ()
    assert BoxSyntax().asks(Reading(text="")) == ToolCallSyntax().asks(Reading(text="")) == ()


@pytest.mark.parametrize("name", list(SYNTAXES))
def test_follow_ups(name) -> None:
    syntax = syntax_named(name)
    assert syntax.template in TEMPLATES
    assert syntax.follow_up(1, (), "compact") == ""
    assert syntax.follow_up(0, ("outside",), "compact") == TEMPLATES[syntax.template].compact
    told = syntax.follow_up(0, ("outside", "outside", "a new one"), "full")
    assert told.count("outside the image") == 1
    assert "a new one" in told
    assert "region you asked for" in syntax.follow_up(1, (), "full")
    assert "3 regions" in syntax.follow_up(3, ("empty",), "full")
    assert "Another region cannot be shown" in syntax.follow_up(3, ("empty",), "full")
