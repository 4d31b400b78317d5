"""kill -9 in the middle of a run, the same command again: the end is bit-identical to an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
method: {name: ivgr, streams: {grounded: {n: 4}, textual: {n: 4}}, objective: {kl: 0.01}}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:easy", validation: "scenes:easy", types: [mark], records_per_step: 4}
optim: {lr: 1.0e-4, inner_steps: 2}
train: {steps: 7, seed: 5, checkpoint_every: 2, log_groups_every: 1, log_groups: 1, evaluate_every: 3}
evaluation: {n: 4, modes: [textual]}
judge: {kind: offline, lexicon: "sightline.scenes.lexicon:SCENES"}
"""


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "sightline", "train", str(recipe), "--out", str(out)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def finish(recipe: Path, out: Path) -> None:
    done = subprocess.run(command(recipe, out), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def kill_after(recipe: Path, out: Path, steps: int) -> None:
    """Starts the run and kills it without warning once `steps` steps were logged."""
    process = subprocess.Popen(
        command(recipe, out), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    events = out / "events.jsonl"
    deadline = time.monotonic() + 300
    while not (events.exists() and events.read_text().count("\n") >= steps):
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """A line without what depends on the clock."""
    kept = {k: v for k, v in row.items() if k not in ("seconds", "time")}
    if "metrics" in kept:
        kept["metrics"] = {k: v for k, v in kept["metrics"].items() if "second" not in k and "time" not in k}
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5])
def test_killed_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, steps: int, uninterrupted: tuple[Path, Path]
) -> None:
    recipe, whole = uninterrupted
    out = tmp_path / "killed"
    kill_after(recipe, out, steps)
    finish(recipe, out)
    last = "checkpoints/step-000007"
    for name in ("model.safetensors", "optimizer.pt"):
        assert (out / last / name).read_bytes() == (whole / last / name).read_bytes(), name
    a, b = (json.loads((run / last / "state.json").read_text()) for run in (out, whole))
    assert a["data"] == b["data"]
    assert a["archive"] == b["archive"]
    assert b["archive"]["references"], "the run put nothing into the archive, so nothing was tested"
    for name in ("events.jsonl", "evaluations.jsonl", "rollouts.jsonl"):
        assert [measured(r) for r in lines(out / name)] == [measured(r) for r in lines(whole / name)], name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("resume")
    recipe = root / "tiny.yaml"
    recipe.write_text(RECIPE)
    finish(recipe, root / "whole")
    return recipe, root / "whole"


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_changes_nothing(uninterrupted: tuple[Path, Path]) -> None:
    recipe, out = uninterrupted
    weights = out / "checkpoints/step-000007/model.safetensors"
    before = (weights.read_bytes(), len(lines(out / "events.jsonl")), len(lines(out / "evaluations.jsonl")))
    finish(recipe, out)
    assert before == (
        weights.read_bytes(), len(lines(out / "events.jsonl")), len(lines(out / "evaluations.jsonl")),
    )  # fmt: skip
