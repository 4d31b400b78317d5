"""Whole runs: the same seed gives the same run on one and on two processes; either continues what the other began."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import together
from sightline.cli import main

RECIPE = """
method: {name: ivgr, streams: {grounded: {n: 4}, textual: {n: 4}}, weights: {box: 0.0}, objective: {kl: 0.01}}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:easy", validation: "scenes:easy", types: [mark], records_per_step: 5}
sampling: {max_new_tokens: 48, temperature: 1.3}
optim: {lr: 1.0e-4, inner_steps: 2}
train:
  {steps: 2, seed: 5, checkpoint_every: 1, keep: 9, log_groups_every: 1, log_groups: 3, parallel: fsdp,
   dynamic_sampling: {max_rounds: 1}}
evaluation: {n: 3, modes: [textual, grounded]}
judge: {kind: offline, lexicon: "sightline.scenes.lexicon:SCENES"}
"""


ANCHORED = """
method:
  name: faithful_mr1
  streams: {textual: {n: 3}}
  anchor: {steps: 2, row_steps: 1, lr: 2.0e-3, layers: [1, 2], attempts: 2}
  cf: {kind: patch_blacken, prob: 0.6, patch: 8}
  score: {layers: [1, 2]}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:easy", validation: "scenes:easy", types: [mark], records_per_step: 3}
sampling: {max_new_tokens: 48}
optim: {lr: 1.0e-4}
train: {steps: 1, seed: 3, checkpoint_every: 1, keep: 9, log_groups_every: 1, parallel: fsdp}
evaluation: {n: 2, modes: [textual], crops: {forced_prefix: "<Focus>\n"}, faithfulness: true}
"""


def words(recipe: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(recipe), "--out", str(out), *more]


def alone(*options: Any) -> None:
    assert main(words(*options)) == 0


def as_two(recipe: Path, out: Path, *more: str) -> None:
    with together.started(out.parent / f"{out.name}-said", together.command, words(recipe, out, *more)) as group:
        assert group.wait() == [0, 0], group.words()
        assert not group.words()[1], "only the main process speaks"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def single(recipe: Path) -> Path:
    """The run of one process."""
    alone(recipe, recipe.parent / "one")
    return recipe.parent / "one"


def begun(whole: Path, out: Path, step: int = 1) -> Path:
    """What would be there had the run stopped after its first step, or later."""
    shutil.copytree(whole, out)
    for later in sorted((out / "checkpoints").glob("step-*"))[step:]:
        shutil.rmtree(later)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
        if isinstance(row.get("metrics"), dict):
            row["metrics"] = {k: v for k, v in row["metrics"].items() if "second" not in k}
    return rows


def assert_close(a: Any, b: Any, path: str = "") -> None:
    """Equal, numbers up to rounding; log-probs and gradients are sums in another order."""
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_close(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{path}/{i}")
    elif path.endswith("/values"):  # a map in 256 levels, some of which lie on the edge
        assert len(a) == len(b) > 0, path
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5), path
    else:
        assert a == b, path


def assert_same_run(one: Path, two: Path, *, last: str = "step-000002", atol: float = 2e-6) -> None:
    a, b = (load_file(next((run / "checkpoints" / last).glob("*model.safetensors"))) for run in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=0)  # each step moves weights by lr, here 1e-4
    for name in ("events.jsonl", "evaluations.jsonl", "rollouts.jsonl"):
        assert_close(lines(one / name), lines(two / name), name)
    x, y = (json.loads((run / "checkpoints" / last / "state.json").read_text()) for run in (one, two))
    assert x["data"] == y["data"]
    assert_close(x["archive"], y["archive"])


def assert_was_put_to_use(run: Path) -> None:
    x = json.loads((run / "checkpoints" / "step-000002" / "state.json").read_text())
    assert x["archive"]["references"], "nothing went into the archive, so nothing was tested"
    rounds = [row["metrics"]["sample/rounds"] for row in lines(run / "events.jsonl") if "metrics" in row]
    assert max(rounds) == 2, "no group was flat, so none was replaced"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(recipe: Path, single: Path, tmp_path: Path) -> None:
    as_two(recipe, tmp_path / "two")
    assert_same_run(single, tmp_path / "two")
    assert_was_put_to_use(single)
    assert (tmp_path / "two" / "checkpoints" / "step-000001" / "optimizer").is_dir()
    alone(recipe, begun(tmp_path / "two", tmp_path / "later-one"))
    assert_same_run(single, tmp_path / "later-one")


@pytest.mark.slow
def test_two_processes_continue_what_one_began(recipe: Path, single: Path, tmp_path: Path) -> None:
    as_two(recipe, begun(single, tmp_path / "later-two"))
    assert_same_run(single, tmp_path / "later-two")


@pytest.mark.slow
def test_stages_probes_and_anchoring_run_alike(tmp_path: Path) -> None:
    recipe = tmp_path / "anchored.yaml"
    recipe.write_text(ANCHORED)
    alone(recipe, tmp_path / "one")
    as_two(recipe, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two", last="step-000003", atol=2e-5)


@pytest.mark.slow
def test_an_adapter_on_shares_is_saved_and_continued(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe, adapter = tmp_path / "anchored.yaml", ("--model.lora.rank", "4")
    recipe.write_text(ANCHORED.replace(", faithfulness: true", ""))
    alone(recipe, tmp_path / "one", *adapter)
    as_two(recipe, tmp_path / "two", *adapter)
    assert_same_run(tmp_path / "one", tmp_path / "two", last="step-000003", atol=2e-5)
    names = {path.name for path in (tmp_path / "two" / "checkpoints" / "step-000002").iterdir()}
    assert {"adapter_model.safetensors", "token_rows.safetensors", "optimizer"} <= names
    assert not {"model.safetensors", "optimizer.pt"} & names
    alone(recipe, begun(tmp_path / "two", tmp_path / "later-one", 2), *adapter)
    assert_same_run(tmp_path / "one", tmp_path / "later-one", last="step-000003", atol=2e-5)
    as_two(recipe, begun(tmp_path / "one", tmp_path / "later-two", 2), *adapter)
    assert_same_run(tmp_path / "one", tmp_path / "later-two", last="step-000003", atol=2e-5)


ARMS = """
arms:
  short: {train: {steps: 1, checkpoint_every: 0}}
  long: {train: {steps: 100, evaluate_every: 0}}
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_one_line(tmp_path: Path) -> None:
    """The real launcher, and a recipe with arms, which are trained in turn: it is killed in the second."""
    (tmp_path / "arms.yaml").write_text(RECIPE + ARMS)
    out = tmp_path / "killed"
    launcher = subprocess.Popen(
        [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "-m", "sightline",
         *words(tmp_path / "arms.yaml", out)],
        env=together.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (out / "arms" / "long" / "events.jsonl").exists():
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process_of_rank(launcher.pid, 1), signal.SIGKILL)
        _, told = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert launcher.returncode != 0
    said = [line for line in told.splitlines() if line.startswith("error:")]
    assert said == [said[0]], told
    assert "a process of this run is gone" in said[0]
    assert (out / "arms" / "short" / "checkpoints" / "step-000001" / "optimizer").is_dir()
    assert not (out / "arms" / "long" / "checkpoints" / "step-000100").exists()


