from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from sightline.errors import UserError
from sightline.evaluate.compare import compare
from sightline.evaluate.metrics import METRICS
from sightline.evaluate.runner import append_events, evaluate, read_table, write_table
from sightline.geometry.frames import Frame
from sightline.images import image_ref
from sightline.sampling.base import SamplingSettings
from sightline.types import Box, Record, Region, Rollout

SETTINGS = SamplingSettings(temperature=0.0, max_new_tokens=32)


class Speaker:
    frame = Frame("relative_1000", 16, 256, 9216)
    style = "full"


@dataclass
class OracleSampler:
    """Answers right for records whose number is in `right`; boxes the gold region in a grounded stream."""

    right: set
    calls: int = 0
    streams: list = field(default_factory=list)

    def sample(self, requests, settings, *, seed, step):  # noqa: ARG002
        self.calls += 1
        self.streams += [request.prompt.stream for request in requests]
        return [[self._rollout(request.prompt)] * request.n for request in requests]

    def _rollout(self, prompt):
        record = prompt.record
        said = record.answer if int(record.id) in self.right else "nothing"
        box = f"<box>{list(Speaker().frame.write(record.regions[0].box, record.images[0].size))}</box>"
        seen = box if prompt.stream == "grounded" else "it"
        text = f"<think> look at {seen} </think> <answer> {said} </answer>"
        ids = np.arange(len(text.split()))
        return Rollout(
            prompt=prompt, branch=(0,), prompt_ids=np.zeros(1, int), ids=ids, sampled=np.ones(len(ids), bool),
            logprobs=np.zeros(len(ids)), text=text, finish="stop",
        )  # fmt: skip


def records(count: int) -> list[Record]:
    image = image_ref(np.zeros((100, 100, 3), dtype=np.uint8))
    return [
        Record(
            id=str(i),
            question="Which color?",
            answer="green",
            images=(image,),
            regions=(Region(box=Box(10, 20, 50, 60)),),
        )
        for i in range(count)
    ]


def run(right, count=20, modes=("textual", "grounded", "crops"), **more):
    sampler = OracleSampler(set(right))
    result = evaluate(Speaker(), records(count), modes, sampler=sampler, settings=SETTINGS, is_shown=False, **more)  # type: ignore[arg-type]
    return result, sampler


def test_figures_by_mode():
    result, _ = run(range(15))
    for mode in ("textual", "grounded", "crops"):
        found = result.estimates[mode]
        assert found["accuracy"].mean == 0.75
        assert found["accuracy"].low < 0.75 < found["accuracy"].high
        assert found["format"].mean == 1.0
        assert found["truncated"].mean == found["unanswered"].mean == 0.0
        assert found["accuracy"].n == 20
    assert result.estimates["grounded"]["iou"].mean == pytest.approx(1.0)
    assert result.estimates["crops"]["iou_at_50"].mean == 1.0
    assert result.estimates["grounded"]["boxes"].mean == result.estimates["grounded"]["box_rate"].mean == 1.0
    assert set().union(*result.estimates.values()) <= set(METRICS)


def test_what_says_nothing_is_absent():
    result, _ = run(range(15))
    assert "iou" not in result.estimates["textual"]
    assert "region" not in result.estimates["textual"]


def test_crop_modes_start_from_the_grounded_replies():
    _, sampler = run(range(5), count=5, modes=("crops", "textual", "grounded"))
    assert sorted(sampler.streams) == sorted(["grounded"] * 5 + ["textual"] * 5 + ["crops"] * 5)
    _, alone = run(range(5), count=5, modes=("crops",))
    assert sorted(alone.streams) == sorted(["grounded"] * 5 + ["crops"] * 5)


def test_batches_change_nothing():
    whole, _ = run(range(15), batch=64)
    parts, sampler = run(range(15), batch=3)
    assert whole.rows == parts.rows
    assert whole.estimates == parts.estimates
    assert sampler.calls > 3


