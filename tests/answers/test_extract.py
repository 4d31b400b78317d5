from __future__ import annotations

import pytest

from sightline.answers.extract import final_answer, normal_text, option_letter, yes_no
from sightline.answers.numbers import number, quantities
from sightline.types import Reading

OPTIONS = ("the cat", "the red car", "the dog", "a tree")


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        # Replies on which published evaluators choose another letter.
        ("Answer: B", "B"),
        ("Answer is (C).", "C"),
        ("Based on the image, the answer is D.", "D"),
        ("The answer is B", "B"),
        ("<think> Between A and B, A is wrong. </think> <answer> (C) the dog </answer>", "C"),
        ("b", "B"),
        ("(c)", "C"),
        ("**B**", "B"),
        ("\\boxed{D}", "D"),
        ("B. the red car", "B"),
        ("the red car", "B"),
        ("The dog.", "C"),
        ("The answer is not A, it is B", "B"),
        ("Answer: A. Wait, answer: B", "B"),
        ("It's A", "A"),
        ("The correct option is: D", "D"),
    ],
)
def test_option_letter_is_read(reply: str, letter: str) -> None:
    assert option_letter(reply, OPTIONS) == letter


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   ",
        "A or B",
        "(A) or (B)",
        "A, B, C, D",
        "A. the cat\nB. the red car\nC. the dog",
        "E",
        "I",
        "a cat and a dog",
    ],
)
def test_undecided_replies_have_no_letter(reply: str) -> None:
    assert option_letter(reply, OPTIONS) is None


def test_article_is_no_option() -> None:
    assert option_letter("A dog stands there", ("x", "y")) is None


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("yes", "yes"),
        ("No.", "no"),
        ("Yes, there is no dog", None),
        ("So the answer is no", "no"),
        ("There is no dog here", None),
        ("yes and no", None),
        ("", None),
        ("<think> no </think><answer> Yes </answer>", "yes"),
    ],
)
def test_yes_no(reply: str, expected: str | None) -> None:
    assert yes_no(reply) == expected


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("3", 3),
        ("three dogs", 3),
        ("twenty-one", 21),
        ("one hundred and five", 105),
        ("1,234.5", 1234.5),
        ("-3", -3),
        ("1/2", 0.5),
        ("about 5 cm", 5),
        ("a dozen", 12),
        ("3 dogs and 3 cats", 3),
        ("2 + 3, so the answer is 5", 5),
        ("none", 0),
        ("two hundred thousand and six", 200006),
    ],
)
def test_number(reply: str, value: float) -> None:
    found = number(reply)
    assert found is not None
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    "reply", ["", "2 or 3", "answer is 2 or 3", "1 2 3", "v2", "1e999", "12,34", "9" * 5000, "1/0"]
)
def test_no_single_number(reply: str) -> None:
    assert number(reply) is None


def test_units_convert_and_only_count_on_both_sides() -> None:
    ten_mm, one_cm, plain, kg = (quantities(t)[0] for t in ("10 mm", "1 cm", "10", "10 kg"))
    assert ten_mm.matches(one_cm)
    assert ten_mm.matches(plain)
    assert not ten_mm.matches(kg)
    assert not plain.matches(one_cm)


def test_normal_text_keeps_what_changes_the_meaning() -> None:
    assert normal_text("The  Red, car!") == normal_text("red car")
    assert normal_text("3.5") != normal_text("35")
    assert normal_text("...") == ""


@pytest.mark.parametrize(
    ("reading", "answer"),
    [
        (Reading(text="<answer> red </answer>", answer="red"), "red"),
        (Reading(text="red"), "red"),
        (Reading(text="<think> blue </think> red"), "red"),
        (Reading(text="<think> blue"), ""),
        (Reading(text="<think> a </think><answer> red"), ""),
    ],
)
def test_final_answer(reading: Reading, answer: str) -> None:
    assert final_answer(reading) == answer
