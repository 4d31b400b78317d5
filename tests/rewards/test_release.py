"""The released iVGR rewards against vectors obtained from the released code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.geometry.frames import Frame
from sightline.language.strict import strict_read
from sightline.rewards import release
from sightline.types import Box, ImageRef, Record, Region, Score, Size

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ivgr.json").read_text())
RECORD = Record(id="r", question="Which color?", answer=GOLDEN["answer"])


def stub(request: JudgeRequest | None, *, is_down: bool) -> Verdict | None:
    if request is None:
        return None
    if is_down:
        return Verdict(value=None, why="down", failed=True)
    if request.kind == "answer":
        return Verdict(value=float(request.candidate == request.reference), why="exact")
    return Verdict(value=release.release_rubric_mean(GOLDEN["consistency_replies"]), why="mean of 4")


def terms_of(case: dict) -> tuple[dict[str, Score], bool]:
    strict, is_down = strict_read(case["text"]), case.get("judge_is_down", False)
    accuracy = release.release_accuracy(strict, stub(release.release_answer_request(strict, RECORD), is_down=is_down))
    terms = {"format": release.release_format(strict), "accuracy": accuracy}
    if case["stream"] == "grounded":
        gold = [None if b is None else Box(*b) for b in case["gold"]]
        terms |= {"box": release.release_dual_iou(strict, gold), "validity": release.release_validity(strict, gold)}
    if case["stream"] == "textual":
        reference = case.get("reference")
        request = release.release_consistency_request(strict, RECORD, reference)
        terms["consistency"] = release.release_consistency(strict, reference, stub(request, is_down=is_down))
    return terms, accuracy.masked


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[c["case"] for c in GOLDEN["cases"]])
def test_golden(case: dict) -> None:
    terms, is_outage = terms_of(case)
    for name, value in case.get("terms", {}).items():
        assert terms[name].value == pytest.approx(value, abs=1e-12), name
    assert all(term.why for term in terms.values())
    if case["total"] is not None:
        total = release.release_total(case["stream"], terms, is_outage=is_outage)
        assert total == pytest.approx(case["total"], abs=1e-12)


@pytest.mark.parametrize(("reply", "value"), GOLDEN["rubric_replies"])
def test_rubric_replies(reply: str, value: float | None) -> None:
    assert release.release_rubric(reply) == value


def test_unreadable_replies_are_dropped_and_none_is_zero() -> None:
    assert release.release_rubric_mean(["?", "0.7"]) == 0.7
    assert release.release_rubric_mean(["?"]) is None
    strict = strict_read("<think>a</think>")
    assert release.release_consistency(strict, "a", Verdict(value=None, why="?", failed=True)) == Score(
        0.0, "judge failed: ?"
    )


def test_duplicates_are_looked_for_from_the_first_half_only() -> None:
    def boxes(*starts: int) -> str:
        return "".join(f"<box>[{x},0,{x + 9},9]</box>" for x in starts)

    gold = [Box(0, 0, 9, 9)]
    assert release.release_validity(strict_read(boxes(0, 20, 40, 40)), gold).value == 1.0
    assert release.release_validity(strict_read(boxes(0, 20, 40, 20)), gold).value == 0.0
    assert release.release_validity(strict_read(boxes(0)), gold).value == 1.0
    assert release.release_validity(strict_read(boxes(0) + "<box>[9,9,1,1]</box>"), gold).value == 0.5


def test_gold_boxes_are_scaled_by_the_first_and_the_last_image() -> None:
    images = (ImageRef(size=Size(280, 280), digest="a"), ImageRef(size=Size(560, 140), digest="b"))
    record = Record(id="r", question="?", answer="x", images=images, regions=(Region(box=Box(10, 10, 101, 101)),))
    frame = Frame("absolute", 28, 3136, 3211264)
    assert release.release_gold(record, frame) == (Box(5, 20, 50, 202),)
    relative = release.release_gold(record, Frame("relative_1000", 32, 3136, 3211264))
    assert relative == (Box(18, 71, 180, 721),)


def test_greatest_totals() -> None:
    full = {name: Score(1.0) for name in ("format", "accuracy", "box", "validity", "consistency")}
    greatest = {
        stream: release.release_total(stream, {name: full[name] for name in weights})
        for stream, weights in release.RELEASE_WEIGHTS.items()
    }
    assert greatest == {"grounded": 4.0, "textual": 3.0, "general": 2.5}
