"""Sections, answers and the problems of a reply; and that no string whatever breaks the reading."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.geometry.frames import Frame
from sightline.language.parse import BOX_PROBLEMS, REPLY_PROBLEMS, TAGS, read, strict_read, without_boxes
from sightline.language.sections import blocks, scan
from sightline.language.strict import comma_lists, first_bracketed
from sightline.types import Reading, Size, Span

FRAME = Frame("relative_1000", 32, 65536, 16777216)
SIZES = [Size(640, 480), Size(31, 77)]


def reading(text: str, **options: str) -> Reading:
    return read(text, FRAME, SIZES, **options)  # type: ignore[arg-type]


def test_the_plain_form_has_no_problems() -> None:
    text = "<think> the cup <box>[1,2,30,40]</box> is red </think> <answer> red </answer>"
    out = reading(text)
    assert out.problems == ()
    assert out.answer == "red"
    assert out.think == " the cup <box>[1,2,30,40]</box> is red "
    assert {name: text[slice(*span)] for name, span in out.sections.items()} == {
        "think": out.think,
        "answer": " red ",
        "box": "[1,2,30,40]",
    }
    assert text[slice(*out.boxes[0].span)] == "<box>[1,2,30,40]</box>"


@pytest.mark.parametrize("tag", TAGS)
def test_every_section_is_known(tag: str) -> None:
    text = f"<{tag}>a</{tag}><{tag}>b</{tag}>"
    assert text[slice(*reading(text).sections[tag])] == "a"
    assert blocks(text, tag) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", {"empty", "no think block", "no answer block"}),
        ("red", {"no think block", "no answer block"}),
        ("<answer>red</answer>", {"no think block"}),
        ("well <think>a</think><answer>b</answer>", {"text before think"}),
        ("<think>a</think> so <answer>b</answer>", {"text between blocks"}),
        ("<think>a</think><answer>b</answer> done", {"text after answer"}),
        ("<think> </think><answer></answer>", {"empty think", "empty answer"}),
        ("<answer>b</answer><think>a</think>", {"answer before think", "text before think", "text after answer"}),
        ("<think>a<answer>x</answer></think><answer>b</answer>", {"answer inside think", "answer twice"}),
        ("<think>a</think><think>a</think><answer>b</answer>", {"think twice"}),
        ("<think>a</think><answer>b</answer><answer>c</answer>", {"answer twice"}),
        ("<think>a<answer>b</answer>", {"no think block", "unclosed think"}),
        ("a</think><answer>b</answer>", {"no think block", "unopened think"}),
        ("<Think>a</Think>< answer>b</answer>", {"odd tag"}),
        ("<think>a</think><box>[1,2,3,4]</box>", {"no answer block"}),
        ("<think>a</think><rethink>r</rethink><answer>b</answer>", set()),
        ("<Focus>\n<think>a</think><answer>b</answer>", {"text before think"}),
        ("<think>a</think><answer>b</answer></answer>", {"unopened answer", "text after answer"}),
    ],
)
def test_problems_are_named(text: str, problems: set[str]) -> None:
    assert set(reading(text).problems) == problems


def test_the_first_closed_block_counts() -> None:
    out = reading("<think>a</think><answer> b </answer><answer>c</answer>")
    assert (out.think, out.answer) == ("a", "b")
    assert reading("<answer>x<answer>y</answer>").answer == "x<answer>y"


def test_an_answer_left_open_counts_in_a_finished_reply_only() -> None:
    text = "<think>a</think> <answer> 7"
    assert reading(text).answer == "7"
    assert {"unclosed answer", "no answer block"} <= set(reading(text).problems)
    cut = reading(text, finish="length")
    assert cut.answer is None
    assert {"unclosed answer", "truncated"} <= set(cut.problems)
    assert reading("<answer> 7 </think> more").answer == "7"
    assert reading("<answer><box>[1,2,3,4]</box>").answer == "<box>[1,2,3,4]</box>"
    assert reading("<answer>").answer == ""


def test_a_think_block_opened_by_the_prompt_is_read() -> None:
    out = reading("so it is red </think><answer>red</answer>")
    assert out.think == "so it is red "
    assert "think" not in out.sections
    assert reading("<think> cut", finish="length").think is None


def test_attributes_and_longer_names_are_not_confused() -> None:
    out = scan('<cases><case id="1">a</case></cases> <thinking>b</thinking> <answer-key>c</answer-key>')
    assert set(out.blocks) == {"cases"}
    assert blocks('<case id="1">a</case><case id="2">b</case>', "case") == ("a", "b")


def test_cutting_boxes_out() -> None:
    text = '<think>a cup <box>[1,2,3,4]</box> left of [5,6,7,8] {"bbox_2d": [1,2,3,4]}.</think>'
    out = reading(text)
    assert without_boxes(out) == "<think>a cup left of {}.</think>"
    assert without_boxes(out, out.sections["think"]) == "a cup left of {}."
    assert without_boxes(reading("nothing")) == "nothing"
    assert without_boxes(out, Span(0, 0)) == ""


def test_the_release_reading() -> None:
    out = strict_read("  <think> a < b </think> junk <answer> 1 / 2 </answer>\n")
    assert (out.is_formatted, out.think, out.answer) == (True, "a<b", "1/2")
    assert strict_read("<think></think><answer></answer>").is_formatted
    assert strict_read("<think>a</think><think>b</think><answer>c</answer><answer>d</answer>").is_formatted
    assert not strict_read("junk <think>a</think><answer>b</answer>").is_formatted
    assert not strict_read("<think>a</think><answer>b</answer> junk").is_formatted
    assert not strict_read("<think>a</think>").is_formatted
    assert not strict_read("<answer>b</answer><think>a</think>").is_formatted
    assert not strict_read("<think>a</think><answer></think></answer").is_formatted
    assert not strict_read("<think></think></answer>").is_formatted
    assert strict_read("<think>a").think is None
    assert strict_read("no tags / here").text == "no tags/here"


@pytest.mark.parametrize(
    ("text", "boxes", "tags", "valid"),
    [
        ("<box>[1,2,30,40]</box>", [(1, 2, 30, 40)], 1, 1),
        ("<box> [1,2,30,40] tail</box>", [(1, 2, 30, 40)], 1, 1),
        ("<box>[1, 2, 30, 40]</box>", [], 1, 0),
        ("<box>[1.0,2,30,40]</box>", [], 1, 0),
        ("<box>[-1,2,30,40]</box>", [], 1, 0),
        ("<box>the cup [1,2,30,40]</box>", [], 1, 0),
        ("<box>[30,2,1,40]</box>", [(30, 2, 1, 40)], 1, 0),
        ("<box>[1,2,30,40],[50,50,60,60]</box>", [(1, 2, 30, 40)], 1, 1),
        ("<box>[1,2,30,40]</box> outside think <box>x</box>", [(1, 2, 30, 40)], 2, 1),
        ("<box>[1,2,30,40]", [], 0, 0),
        (f"<box>[1,2,30,{'9' * 6000}]</box>", [(1, 2, 30, 10**9)], 1, 1),
    ],
)
def test_boxes_of_the_release(text: str, boxes: list[tuple[int, ...]], tags: int, valid: int) -> None:
    out = strict_read(text)
    assert (list(out.boxes), out.tags, out.valid) == (boxes, tags, valid)


def test_the_detector_of_grit() -> None:
    assert comma_lists("0.1, 0.2, 0.3, 0.4") == ()
    assert comma_lists("[10.5, 20, 30, 40.2]") == ((5, 20, 30, 40),)
    assert comma_lists("1,2,3,4,5,6,7,8") == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert comma_lists("0, 0, 0, 0") == ((0, 0, 0, 0),)
    assert comma_lists("[90, 80, 10, 5000]") == ((90, 80, 10, 5000),)
    assert comma_lists("[-5, 6, -7, 8]") == ()
    assert comma_lists("-5, 6, 7, 8") == ((5, 6, 7, 8),)
    assert comma_lists("1,2,3,4px") == ()


def test_the_box_of_ground_r1() -> None:
    assert first_bracketed("<think>a list [1,2,3,4]</think><box>[5,6,7,8]</box>") == (1, 2, 3, 4)
    assert first_bracketed("<box>[-5,6,7,8]</box>") is None
    assert first_bracketed("<box>[0.5, 6, 7.25, 8]</box>") == (0.5, 6, 7.25, 8)


names = st.sampled_from([*TAGS, "case", "Focus", "tool_response", "bbox"])
numbers = (
    st.integers(-2000, 2000).map(str) | st.floats(-2, 2000).map(str) | st.sampled_from(["1e5", "9" * 40, "−7", ".5"])
)
separators = st.sampled_from([",", ", ", " ", ";", "，", " ,\n", "][", "),(", ""])
joints = st.lists(st.tuples(numbers, separators), min_size=1, max_size=9).map(lambda p: "".join(a + b for a, b in p))
lists = st.builds(
    lambda a, middle, b: a + middle + b,
    st.sampled_from(["[", "(", "[[", ""]),
    joints,
    st.sampled_from(["]", ")", "]]", ""]),
)
keys = st.sampled_from(
    ['"bbox_2d": ', "'box'=", "bbox_2d_1: ", '"x1": 3, "y1": 4, "x2": 5, "y2": ', '"image": 1, ', '{"bbox": ']
)
tags = st.builds(
    lambda name, a, b, c: f"<{a}{name}{b}>{c}",
    names,
    st.sampled_from(["", "/", " ", "/ "]),
    st.sampled_from(["", " ", ' id="1"', " image=1"]),
    st.sampled_from(["", " "]),
)
pieces = st.one_of(tags, lists, keys, st.text(max_size=6), st.sampled_from(list("<>[](){}/|,\"'\x00\ud800é漢🙂")))
replies = st.lists(pieces, max_size=14).map("".join)


def check(text: str, finish: str, count: int) -> None:
    """What holds for every string."""
    out = read(text, FRAME, SIZES[:count], finish=finish)  # type: ignore[arg-type]
    assert out.text == text
    for problem in out.problems:
        known = problem in REPLY_PROBLEMS
        assert known or problem.split(" ")[0] in ("unclosed", "unopened") or problem.endswith(" twice")
    for start, end in out.sections.values():
        assert 0 <= start <= end <= len(text)
    end = 0
    for box in out.boxes:
        assert end <= box.span.start < box.span.end <= len(text)
        end = box.span.end
        assert set(box.problems) <= set(BOX_PROBLEMS)
        assert len(set(box.problems)) == len(box.problems)
        assert box.box.x1 <= box.box.x2
        assert box.box.y1 <= box.box.y2
        assert box.is_valid == (box.image < count and box.box.area > 0)
        if box.image < count:
            width, height = SIZES[box.image]
            assert 0 <= box.box.x1 <= box.box.x2 <= width
            assert 0 <= box.box.y1 <= box.box.y2 <= height
    assert len(without_boxes(out)) <= len(text)
    strict = strict_read(text)
    assert strict.valid <= len(strict.boxes) <= strict.tags
    comma_lists(text)
    first_bracketed(text)


@settings(max_examples=2000)
@given(replies, st.sampled_from(["stop", "length"]), st.integers(0, 2))
def test_reading_never_fails(text: str, finish: str, count: int) -> None:
    check(text, finish, count)


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_reading_never_fails_on_arbitrary_text(text: str) -> None:
    check(text, "stop", 1)


@settings(max_examples=300)
@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]), max_size=5))
def test_well_written_boxes_come_back(boxes: list[tuple[int, int, int, int]]) -> None:
    text = (
        "<think>look"
        + "".join(f" a thing <box>[{','.join(map(str, b))}]</box>" for b in boxes)
        + "</think><answer>x</answer>"
    )
    out, strict = reading(text), strict_read(text)
    assert [b.written for b in out.boxes] == boxes == list(strict.valid_boxes)
    assert all(b.is_valid and not b.problems for b in out.boxes)
    assert strict.is_formatted
    assert out.problems == ()
    for box, written in zip(out.boxes, boxes, strict=True):
        assert FRAME.write(box.box, SIZES[0]) == written


@pytest.mark.fuzz
def test_a_hundred_thousand_seeded_replies() -> None:
    random_source = random.Random(20260527)
    parts = [
        *(f"<{slash}{name}>" for name in (*TAGS, "case", "Focus", "bbox") for slash in ("", "/")),
        *(
            '"bbox_2d": ',
            "{",
            "}",
            "[",
            "]",
            "(",
            ")",
            ",",
            ", ",
            ";",
            " ",
            "\n",
            "<",
            ">",
            "/",
            "|",
            '"',
            "é",
            "漢",
            "\ud800",
        ),
        *(
            "[12,30,40,58]",
            "[12, 30, 40, 58]",
            "0.1",
            "-5",
            "−3",
            "7",
            "1000",
            "9" * 30,
            "1e9",
            ".5",
            "x1=",
            '"image": 1',
            "the cup",
        ),
        *("< box >", "<box image=2>", "<|box_start|>", "<|box_end|>", "<|im_end|>", "(1,2),(3,4)", "1,2,3,4"),
    ]
    for _ in range(100_000):
        text = "".join(random_source.choices(parts, k=random_source.randrange(24)))
        check(text, random_source.choice(["stop", "length"]), random_source.randrange(3))
