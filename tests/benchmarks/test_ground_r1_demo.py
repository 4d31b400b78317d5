"""The demo's own arithmetic: occupancy of held-out replies and of training, and figures that name what exists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import ground_r1_demo as demo
from sightline.config import load_recipe, recipe_path
from sightline.evaluate.runner import EvaluationRow

RECIPE = yaml.safe_load(recipe_path("ground_r1").read_text())


def row(*box: float, mode: str = "turns") -> EvaluationRow:
    return EvaluationRow(
        record="r", mode=mode, question="?", reference="x", answer="x", metrics={}, text="", boxes=[box] if box else []
    )


def test_occupancy_of_replies() -> None:
    side = 576 * 0.02**0.5  # a square of 2 % of the image
    rows = [row(0, 0, side, side), row(0, 0, 576, 576), row(), row(), row(0, 0, 9, 9, mode="no-crop")]
    found = demo.occupancy_of_replies(rows, RECIPE)
    assert found == pytest.approx({"no_box": 0.5, "bin_1": 0.25, "bin_2": 0, "bin_3": 0.25, "box_area": 0.51})


def test_occupancy_of_training(tmp_path: Path) -> None:
    lines = [{"metrics": {"credit/grounded/bin_1_share": 0.1 * i, "credit/grounded/advantage": 9}} for i in range(12)]
    lines[0]["metrics"]["credit/grounded/bin_1_reward"] = 2.0
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = demo.occupancy_of_training(tmp_path)
    assert found["first"] == pytest.approx({"bin_1_share": 0.25, "bin_1_reward": 2.0})
    assert found["last"] == pytest.approx({"bin_1_share": 0.85})


def test_arms_differ_in_the_advantage_alone() -> None:
    arms = load_recipe("ground_r1").arm_recipes()
    srpo, grpo = (arms[name].method_config.model_dump() for name in demo.MAIN)
    assert {key for key in srpo if srpo[key] != grpo[key]} == {"advantage"}
    assert set(demo.MAIN) <= set(demo.ARMS)


def test_figures_compare_what_is_trained_or_asked() -> None:
    modes = {"turns", *demo.CONTROLS}
    for pair in demo.FIGURES.values():
        assert {pair.before, pair.after} <= {"start", *demo.ARMS}
        assert {pair.mode, pair.after_mode or pair.mode} <= modes
    assert len(demo.FIGURES) == 3 * 4 + 2 * 3 + 2 * 3
