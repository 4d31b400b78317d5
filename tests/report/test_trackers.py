"""Trackers: TensorBoard for real, the others against stand-ins for their modules."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sightline.errors import UserError
from sightline.report.trackers import build_sink
from sightline.types import StepStats

STATS = StepStats(step=4, metrics={"reward/textual/total": 1.5, "loss/total": math.nan}, seconds={"update": 0.25})
ROW = {"step": 5, "mode": "textual", "metrics": {"accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}, "iou": None}}
LOGGED = [
    ({"reward/textual/total": 1.5, "seconds/update": 0.25}, 4),
    ({"eval/textual/accuracy": 0.5, "eval/textual/accuracy_low": 0.4, "eval/textual/accuracy_high": 0.6}, 5),
]


def follow(kind: str, folder: Path, resume_step: int | None = None) -> None:
    sink = build_sink(kind, folder)
    sink.start({"method": "ivgr", "seed": 1}, resume_step)
    sink.step(STATS)
    sink.evaluation(ROW)
    sink.finish()


class _Fake:
    """Stands in for a tracker's module and for its run."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[tuple[dict, int]] = []
        self.finished = 0
        self.id = "abc"

    def init(self, **settings: object) -> _Fake:
        self.inits.append(settings)
        return self

    def log(self, metrics: dict, step: int) -> None:
        self.logged.append((metrics, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("kind", ["trackio", "wandb"])
def test_metrics_reach_the_tracker(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _Fake()
    monkeypatch.setitem(sys.modules, kind, SimpleNamespace(init=fake.init, finish=fake.finish))
    folder = tmp_path / "run7"
    folder.mkdir()
    follow(kind, folder)
    assert fake.logged == LOGGED
    assert fake.finished == 1
    assert fake.inits[0]["name"] == "run7"
    assert fake.inits[0]["config"] == {"method": "ivgr", "seed": 1}


def test_a_resumed_wandb_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _Fake()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fake.init))
    follow("wandb", tmp_path)
    follow("wandb", tmp_path, resume_step=3)
    assert [settings["id"] for settings in fake.inits] == [None, "abc"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_writes_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "loss/total" not in events.Tags()["scalars"]
    point = events.Scalars("reward/textual/total")[0]
    assert (point.step, point.value) == (4, 1.5)
    assert events.Scalars("eval/textual/accuracy")[0].step == 5


@pytest.mark.parametrize("kind", ["trackio", "wandb", "tensorboard"])
def test_a_missing_tracker_names_the_extra(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"tensorboard": "torch.utils.tensorboard"}.get(kind, kind)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{kind} is not installed \(pip install 'sightline\[track\]'\)"):
        build_sink(kind, tmp_path)


def test_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of trackio, wandb, tensorboard"):
        build_sink("mlflow", tmp_path)
