"""Ground-R1 on the embedded policy: the reward of a fixed batch rises, and a killed run ends as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from e2e.test_resume import finish, kill_after, lines, measured
from sightline.config import load_recipe
from sightline.train.loop import reinforce
from sightline.train.run import open_run

RECIPE = """
method:
  name: ground_r1
  preset: %s
  turns: {max: 3, max_tokens: 40}
  bins: {edges: [0.04, 0.08]}
model: {name: "embedded:qwen3_vl"}
data: {train: "scenes:easy", validation: "scenes:easy", types: [mark], records_per_step: 2}
sampling: {max_new_tokens: 40}
optim: {lr: 1.0e-4, inner_steps: 2}
train: {steps: 4, seed: 5, checkpoint_every: 2, log_groups_every: 1, log_groups: 1, evaluate_every: 2}
evaluation: {n: 3, modes: [turns]}
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["v1", "v3"])
def test_reward_rises_on_a_fixed_batch(tmp_path: Path, preset: str) -> None:
    words = ["--method.preset", preset, "--method.turns.max", "3", "--method.turns.max_tokens", "40"]
    recipe = load_recipe(
        "grpo",
        [
            *("--method", "ground_r1", *words, "--method.objective.kl", "0", "--data.train", "scenes:zoom"),
            *("--data.limit", "6", "--data.records_per_step", "6", "--train.steps", "20", "--train.seed", "1"),
            *("--optim.lr", "2e-4", "--optim.warmup_steps", "2", "--evaluation.n", "1"),
        ],
    )
    rewards = []
    with open_run(recipe, tmp_path) as run:
        while run.step < run.steps:
            _, stats = reinforce(run)
            rewards.append(stats.metrics["reward/grounded/total"])
            run.step += 1
    assert np.mean(rewards[-4:]) > np.mean(rewards[:3]) + 0.2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["v1", "v3"])
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path: Path, preset: str) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE % preset)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    finish(recipe, whole)
    kill_after(recipe, out, 3)
    finish(recipe, out)
    last = "checkpoints/step-000004"
    for name in ("model.safetensors", "optimizer.pt"):
        assert (out / last / name).read_bytes() == (whole / last / name).read_bytes(), name
    for name in ("events.jsonl", "evaluations.jsonl", "rollouts.jsonl"):
        assert [measured(r) for r in lines(out / name)] == [measured(r) for r in lines(whole / name)], name
    logged = [json.loads(line) for line in (whole / "rollouts.jsonl").read_text().splitlines()]
    assert any(len(rollout["turns"]) > 1 for row in logged for rollout in row["rollouts"])
