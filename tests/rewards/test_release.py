"""The released iVGR rewards against vectors obtained from the released code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.answers.judge_prompts import release_level
from sightline.geometry.frames import Frame
from sightline.language.strict import strict_read
from sightline.methods.ivgr import IVGRConfig
from sightline.rewards import release
from sightline.types import Box, ImageRef, Record, Region, Score, Size

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ivgr.json").read_text())
RECORD = Record(id="r", question="Which color?", answer=GOLDEN["answer"])
WEIGHTS = IVGRConfig.model_validate({"preset": "release"}).weights.model_dump()


def total(stream: str, terms: dict[str, Score], *, is_outage: bool = False) -> float:
    weights = {**WEIGHTS, **({"accuracy": WEIGHTS["general_accuracy"]} if stream == "general" else {})}
    return 0.0 if is_outage else sum(weights[name] * score.value for name, score in terms.items())


def stub(request: JudgeRequest | None, *, is_down: bool) -> Verdict | None:
    if request is None:
        return None
    if is_down:
        return Verdict(value=None, why="down", failed=True)
    if request.kind == "answer":
        return Verdict(value=float(request.candidate == request.reference), why="exact")
    levels = [release_level(reply, "consistency") or 0.0 for reply in GOLDEN["consistency_replies"]]
    return Verdict(value=sum(levels) / 4, why="mean of 4")


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
        assert total(case["stream"], terms, is_outage=is_outage) == pytest.approx(case["total"], abs=1e-12)


@pytest.mark.parametrize(("reply", "value"), GOLDEN["rubric_replies"])
def test_rubric_replies(reply: str, value: float | None) -> None:
    assert release_level(reply, "consistency") == value


def test_a_failed_consistency_judge_gives_zero() -> None:
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
    common = {"format": Score(1.0), "accuracy": Score(1.0)}
    streams = {"grounded": ("box", "validity"), "textual": ("consistency",), "general": ()}
    greatest = {name: total(name, common | dict.fromkeys(extra, Score(1.0))) for name, extra in streams.items()}
    assert greatest == {"grounded": 4.0, "textual": 3.0, "general": 2.5}
