"""Every method learns: on one fixed batch of a few records the sampled reward rises within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.config import load_recipe
from sightline.train.loop import reinforce
from sightline.train.run import open_run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stream"),
    [("grpo", "textual"), ("treevgr", "grounded"), ("ivgr", "grounded"), ("ivgr", "textual"), ("grit", "grit")],
)
def test_reward_rises_on_a_fixed_batch(tmp_path: Path, method: str, stream: str) -> None:
    recipe = load_recipe(
        "grpo",
        [
            *("--method", method, "--data.limit", "6", "--data.records_per_step", "6", "--train.steps", "14"),
            *("--optim.lr", "3e-4", "--optim.warmup_steps", "2", "--evaluation.n", "1", "--train.seed", "1"),
        ],
    )
    rewards = []
    with open_run(recipe, tmp_path) as run:
        while run.step < run.steps:
            _, stats = reinforce(run)
            rewards.append(stats.metrics[f"reward/{stream}/total"])
            run.step += 1
    assert np.mean(rewards[-4:]) > np.mean(rewards[:3]) + 0.1
