"""Overlap of texts: golden vectors of the released rewards, closed forms, and what holds for every pair of texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.rewards.stemming import stem
from sightline.rewards.text_overlap import (
    rouge_f1,
    rouge_l,
    rouge_mean,
    rouge_words,
    word_accuracy,
    word_error_rate,
)  # fmt: skip

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1.json").read_text())
TEXTS = st.text(st.sampled_from("ab \n.Xé7"), max_size=40)


@pytest.mark.parametrize(("answer", "value"), GOLDEN["ocr"]["cases"])
def test_word_accuracy_as_released(answer, value) -> None:
    assert word_accuracy(GOLDEN["ocr"]["truth"], answer) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(("gold", "answer", "value"), GOLDEN["rouge"])
def test_rouge_as_released(gold, answer, value) -> None:
    assert rouge_mean(gold, answer, short=False) == pytest.approx(value, abs=1e-9)


def test_edits_by_hand() -> None:
    assert word_error_rate("a b c d", "a x c") == 2 / 4  # one substitution, one deletion
    assert word_error_rate("a b", "a b c d e") == 3 / 2
    assert word_error_rate("", "a b") == 2
    assert word_error_rate("a b", "b a") == 1
    assert word_accuracy("", "") == 1


def test_rouge_by_hand() -> None:
    gold, answer = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "on", "the", "the", "mat"]
    assert rouge_f1(gold, answer, 1) == pytest.approx(10 / 12)  # all but "sat"; one "the" too many
    assert rouge_f1(gold, answer, 2) == pytest.approx(6 / 10)  # the-cat, on-the, the-mat
    assert rouge_l(gold, answer) == pytest.approx(10 / 12)  # the cat on the mat
    assert rouge_f1(["a"], ["a"], 2) == 0


def test_a_single_word_has_no_pairs_to_miss() -> None:
    assert rouge_mean("red", "red") == 1
    assert rouge_mean("red", "a red cup") == pytest.approx((2 * 1 / 4 + 2 * 1 / 4) / 2)
    assert rouge_mean("", "red") == rouge_mean("", "") == 0


def test_stems_of_the_published_algorithm() -> None:
    """Words of Porter's paper, one or more per step."""
    paper = {
        "caresses": "caress", "ponies": "poni", "ties": "tie", "cats": "cat", "feed": "feed", "agreed": "agre",
        "plastered": "plaster", "motoring": "motor", "sing": "sing", "conflated": "conflat", "troubled": "troubl",
        "sized": "size", "hopping": "hop", "falling": "fall", "hissing": "hiss", "fizzed": "fizz", "failing": "fail",
        "filing": "file", "happy": "happi", "conditional": "condit", "digitizer": "digit", "vietnamization": "vietnam",
        "operator": "oper", "decisiveness": "decis", "hopefulness": "hope", "triplicate": "triplic",
        "formative": "form", "electrical": "electr", "goodness": "good", "allowance": "allow", "adjustable": "adjust",
        "replacement": "replac", "adoption": "adopt", "effective": "effect", "probate": "probat", "rate": "rate",
        "cease": "ceas", "controll": "control", "roll": "roll",
    }  # fmt: skip
    assert {word: stem(word) for word in paper} == paper


def test_stems_where_toolkits_depart_from_the_paper() -> None:
    assert [stem(w) for w in ("dies", "skies", "dying", "news", "spied", "enjoy", "by", "geologi", "hopefulli")] == [
        "die", "sky", "die", "news", "spi", "enjoy", "by", "geolog", "hope",
    ]  # fmt: skip
    assert rouge_words("The men's RIDES, naïve 12!") == ["the", "men", "s", "ride", "na", "ve", "12"]


@given(TEXTS, TEXTS)
def test_bounds_and_symmetry(a, b) -> None:
    assert 0 <= word_accuracy(a, b) == word_accuracy(b, a) <= 1
    assert 0 <= rouge_mean(a, b, short=False) <= 1
    assert rouge_mean(a, b, short=False) == pytest.approx(rouge_mean(b, a, short=False))
    assert word_error_rate(a, a) == 0


@given(st.text(max_size=200))
def test_any_text_overlaps_itself_as_well_as_it_can(text) -> None:
    assert word_accuracy(text, text) == 1
    assert rouge_mean(text, text) == (1 if rouge_words(text) else 0)


def test_long_texts_are_compared_up_to_a_limit() -> None:
    long = " ".join(str(i) for i in range(20_000))
    assert word_accuracy(long, long) == 1
    assert rouge_mean(long, long) == 1
