"""GRIT's reward terms: golden vectors of the released code, the paper's where they differ, and closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.geometry.frames import Frame
from sightline.language.parse import read
from sightline.language.strict import comma_lists
from sightline.rewards import grit, grit_release
from sightline.rewards.bleu import bleu_1, words
from sightline.rewards.counting import count_match, gold_count
from sightline.types import Reading, Record, Size

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "grit.json").read_text())
FRAME = Frame("absolute", 28, 3136, 200704)
PARTS = ("<think>", "</think>", "<rethink>", "</rethink>", "<answer>", "</answer>", '{"bbox_2d": [1, 2, 30, 40]}')
texts = st.lists(st.one_of(st.sampled_from([*PARTS, " 5 ", "0,0,0,0", "the cup "]), st.text(max_size=12)), max_size=24)


def reading(text: str) -> Reading:
    return read(text, FRAME, [Size(280, 280)])


@pytest.mark.parametrize("case", GOLDEN["boxes"], ids=lambda case: case["name"])
def test_box_detector(case: dict) -> None:
    assert [list(box) for box in comma_lists(case["text"])] == case["boxes"]
    assert grit.chain_boxes(reading(case["text"])) == len(case["boxes"])
    assert grit_release.release_boxes(case["text"] + "<rethink>") == len(case["boxes"])


@pytest.mark.parametrize("case", GOLDEN["repetition"], ids=lambda case: f"{case['period']} of {case['words']}")
def test_repetition(case: dict) -> None:
    text = " ".join(f"w{i % case['period']}" for i in range(case["words"]))
    ids = [i % case["id_period"] for i in range(case["ids"])]
    assert 0.5 * grit_release.release_repetition(text, ids).value == pytest.approx(case["value"])


class TestBLEU:
    def test_closed_forms(self) -> None:
        assert bleu_1(["a"], []) == bleu_1([], ["a"]) == bleu_1(["a"], ["b"]) == 0
        assert bleu_1(["a", "b", "c"], ["a", "b", "c"]) == 1
        assert bleu_1(["a"], ["a"] * 4) == 0.25  # clipped: the reference holds one
        assert bleu_1(["a"] * 4, ["a"]) == pytest.approx(math.exp(1 - 4))  # too short

    def test_order_does_not_matter(self) -> None:
        assert bleu_1(["the", "red", "cup"], ["cup", "red", "the"]) == 1

    @given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")))
    def test_range(self, reference: list[str], hypothesis: list[str]) -> None:
        value = bleu_1(reference, hypothesis)
        assert 0 <= value <= 1
        assert (value == 1) == (bool(reference) and sorted(reference) == sorted(hypothesis))

    def test_words_know_other_alphabets_and_the_release_does_not(self) -> None:
        record = Record(id="a", question="?", answer="café")
        assert words("Café_au lait!") == ["café", "au", "lait"]
        assert grit.answer_bleu(Reading(text="", answer="cafe"), record).value == 0
        assert grit_release.release_bleu("<answer> caf", record).value == 1


class TestPairs:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("<think>a</think> so <rethink>b</rethink>", 1.0),
            ("<think>a<rethink>b</rethink></think>", 0.5),
            ("<think>a<rethink>b</rethink>", 0.5),
            ("a</think><rethink>b</rethink>", 0.5),
            ("<think>a</think><rethink>b</rethink><rethink>c</rethink>", 0.5),
            ("<rethink>b</rethink>", 0.5),
            ("nothing", 0.0),
        ],
    )
    def test_values(self, text: str, value: float) -> None:
        assert grit.tag_pairs(reading(text)).value == value


class TestChainBoxes:
    TEXT = '<think> {"bbox_2d": [0, 0, 0, 0]} (10, 10, 60, 60) [10,10,60,61] [500,0,600,9]</think><rethink>[1,1,9,9]'

    def test_own_options_ask_where_a_box_lies(self) -> None:
        found = reading(self.TEXT)
        assert [grit.chain_boxes(found, how) for how in ("written", "valid", "distinct")] == [4, 2, 1]

    def test_boxes_of_the_answer_are_none_of_the_chain(self) -> None:
        assert grit.chain_boxes(reading("<think>[1,1,9,9]</think><answer>[2,2,9,9]")) == 1


class TestCounting:
    def test_who_counts(self) -> None:
        record = Record(id="a", question="?", answer="3", answer_kind="number")
        assert gold_count(record) is None
        for meta in ({"dataset": "tallyqa"}, {"type": "count"}):
            assert gold_count(Record(id="a", question="?", answer="3", meta=meta)) == 3

    @pytest.mark.parametrize("answer", ["yes", "-1", "2.0", "three", "", "9" * 40, "²"])
    def test_an_answer_that_is_no_number_never_raises(self, answer: str) -> None:
        assert gold_count(Record(id="a", question="?", answer=answer, meta={"dataset": "tallyqa"})) is None

    def test_zero_is_a_count(self) -> None:
        assert [count_match(n, 0).value for n in (0, 1)] == [1.0, 0.0]


class TestForm:
    @pytest.mark.parametrize("end", ["</answer>", "", "</answer>\n"])
    def test_open_answers_pass(self, end: str) -> None:
        text = f"<think> a [1,2,3,4]</think>\n<rethink> b </rethink> <answer> 7{end}"
        assert grit.grit_format(reading(text)).value == 1

    @pytest.mark.parametrize(
        "text",
        [
            "<think>a</think><answer>7</answer>",
            "<think>a</think><rethink>b</rethink><answer></answer>",
            "<think>.</think><rethink>b</rethink><answer>7</answer>",
            "x <think>a</think><rethink>b</rethink><answer>7</answer>",
            "<think>a</think><rethink>b</rethink><answer>7</answer> so",
            "<think>a</think><rethink>b</rethink><answer>7<answer>8</answer>",
            "<think>a<think></think><rethink>b</rethink><answer>7</answer>",
        ],
    )
    def test_what_does_not(self, text: str) -> None:
        assert grit.grit_format(reading(text)).value == 0

    def test_a_reply_that_was_cut_is_not_formed(self) -> None:
        text = "<think>a</think><rethink>b</rethink><answer> 7"
        assert grit.grit_format(read(text, FRAME, [], finish="length")).value == 0


@settings(max_examples=1000, deadline=None)
@given(texts, st.sampled_from(["5", "yes", "", "0"]))
def test_every_term_is_total_and_in_range(parts: list[str], answer: str) -> None:
    text = "".join(parts)
    found, record = reading(text), Record(id="a", question="?", answer=answer, meta={"dataset": "tallyqa"})
    for score in (
        grit.tag_pairs(found),
        grit.answer_bleu(found, record),
        grit.grit_format(found),
        grit_release.release_tags(text),
        grit_release.release_answer_tag(text),
        grit_release.release_bleu(text, record),
    ):
        assert 0 <= score.value <= 1
        assert score.why
    assert -1 <= grit_release.release_repetition(text, [1] * len(text)).value <= 1
    counts = [grit.chain_boxes(found, how) for how in ("written", "valid", "distinct")]
    assert counts[1] >= counts[2]
    grit_release.release_answer_request(text, record)
