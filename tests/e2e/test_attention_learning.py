"""Methods that read attention or contrast learn: on one fixed batch their sampled reward rises within seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sightline.config import load_recipe
from sightline.train.loop import learn
from sightline.train.run import open_run

WINDOW = ("--method.window.shortest", "12", "--method.window.longest", "40")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "rise"),
    [
        (("papo",), 0.08),
        (("vppo",), 0.05),
        (("sayo", "--method.preset", "gated", "--method.streams.textual.n", "8", *WINDOW), 0.08),
        (("sayo", *WINDOW, "--optim.lr", "1e-4"), 0.004),
        (("faithful_mr1", "--method.anchor.steps", "0", "--method.cf.patch", "8"), 0.1),
    ],
    ids=["papo", "vppo", "sayo-gated", "sayo-parity", "faithful_mr1"],
)
def test_reward_rises_on_a_fixed_batch(tmp_path: Path, words: tuple[str, ...], rise: float) -> None:
    base = ["--data.limit", "6", "--data.records_per_step", "6", "--train.steps", "14", "--optim.lr", "3e-4"]
    more = ["--optim.warmup_steps", "2", "--evaluation.n", "1", "--train.seed", "1"]
    rewards = []
    with open_run(load_recipe("grpo", ["--method", words[0], *base, *more, *words[1:]]), tmp_path) as run:
        while run.step < run.steps:
            run.enter_stage()
            rewards.append(learn(run)[1].metrics["reward/textual/total"])
            run.step += 1
    assert np.mean(rewards[-4:]) > np.mean(rewards[:3]) + rise
