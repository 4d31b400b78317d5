from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from sightline.answers.match import is_match
from sightline.answers.math_worker import MathWorker
from sightline.types import AnswerKind, Record

KINDS: tuple[AnswerKind, ...] = ("option", "yes_no", "number", "text", "text_ocr", "free", "math")


def record(kind: AnswerKind, answer: str, **more: object) -> Record:
    return Record(id="r", question="?", answer=answer, answer_kind=kind, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def worker() -> Iterator[MathWorker]:
    worker = MathWorker(timeout=20)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("kind", "gold", "prediction", "value"),
    [
        ("option", "B", "(B) the dog", 1),
        ("option", "(B)", "the answer is A", 0),
        ("option", "the dog", "B", 1),
        ("yes_no", "yes", "Yes, it is.", 1),
        ("yes_no", "no", "yes", 0),
        ("number", "3", "three", 1),
        ("number", "1,000 m", "1 km", 1),
        ("number", "3", "13", 0),
        ("text", "green", "Green.", 1),
        ("text", "green", "light green", 0),
        ("text", "light green", "green", 0),
        ("text_ocr", "EXIT 12", "exit12", 1),
        ("text_ocr", "12.5", "125", 0),
        ("free", "a red car", "The red car", 1),
        ("math", "x+1", "x+1", 1),
    ],
)
def test_rules_decide(kind: AnswerKind, gold: str, prediction: str, value: float) -> None:
    match = is_match(prediction, record(kind, gold, options=("the cat", "the dog")))
    assert match.decided
    assert match.value == value
    assert match.why


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", ["", "  ", ".", "\n", "<>"])
def test_an_empty_answer_never_matches(kind: AnswerKind, prediction: str) -> None:
    for gold in ("yes", "3", "B", ""):
        match = is_match(prediction, record(kind, gold, options=("yes", "3")))
        assert match.value == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_flood_of_answers_never_matches(kind: AnswerKind) -> None:
    match = is_match("B yes 3 green " * 100, record(kind, "B", options=("x", "y")))
    assert (match.value, match.decided) == (0, True)


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [("option", "either"), ("yes_no", "maybe"), ("number", "2 or 3"), ("free", "x"), ("math", "x")],
)
def test_what_rules_cannot_tell_stays_open(kind: AnswerKind, prediction: str) -> None:
    match = is_match(prediction, record(kind, {"option": "A", "yes_no": "no", "number": "3"}.get(kind, "y")))
    assert (match.value, match.decided, match.failed) == (0, False, False)


def test_aliases_are_right_too() -> None:
    several = record("text", "sofa", meta={"aliases": ["couch"]})
    assert is_match("couch", several).value == 1
    assert is_match("chair", several).value == 0


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [("\\frac{1}{2}", "0.5", 1), ("x^2+2x+1", "(x+1)^2", 1), ("2\\sqrt{2}", "\\sqrt{8}", 1), ("3", "4", 0)],
)
def test_math_is_decided_by_the_worker(worker: MathWorker, gold: str, answer: str, value: float) -> None:
    match = is_match(answer, record("math", gold), worker=worker)
    assert (match.value, match.decided, match.failed) == (value, True, False)


def test_math_works_in_threads(worker: MathWorker) -> None:
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(worker.equality(f"{i}+1", f"1+{i}").is_equal))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_a_hanging_comparison_fails_and_the_worker_recovers() -> None:
    worker = MathWorker(timeout=10)
    try:
        assert worker.equality("1/2", "0.5").is_equal  # started
        worker.timeout = 0.0
        started = time.monotonic()
        hung = is_match("3/4", record("math", "0.75"), worker=worker)
        assert time.monotonic() - started < 5
        assert (hung.failed, hung.decided, hung.value) == (True, False, 0)
        assert worker.restarts == 1
        worker.timeout = 20.0
        assert worker.equality("0.75", "3/4").failed  # remembered: a bad answer costs its time once
        assert worker.equality("0.75", "\\frac{3}{4}").is_equal
    finally:
        worker.close()


def test_a_crashed_worker_fails_and_recovers() -> None:
    worker = MathWorker(timeout=20)
    try:
        assert worker.equality("1/2", "0.5").is_equal
        assert worker._process is not None
        worker._process.kill()
        worker._process.wait()
        assert worker.equality("1/4", "0.25").is_equal
    finally:
        worker.close()
