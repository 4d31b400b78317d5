"""The build command: what it refuses, and what it leaves behind."""

from __future__ import annotations

import pytest

from sightline.errors import UserError
from sightline.policy.load import load_policy
from sightline.scenes import build
from sightline.scenes.build import GATES, Gate, build_policy
from sightline.scenes.cold_start import Schedule
from sightline.scenes.measure import Figures
from sightline.scenes.model import FAMILIES
from sightline.scenes.stream import record_at

BRIEF = Schedule(vision_steps=1, vision_images=2, steps=2, pictures=2, warm_up=1)
NEVER = Gate(accuracy=1, iou=1, count=None, hard_iou=1, first=99, every=1, last=99, is_required=True)


def test_a_missed_gate_is_an_error_that_keeps_the_weights(tmp_path) -> None:
    with pytest.raises(UserError, match="missed its gate after 2 steps"):
        build_policy("qwen3_vl", tmp_path / "p", schedule=BRIEF, gate=NEVER)
    assert load_policy(tmp_path / "p").style == "compact"
    with pytest.raises(UserError, match="already holds a checkpoint"):
        build_policy("qwen3_vl", tmp_path / "p", schedule=BRIEF, gate=NEVER)


def test_the_same_seed_gives_the_same_weights(tmp_path) -> None:
    for name in ("a", "b"):
        with pytest.raises(UserError):
            build_policy("qwen2_5_vl", tmp_path / name, 3, schedule=BRIEF, gate=NEVER)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_unknown_family(tmp_path) -> None:
    with pytest.raises(UserError, match="qwen3_vl, qwen2_5_vl"):
        build_policy("qwen9", tmp_path / "p")  # type: ignore[arg-type]


def test_every_family_has_a_gate() -> None:
    assert set(GATES) == set(FAMILIES)
    assert GATES["qwen3_vl"].is_required


def test_the_gate_looks_at_other_scenes_than_runs_evaluate_on(monkeypatch) -> None:
    seen: set[tuple[str, int]] = set()

    def asked(level, split, seed, index, types):
        seen.add((split, seed))
        return record_at(level, split, seed, index, types)

    monkeypatch.setattr(build, "record_at", asked)
    monkeypatch.setattr(build, "figures", lambda *_: Figures(n=1, accuracy=1, iou=1, format=1))
    assert build._look(load_policy("embedded:qwen3_vl"), "qwen3_vl", GATES["qwen3_vl"]).passed
    assert seen == {("validation", build.GATE_SEED)}
    assert build.GATE_SEED != 0
