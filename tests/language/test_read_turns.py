"""A conversation read turn by turn: the whole speaks through its last turn, with places in the joined text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sightline.geometry.frames import Frame
from sightline.language.parse import read, read_turns
from sightline.types import Finish, Size

FRAME = Frame("relative_1000", 32, 65536, 16777216)
SIZES = [Size(640, 480), Size(31, 77)]
PIECES = ("<think>", "</think>", "<box>[1,2,30,40]</box>", "[5,6,7,80]", "<answer>", "</answer>", " red", "\n", "<box>")


def test_the_whole_speaks_through_its_last_turn() -> None:
    texts = ["<think> a </think><box>[0,0,500,500]</box>", "<think> b </think><answer> red </answer>"]
    out = read_turns(texts, FRAME, SIZES)
    assert (out.think, out.answer) == (" b ", "red")
    assert out.text == "\n".join(texts)
    assert [out.text[slice(*box.span)] for box in out.boxes] == ["<box>[0,0,500,500]</box>"]
    assert out.text[slice(*out.sections["think"])] == " b "
    assert "box" not in out.sections
    assert out.problems == ()
    assert out.turns[0].problems == ("no answer block",)
    assert [turn.answer for turn in out.turns] == [None, "red"]
    assert read_turns(texts[:1] * 2, FRAME, SIZES).problems == ("no answer block",)


def test_the_token_limit_cuts_the_last_turn_only() -> None:
    out = read_turns(["<answer>a", "<answer>b"], FRAME, SIZES, finish="length")
    assert [("truncated" in turn.problems) for turn in out.turns] == [False, True]
    assert [turn.answer for turn in out.turns] == ["a", None]


@given(
    st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map("".join), min_size=1, max_size=4),
    st.sampled_from(["stop", "length"]),
)
def test_any_turns_keep_their_places(texts: list[str], finish: Finish) -> None:
    out = read_turns(texts, FRAME, SIZES, finish=finish)
    last = read(texts[-1], FRAME, SIZES, finish=finish)
    if len(texts) == 1:
        assert out == last
        return
    assert out.turns == (*(read(text, FRAME, SIZES) for text in texts[:-1]), last)
    assert [out.text[slice(*box.span)] for box in out.boxes] == [
        turn.text[slice(*box.span)] for turn in out.turns for box in turn.boxes
    ]
    assert {name: out.text[slice(*span)] for name, span in out.sections.items()} == {
        name: texts[-1][slice(*span)] for name, span in last.sections.items()
    }
    asked = {problem for turn in out.turns[:-1] for problem in turn.problems} - {"no answer block"}
    assert set(out.problems) == asked | set(last.problems)
    assert len(set(out.problems)) == len(out.problems)
