"""The commands with device=cuda: training in both number formats, an Anchoring stage, resuming, asking, evaluating."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.cli import main
from sightline.train.timing import peak_flops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL = ["--model.device", "cuda", "--data.records_per_step", "4", "--evaluation.n", "4", "--train.log_groups", "1"]


def run(*arguments: str) -> int:
    try:
        return int(main(list(arguments)) or 0)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_resumes_and_its_checkpoint_answers(tmp_path: Path, dtype: str, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    train = ["train", "grpo", "--out", str(folder), *SMALL, "--model.dtype", dtype, "--train.checkpoint_every", "1"]
    assert run(*train, "--train.steps", "2") == 0
    assert run(*train, "--train.steps", "3") == 0
    steps = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert {row["step"] for row in steps if "metrics" in row} == {0, 1, 2}
    last = [row for row in steps if "metrics" in row][-1]
    assert {"wait", "sample", "update", "optimise"} <= set(last["seconds"])
    if peak_flops(torch.device("cuda")):
        assert 0 < last["metrics"]["update/mfu"] < 1
    capfd.readouterr()


def test_compiled_layers_train(tmp_path: Path) -> None:
    more = ["--model.dtype", "bfloat16", "--model.compile", "true", "--train.steps", "2"]
    assert run("train", "grpo", "--out", str(tmp_path / "run"), *SMALL, *more) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    for row in (row for row in rows if "metrics" in row):
        assert set(row["seconds"]) >= {"sample", "measure", "update", "optimise"}
        assert all(value >= 0 for value in row["seconds"].values())


SETUPS = {
    "lora": ["--model.lora.rank", "4", "--model.checkpointing", "true"],
    "lora, compiled": ["--model.lora.rank", "4", "--model.compile", "true"],
    "reference on the cpu": ["--model.reference", "cpu", "--model.checkpointing", "true"],
    "reference on the cpu, compiled": ["--model.reference", "cpu", "--model.compile", "true"],
    "rounded": ["--model.masters", "stochastic"],
}


@pytest.mark.parametrize("setup", SETUPS)
def test_large_policies_train_like_this(tmp_path: Path, setup: str, capfd: pytest.CaptureFixture) -> None:
    """bf16 with a KL to the start, which is the adapter switched off or a copy; interrupted and taken up again."""
    folder = tmp_path / "run"
    train = ["train", "grpo", "--out", str(folder), *SMALL, "--model.dtype", "bfloat16", *SETUPS[setup]]
    train += ["--method.objective.kl", "0.01", "--train.checkpoint_every", "1"]
    assert run(*train, "--train.steps", "1") == 0
    assert run(*train, "--train.steps", "2") == 0
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if "metrics" in row}
    assert set(steps) == {0, 1}
    assert steps[0]["metrics"]["policy/kl"] == pytest.approx(0, abs=1e-3)
    assert steps[1]["metrics"]["update/grad_norm"] > 0
    said = capfd.readouterr().out
    assert "(wait" in said or "(sample" in said
    assert "update" in said


def test_an_anchoring_stage_runs(tmp_path: Path) -> None:
    more = ["--method.anchor.steps", "2", "--train.steps", "1"]
    assert run("train", "faithful_mr1_style", "--out", str(tmp_path / "run"), *SMALL, *more) == 0


def test_asking_and_evaluating(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    picture = tmp_path / "scene"
    assert run("data", "scenes", "--out", str(picture), "--n", "3") == 0
    data = next(picture.glob("*.jsonl"))
    capfd.readouterr()
    for mode in ("textual", "crops"):
        assert run("ask", str(data), "--mode", mode, "--device", "cuda", "--json", "--limit", "2") == 0
    assert (
        run("eval", "--data", str(data), "--device", "cuda", "--dtype", "bfloat16", "--out", str(tmp_path / "e.jsonl"))
        == 0
    )
