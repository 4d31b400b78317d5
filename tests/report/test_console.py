"""The console: plain lines without a terminal, a live view with one, several arms merged."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sightline.report.compare import compare
from sightline.report.console import RunConsole, evaluation_table, watch
from sightline.report.events import RunFolder, RunWriter
from sightline.report.figures import number, sparkline
from sightline.report.metrics import METRICS, measure, metric, sentence
from sightline.types import StepStats


def plain_console(width: int = 140) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_without_a_terminal(synthetic) -> None:
    console = plain_console()
    run = RunConsole(console, every=5)
    run.start({"method": "ivgr", "model": "embedded:qwen3_vl", "steps": 12})
    run.evaluation(synthetic.evaluation(0, "textual", 0.1, 12))
    for i in range(12):
        run.step(synthetic.stats(i, 0.1, grounded=True, total_steps=12))
    run.evaluation(synthetic.evaluation(12, "textual", 0.1, 12))
    run.finish()
    lines = text_of(console).splitlines()
    assert lines[0] == "ivgr · embedded:qwen3_vl"
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["0/12", "5/12", "10/12", "11/12"]
    assert "evaluation at step 0, textual, n=1000: accuracy 56.0 [53.4, 58.6]" in text_of(console)
    assert "\x1b[" not in text_of(console)
    assert sum("Accuracy, textual" in line for line in lines) == 1


def test_alarms_are_printed_and_markup_in_them_is_text() -> None:
    console = plain_console()
    run = RunConsole(console)
    run.start({"method": "[red]grpo[/red]"})
    run.step(StepStats(step=1, metrics={}, alarms=("[bold]box rate[/] fell",)))
    assert "step 1: [bold]box rate[/] fell" in text_of(console)
    assert "[red]grpo[/red]" in text_of(console)


def test_live_view_shows_bars_and_metrics(synthetic) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    run = RunConsole(console, arms=("ivgr", "textual"))
    for arm in run.arms:
        run.start({"method": arm, "steps": 20}, arm=arm)
    for i in range(20):
        run.step(synthetic.stats(i, 0.1, grounded=True), arm="ivgr")
        run.step(synthetic.stats(i, 0.1, grounded=False), arm="textual")
    run.finish()
    text = text_of(console)
    assert "20/20" in text
    assert "reward/grounded/total" in text
    assert "█" in text


@pytest.mark.parametrize(("metrics", "mfu"), [({"update/mfu": 0.4512}, "  MFU 45%"), ({}, "")])
def test_a_step_says_where_its_time_went(metrics: dict[str, float], mfu: str) -> None:
    stats = StepStats(step=0, metrics=metrics, seconds={"wait": 0.001, "sample": 6.14, "update": 4.5, "optimise": 0.26})
    spent = "10.9 s (sample 6.1, update 4.5, optimise 0.3)" + mfu
    for is_terminal in (False, True):
        console = Console(file=io.StringIO(), width=140, force_terminal=is_terminal)
        run = RunConsole(console, every=1)
        run.start({"method": "ivgr", "steps": 1})
        run.step(stats)
        run.finish()
        assert spent in text_of(console)
    assert plain_line(StepStats(step=0, metrics={"loss/total": 1.0})) == "step 0/1  loss/total 1"


def plain_line(stats: StepStats) -> str:
    console = plain_console()
    run = RunConsole(console, every=1)
    run.start({"method": "ivgr", "steps": 1})
    run.step(stats)
    return text_of(console).splitlines()[-1]


def test_watch_merges_arms_that_others_write(tmp_path: Path, synthetic) -> None:
    for name, is_grounded in (("ivgr", True), ("textual", False)):
        writer = RunWriter(tmp_path / "arms" / name)
        writer.manifest({"method": name, "steps": 3})
        for i in range(3):
            writer.step(synthetic.stats(i, 0.1, grounded=is_grounded))
        for i in (0, 120):
            writer.evaluation(synthetic.evaluation(i, "textual", 0.12 if is_grounded else 0.05))
    looks = iter([True, True, False])
    console = plain_console()
    watch(tmp_path, RunConsole(console, arms=("ivgr", "textual"), every=1), lambda: next(looks), pause=0.0)
    text = text_of(console)
    assert text.count("ivgr: step 2/3") == 1
    assert text.count("textual: step 2/3") == 1
    assert "67.4" in text
    assert "+11.4" in text


def test_watch_shows_a_resumed_arm_once(tmp_path: Path) -> None:
    def write(steps: range, resume_step: int | None = None) -> None:
        writer = RunWriter(tmp_path, resume_step=resume_step)
        writer.manifest({"method": "grpo", "steps": 6})
        for i in steps:
            writer.step(StepStats(step=i, metrics={"loss/total": float(i)}, alarms=(f"KL {i}.5 above 0.2",)))

    write(range(4))
    events = [lambda: True, lambda: write(range(2, 6), 2) or True, lambda: False]
    console = plain_console()
    watch(tmp_path, RunConsole(console, every=1), lambda: events.pop(0)(), pause=0.0)
    lines = text_of(console).splitlines()
    assert sum("step 1/6" in line for line in lines) == 1
    assert sum("step 5/6" in line for line in lines) == 1
    assert [line for line in lines if "KL" in line] == ["step 0: KL 0.5 above 0.2"]


def test_watch_waits_for_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    looks = iter([True, False])

    def is_running() -> bool:
        is_on = next(looks)
        if not is_on:
            RunWriter(tmp_path).manifest({"method": "late"})
        return is_on

    console = plain_console()
    watch(tmp_path, RunConsole(console), is_running, pause=0.0)
    assert "late" in text_of(console)


def test_table_of_a_lone_evaluation(synthetic) -> None:
    console = plain_console()
    console.print(evaluation_table({"": compare([synthetic.evaluation(0, "crops", 0.1)])}))
    assert "Accuracy, textual + crops" in text_of(console)
    assert "+0.0" not in text_of(console)


def test_compare_takes_first_and_last_and_splits_by_label(demo: Path) -> None:
    rows = {c.title: c for c in compare(RunFolder(demo).arms[0].evaluations)}
    accuracy = rows["Accuracy, textual"]
    assert accuracy.before.mean == pytest.approx(0.56)
    assert accuracy.change == pytest.approx(0.1235, abs=1e-3)
    split = [{"step": 0, "label": name, "mode": "textual", "metrics": {"accuracy": 0.5}} for name in ("easy", "hard")]
    assert [c.title for c in compare(split)] == ["Accuracy, textual, easy", "Accuracy, textual, hard"]


def test_compare_leaves_out_what_was_not_measured() -> None:
    rows = [{"step": 0, "mode": "textual", "metrics": {"iou": {"mean": None}, "accuracy": {"mean": 0.5}}}]
    assert [c.measure.name for c in compare(rows)] == ["accuracy"]


def test_metrics_have_unique_names_and_whole_sentences() -> None:
    names = [m.name for m in METRICS]
    assert len(set(names)) == len(names)
    for m in METRICS:
        assert m.name == m.name.lower()
        assert m.sentence.endswith(".")
        assert metric(m.name.replace("{", "").replace("}", "")) is not None


def test_every_metric_of_a_step_is_defined(synthetic) -> None:
    from sightline.train.health import group_metrics

    logged = group_metrics([synthetic.group(11, 5, synthetic.Vocabulary(), grounded=True)])
    assert len(logged) > 20
    assert [name for name in logged if metric(name) is None] == []


def test_exact_names_win_over_patterns() -> None:
    assert sentence("reward/textual/total").startswith("Mean weighted sum")
    assert sentence("reward/textual/consistency").startswith("Mean of the reward term 'consistency'")
    assert sentence("my/own").startswith("A metric that this run logged")
    assert measure("my_measure").title == "My measure"


def test_numbers_for_people() -> None:
    assert sparkline([float("nan"), 1.0, 2.0], 3) == " ▁█"
    assert len(sparkline(list(range(1000)), 24)) == 24
    assert number(-0.0001234) == "-0.0001234"
