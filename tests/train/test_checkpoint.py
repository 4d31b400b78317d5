"""Checkpoints are whole, exact, and few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.train.checkpoint import Checkpoints


def test_round_trip_is_exact_and_the_folder_loads(policy: Policy, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    assert store.latest() is None
    tensors = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}}
    folder = store.save(7, policy, {"data": {"epoch": 1}}, tensors)
    saved = store.latest()
    assert saved is not None
    assert (saved.step, saved.state["data"]) == (7, {"epoch": 1})
    assert float(saved.tensors()["optimizer"]["state"][0]["step"]) == 3.0
    again = load_policy(folder)
    for (name, a), (_, b) in zip(policy.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert (again.style, again.frame, again.eos) == (policy.style, policy.frame, policy.eos)


def test_keeps_the_newest_and_the_best(policy: Policy, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        store.save(step, policy, {}, {}, is_best=step == 1)
    assert [p.name for p in store.all()] == ["step-000001", "step-000003", "step-000004"]
    best = store.best()
    assert best is not None
    assert best.name == "step-000001"


def test_an_interrupted_save_is_invisible(policy: Policy, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, policy, {}, {})
    torn = tmp_path / "checkpoints" / ".step-000002.tmp"
    torn.mkdir()
    (torn / "state.json").write_text("{")
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1
    store.save(2, policy, {}, {})
    assert not torn.exists()


def test_an_unknown_schema_is_named(policy: Policy, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    folder = store.save(1, policy, {}, {})
    (folder / "state.json").write_text(json.dumps({"schema": 99, "step": 1}))
    with pytest.raises(UserError, match="schema 99"):
        store.latest()
