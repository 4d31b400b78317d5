"""Checkpoints are whole, exact, and few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.train.checkpoint import Checkpoints, Saved


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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 1, "step": "x"}'])
def test_a_damaged_state_names_the_file_and_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoints" / "step-000001" / "state.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match="delete this folder; the run resumes from the one before") as caught:
        Checkpoints(tmp_path).latest()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.5, None])
def test_a_damaged_optimiser_names_the_file_and_what_to_do(tmp_path: Path, share: float | None) -> None:
    path = tmp_path / "optimizer.pt"
    torch.save({"weights": torch.zeros(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(b"text" if share is None else whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="delete this folder; the run resumes from the one before") as caught:
        Saved(tmp_path, 1, {}).tensors()
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        Saved(tmp_path, 1, {}).tensors()


def test_saving_a_step_again_never_leaves_the_folder_without_it(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, policy, {"data": "old"}, {})
    rename, folder = Path.rename, tmp_path / "checkpoints"

    def killed(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(1, policy, {"data": "new"}, {})
    latest = store.latest()
    assert latest is not None
    assert latest.state["data"] == "old"
    store.save(1, policy, {"data": "new"}, {})
    latest = store.latest()
    assert latest is not None
    assert latest.state["data"] == "new"
    assert [p.name for p in folder.iterdir()] == ["step-000001"]
