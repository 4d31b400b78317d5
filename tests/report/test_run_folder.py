"""The run folder: line by line, torn ends, resuming, arms, thumbnails, and the reporter in front of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sightline.errors import UserError
from sightline.report.events import RunFolder, RunWriter
from sightline.report.lines import Tail, append_line, keep_lines, read_lines
from sightline.report.reporter import Reporter
from sightline.report.rows import group_row, pieces
from sightline.types import ImageRef, Size, StepStats


def step(number: int, **metrics: float) -> StepStats:
    return StepStats(step=number, metrics=metrics, seconds={"update": 0.5})


def test_round_trip(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.manifest({"method": "ivgr", "seed": 3})
    writer.step(StepStats(step=0, metrics={"a/b": 0.5, "a/c": math.nan}, alarms=("box rate fell",)))
    writer.evaluation({"step": 0, "label": "before", "mode": "textual", "n": 8, "metrics": {}})
    run = RunFolder(tmp_path)
    assert run.manifest == {"method": "ivgr", "seed": 3}
    assert run.steps[0].metrics["a/b"] == 0.5
    assert math.isnan(run.steps[0].metrics["a/c"])
    assert run.steps[0].alarms == ("box rate fell",)
    assert run.evaluations[0]["mode"] == "textual"
    assert run.runs == [run]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"a": math.inf, "b": np.float32(0.5), "c": np.array([1, 2]), "d": np.bool_(True)})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"a": None, "b": 0.5, "c": [1, 2], "d": True}


def test_torn_last_line_is_ignored_then_repaired(tmp_path: Path) -> None:
    RunWriter(tmp_path).step(step(0))
    events = tmp_path / "events.jsonl"
    with events.open("a") as file:
        file.write('{"step": 1, "metr')
    assert [s.step for s in RunFolder(tmp_path).steps] == [0]
    RunWriter(tmp_path).step(step(1))
    assert [s.step for s in RunFolder(tmp_path).steps] == [0, 1]
    assert len(events.read_text().splitlines()) == 2


def test_broken_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 0, "metrics": {}}\nnot json\n{"step": 2, "metrics": {}}\n')
    with pytest.raises(UserError, match=r"events\.jsonl:2"):
        RunFolder(tmp_path).steps  # noqa: B018


def test_resume_never_duplicates_a_step(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for i in range(6):
        writer.step(step(i, **{"a/b": 0.0}))
    for i in (0, 3, 6):
        writer.evaluation({"step": i, "mode": "textual", "metrics": {}})
    resumed = RunWriter(tmp_path, resume_step=3)
    for i in range(3, 6):
        resumed.step(step(i, **{"a/b": 1.0}))
    lines = read_lines(tmp_path / "events.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["metrics"]["a/b"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert [row["step"] for row in RunFolder(tmp_path).evaluations] == [0, 3]


def test_an_evaluation_made_again_replaces_the_first(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    for value in (0.1, 0.2):
        writer.evaluation({"step": 3, "label": "during", "mode": "textual", "metrics": {"accuracy": value}})
    assert [row["metrics"]["accuracy"] for row in RunFolder(tmp_path).evaluations] == [0.2]


def test_resumed_manifest_keeps_the_first_start(tmp_path: Path) -> None:
    RunWriter(tmp_path).manifest({"started": "monday", "seed": 1})
    RunWriter(tmp_path).manifest({"started": "tuesday", "seed": 1})
    assert RunFolder(tmp_path).manifest["started"] == "monday"


def test_a_run_that_starts_over_drops_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    for _ in range(2):
        reporter = Reporter(tmp_path, writes_page=False)
        reporter.start({"method": "grpo"})
        reporter.evaluation({"step": 0, "label": "start", "mode": "textual", "metrics": {}})
        reporter.step(step(0))
    assert len(read_lines(tmp_path / "events.jsonl")) == 1
    assert len(RunFolder(tmp_path).evaluations) == 1


def test_keep_lines_leaves_an_untouched_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_line(path, {"step": 1})
    before = path.stat().st_ino
    keep_lines(path, lambda row: row["step"] < 5)
    assert path.stat().st_ino == before


def test_tail_reads_each_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    append_line(path, {"step": 0})
    with path.open("a") as file:
        file.write('{"step"')
    assert tail.read() == [{"step": 0}]
    with path.open("a") as file:
        file.write(": 1}\n")
    assert tail.read() == [{"step": 1}]
    keep_lines(path, lambda row: row["step"] < 1)
    append_line(path, {"step": 7})
    append_line(path, {"step": 8})
    assert tail.read() == [{"step": 0}, {"step": 7}, {"step": 8}]


def test_arms_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    for name in ("b", "a", "later"):
        RunWriter(tmp_path / "arms" / name).manifest({"method": name})
    (tmp_path / "arms" / "empty").mkdir()
    RunWriter(tmp_path).manifest({"arms": ["b", "a", "absent"]})
    run = RunFolder(tmp_path)
    assert [arm.name for arm in run.arms] == ["b", "a", "later"]
    assert run.runs == run.arms


def test_group_row_follows_the_group(synthetic) -> None:
    vocabulary = synthetic.Vocabulary()
    group = synthetic.group(11, 60, vocabulary, grounded=True)
    row = json.loads(json.dumps(group_row(60, group, decode_piece=vocabulary.decode_piece)))
    assert [r["stream"] for r in row["rollouts"]] == ["grounded"] * 5 + ["textual"] * 5
    first = row["rollouts"][0]
    assert "".join(token["text"] for token in first["tokens"]) == first["text"]
    assert first["total"] == pytest.approx(group.scores[0].total)
    assert first["advantage"] == pytest.approx(group.credits[0].parts["advantage"])
    assert first["terms"]["format"] == {
        "value": 1.0,
        "weight": 1.0,
        "why": "one think block, then one answer block",
        "masked": False,
    }
    assert 0 < first["boxes"][0]["iou"] < 1
    assert first["text"][slice(*first["boxes"][0]["span"])].startswith("<box>[")
    assert row["reference"]["step"] == 48
    assert row["record"]["regions"][0]["label"].endswith("shape")


def test_boxes_without_extent_or_gold_have_no_iou(synthetic) -> None:
    row = group_row(0, synthetic.odd_group(0, synthetic.Vocabulary()))
    assert row["rollouts"][0]["boxes"][0]["iou"] is None
    assert row["rollouts"][0]["is_masked"]
    assert row["rollouts"][1]["images"][0]["width"] == 40


def test_pieces_join_characters_spread_over_tokens() -> None:
    text = "a é 🙂".encode()
    assert pieces(range(len(text)), lambda i: text[i : i + 1]) == ["a", " ", "", "é", " ", "", "", "", "🙂"]
    assert pieces([0, 1], lambda i: [b"\xff", b"a"][i]) == ["�", "a"]
    assert pieces([0, 1], lambda i: [b"a", b"\xc3"][i]) == ["a", "�"]


def test_thumbnails_are_small_and_a_lost_file_is_no_error(tmp_path: Path, synthetic) -> None:
    from dataclasses import replace

    from PIL import Image

    vocabulary = synthetic.Vocabulary()
    group = synthetic.group(11, 0, vocabulary, grounded=False)
    large = ImageRef(size=Size(3000, 20), digest="e" * 64, pixels=np.zeros((20, 3000, 3), np.uint8))
    lost = ImageRef(size=Size(4, 4), digest="f" * 64, path=str(tmp_path / "lost.png"))
    writer = RunWriter(tmp_path)
    writer.manifest({})
    writer.groups(0, [replace(group, record=replace(group.record, images=(large, lost)))])
    run = RunFolder(tmp_path)
    found = run.image(large.digest)
    assert found is not None
    assert found.name == "e" * 16 + ".png"
    with Image.open(found) as thumbnail:
        assert max(thumbnail.size) == 640
    assert run.image(lost.digest) is None
    assert run.image("../../etc/passwd") is None


class _Sink:
    def __init__(self, fails_at: int = -1) -> None:
        self.calls: list[str] = []
        self.fails_at = fails_at

    def start(self, manifest, resume_step=None) -> None:
        self.calls.append(f"start {manifest['method']} {resume_step}")

    def step(self, stats: StepStats) -> None:
        if stats.step == self.fails_at:
            raise ConnectionError("no answer")
        self.calls.append(f"step {stats.step}")

    def evaluation(self, row) -> None:
        self.calls.append(f"evaluation {row['mode']}")

    def finish(self) -> None:
        self.calls.append("finish")


def test_reporter_logs_every_step_and_some_groups(tmp_path: Path, synthetic) -> None:
    sink, vocabulary = _Sink(), synthetic.Vocabulary()
    groups = [synthetic.group(s, 0, vocabulary, grounded=False) for s in (11, 12, 13)]
    reporter = Reporter(tmp_path, sinks=[sink], log_every=3, groups_per_step=2)
    reporter.start({"method": "grpo", "steps": 5}, decode_piece=vocabulary.decode_piece)
    for i in range(5):
        reporter.step(step(i), groups)
    reporter.evaluation({"step": 5, "mode": "textual", "metrics": {}})
    reporter.finish()
    run = RunFolder(tmp_path)
    assert [s.step for s in run.steps] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in run.rollouts] == [0, 0, 3, 3, 4, 4]
    assert sink.calls == ["start grpo None", *(f"step {i}" for i in range(5)), "evaluation textual", "finish"]
    assert "started" in run.manifest
    assert (tmp_path / "report.html").exists()


def test_a_failing_tracker_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    bad, good = _Sink(fails_at=1), _Sink()
    reporter = Reporter(tmp_path, sinks=[bad, good], writes_page=False)
    reporter.start({"method": "grpo"})
    reporter.step(step(0))
    with pytest.warns(UserWarning, match="_Sink failed and is left out from now on: no answer"):
        reporter.step(step(1))
    reporter.step(step(2))
    reporter.finish()
    assert bad.calls == ["start grpo None", "step 0"]
    assert good.calls[-2:] == ["step 2", "finish"]
    assert len(RunFolder(tmp_path).steps) == 3
    assert not (tmp_path / "report.html").exists()