def process_of_rank(launcher: int, rank: int) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (path / "environ").read_text().split("\0"):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("no such process")


BROKEN = """
import time

from sightline.errors import UserError
from sightline.methods.grpo import GRPO

class Broken(GRPO):
    def score(self, group, context):
        if group.record.id == BAD:
            FAILS
        return super().score(group, context)
"""


def told_by(folder: Path, fails: str, *more: str) -> list[str]:
    """The lines of error of a run in which scoring fails for a record of the second process."""
    from sightline.data import open_source

    bad = open_source("scenes:easy", split="train", seed=5, types=("mark",)).at(1).id
    (folder / "broken.py").write_text(BROKEN.replace("BAD", repr(bad)).replace("FAILS", fails))
    (folder / "broken.yaml").write_text(RECIPE.split("\n", 2)[2] + 'method: {name: "broken:Broken"}\n')
    given = words(folder / "broken.yaml", folder / "out", "--evaluation.n", "1", *more)
    with together.started(folder, together.command, given) as group:
        group.processes[0].join(60)
        assert group.processes[0].exitcode not in (None, 0)
        return [line for text in group.words() for line in text.splitlines() if line.startswith("error:")]


@pytest.mark.slow
def test_an_error_in_one_process_is_told_once(tmp_path: Path) -> None:
    said = told_by(tmp_path, 'raise UserError("this record cannot be scored", where="here")')
    assert said == ["error: here: this record cannot be scored"]


@pytest.mark.slow
def test_nobody_waits_for_a_stuck_process_for_ever(tmp_path: Path) -> None:
    said = told_by(tmp_path, "time.sleep(600)", "--train.timeout", "5")
    assert len(said) == 1
    assert "a process of this run is gone" in said[0]