def test_the_table_round_trips_and_events_follow_the_contract(tmp_path):
    result, _ = run(range(15), step=7, label="held out")
    path = write_table(result, tmp_path / "deep" / "table.jsonl")
    assert len(path.read_text().splitlines()) == 60
    again = read_table(path)
    assert [(row.record, row.mode, dict(row.metrics)) for row in again] == [
        (row.record, row.mode, dict(row.metrics)) for row in result.rows
    ]
    append_events(result, tmp_path / "evaluations.jsonl")
    append_events(result, tmp_path / "evaluations.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == ["textual", "grounded", "crops"] * 2
    assert {"step": 7, "label": "held out", "n": 20}.items() <= lines[0].items()
    assert lines[0]["metrics"]["accuracy"].keys() == {"mean", "low", "high", "n"}


def test_a_table_with_a_broken_line_is_named(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"record": "1"}\n')
    with pytest.raises(UserError, match=r"table.jsonl:1"):
        read_table(path)


def test_bad_requests():
    sampler = OracleSampler(set())
    for records_, modes, message in (
        ([], ["textual"], "no records"),
        (records(1), [], "no modes"),
        (records(1), ["zoom"], "unknown mode"),
        (records(1) * 2, ["textual"], "this id occurs twice"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(Speaker(), records_, modes, sampler=sampler, settings=SETTINGS)  # type: ignore[arg-type]


def test_comparison_is_paired_by_record():
    before, _ = run(range(8), count=40)
    after, _ = run(range(20), count=40)
    found = compare(before.rows, after.rows[::-1])
    accuracy = found.differences["textual"]["accuracy"]
    assert (accuracy.before, accuracy.after) == (0.2, 0.5)
    assert accuracy.difference.mean == pytest.approx(0.3)
    assert accuracy.is_off_zero
    assert accuracy.p == pytest.approx(2 / 2**12)
    assert found.differences["grounded"]["iou"].difference.mean == 0
    assert not found.differences["grounded"]["iou"].is_off_zero
    assert found.differences["grounded"]["iou"].p is None
    assert found.unpaired == 0


def test_comparison_of_two_modes_and_of_tables_that_overlap_in_part():
    result, _ = run(range(8), count=10)
    found = compare(result.rows, result.rows, modes={"textual": "crops"})
    assert list(found.differences) == ["textual -> crops"]
    shorter = [row for row in result.rows if int(row.record) < 4]
    assert compare(result.rows, shorter, modes={"textual": "textual"}).unpaired == 6
    with pytest.raises(UserError, match="share no record"):
        compare(result.rows, shorter, modes={"textual": "crops+union"})


def test_a_failed_judge_leaves_accuracy_out_rather_than_zero():
    free = [
        Record(id=str(i), question="Why?", answer="because of the rain", answer_kind="free", regions=())
        for i in range(3)
    ]

    class Says(OracleSampler):
        def _rollout(self, prompt):
            text = "<think> a </think> <answer> due to rain </answer>"
            return Rollout(
                prompt=prompt, branch=(0,), prompt_ids=np.zeros(1, int), ids=np.zeros(1, int),
                sampled=np.ones(1, bool), logprobs=np.zeros(1), text=text, finish="stop",
            )  # fmt: skip

    result = evaluate(Speaker(), free, ["textual"], sampler=Says(set()), settings=SETTINGS)  # type: ignore[arg-type]
    assert "accuracy" not in result.estimates["textual"]
    assert result.estimates["textual"]["format"].mean == 1.0


def test_a_table_holds_texts_with_any_character(tmp_path):
    path = write_table(run(range(2))[0], tmp_path / "table.jsonl")
    row = json.loads(path.read_text().splitlines()[0]) | {"text": "a\u2028b\u0085c"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [r.text for r in read_table(path)] == ["a\u2028b\u0085c"]
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(UserError, match=r"table\.jsonl:2: row is not valid JSON"):
        read_table(path)
