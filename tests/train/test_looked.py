"""Maps for the report: which groups get them, and that training does not notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import load_recipe
from sightline.train.loop import reinforce
from sightline.train.run import open_run

WORDS = [
    *("--data.train", "scenes:easy", "--data.records_per_step", "3", "--train.steps", "3", "--train.log_groups", "2"),
    *("--optim.lr", "1e-3", "--optim.warmup_steps", "0", "--sampling.max_new_tokens", "8", "--model.dtype", "float32"),
    *("--model.device", "cpu", "--train.log_groups_every", "2"),
]


def steps(folder: Path, checkpoint: Path, *words: str) -> list[tuple]:
    """Groups, metrics of each step; maps are not part of the metrics."""
    recipe = load_recipe("grpo", [*WORDS, *words, "--model.name", str(checkpoint)])
    found = []
    with open_run(recipe, folder) as run:
        for _ in range(run.steps):
            run.enter_stage()
            groups, stats = reinforce(run)
            run.step += 1
            found.append((groups, dict(stats.metrics)))
    return found


def has_maps(group) -> bool:
    return bool(group.measurements) and all("attention" in seen.maps for seen in group.measurements)


def test_first_groups_of_logged_steps_have_maps_and_training_is_the_same(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = checkpoints["qwen3_vl"]
    looked = steps(tmp_path / "a", checkpoint, "--train.log_attention", "always")
    plain = steps(tmp_path / "b", checkpoint)
    assert [[has_maps(group) for group in groups] for groups, _ in looked] == [
        [True, True, False],
        [False, False, False],
        [True, True, False],
    ]
    assert not any(has_maps(group) for groups, _ in plain for group in groups)
    for (_, one), (_, other) in zip(looked, plain, strict=True):
        assert {k: v for k, v in one.items() if "second" not in k} == pytest.approx(
            {k: v for k, v in other.items() if "second" not in k}, abs=0, rel=0
        )
    rollout, seen = looked[0][0][0].rollouts[0], looked[0][0][0].measurements[0]
    assert seen.maps["attention"].shape[0] == len(rollout.ids)
    assert seen.logprobs is None


def test_auto_follows_the_method(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (groups, _), *_ = steps(tmp_path, checkpoints["qwen3_vl"], "--method.name", "vppo", "--train.steps", "1")
    assert [has_maps(group) for group in groups] == [True, True, False]
    assert "contrast" in groups[0].measurements[0].probes
