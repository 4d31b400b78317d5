"""Sinks that pass a run on to trackio, Weights & Biases or TensorBoard. Each is imported only when it is asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from sightline.errors import UserError
from sightline.types import StepStats

__all__ = ["KINDS", "Sink", "TensorboardSink", "TrackioSink", "WandbSink", "build_sink", "evaluation_metrics"]


class Sink(Protocol):
    """What follows a run: the console, a tracker, or an object of the user's own."""

    def start(self, manifest: Mapping[str, Any], resume_step: int | None = None) -> None: ...
    def step(self, stats: StepStats) -> None: ...
    def evaluation(self, row: Mapping[str, Any]) -> None: ...
    def finish(self) -> None: ...


class _MetricSink(ABC):
    """Turns events into flat `name: number` calls of `log`."""

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hands the numbers of one step to the tracker."""

    def step(self, stats: StepStats) -> None:
        values = {**stats.metrics, **{f"seconds/{part}": value for part, value in stats.seconds.items()}}
        self.log({name: float(value) for name, value in values.items() if math.isfinite(value)}, stats.step)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        self.log(evaluation_metrics(row), int(row.get("step", 0)))


class TensorboardSink(_MetricSink):
    """Event files under `folder`; `tensorboard --logdir RUN` shows them."""

    def __init__(self, folder: Path, name: str = "", project: str = "") -> None:
        del name, project
        self._module = _module("torch.utils.tensorboard", "tensorboard")
        self._folder = Path(folder) / "tensorboard"

    def start(self, manifest: Mapping[str, Any], resume_step: int | None = None) -> None:
        self._writer = self._module.SummaryWriter(str(self._folder), purge_step=resume_step)
        self._writer.add_text("run", "\n".join(f"    {key}: {value}" for key, value in manifest.items()), 0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class TrackioSink(_MetricSink):
    """A trackio run; `trackio show` opens the board."""

    def __init__(self, folder: Path, name: str = "", project: str = "sightline") -> None:
        self._module = _module("trackio", "trackio")
        self._name, self._project = name or _name(folder), project

    def start(self, manifest: Mapping[str, Any], resume_step: int | None = None) -> None:
        resume = "never" if resume_step is None else "allow"
        self._run = self._module.init(project=self._project, name=self._name, config=dict(manifest), resume=resume)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._module.finish()


class WandbSink(_MetricSink):
    """A Weights & Biases run, its local files under the run folder."""

    def __init__(self, folder: Path, name: str = "", project: str = "sightline") -> None:
        self._module = _module("wandb", "wandb")
        self._folder, self._name, self._project = Path(folder), name or _name(folder), project

    def start(self, manifest: Mapping[str, Any], resume_step: int | None = None) -> None:
        self._run = self._module.init(
            project=self._project,
            name=self._name,
            dir=str(self._folder),
            config=dict(manifest),
            id=None if resume_step is None else self._known_id(),
            resume="allow",
        )
        (self._folder / "wandb_id.txt").write_text(str(self._run.id), encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()

    def _known_id(self) -> str | None:
        path = self._folder / "wandb_id.txt"
        return path.read_text(encoding="utf-8").strip() if path.exists() else None


KINDS = {"trackio": TrackioSink, "wandb": WandbSink, "tensorboard": TensorboardSink}


def build_sink(kind: str, folder: str | Path, *, name: str = "", project: str = "sightline") -> Sink:
    """The sink of one tracker.

    Args:
        kind: `trackio`, `wandb` or `tensorboard`.
        folder: the run folder; its name is the default `name` of the tracked run.

    Raises:
        UserError: unknown kind, or the tracker is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"unknown tracker '{kind}'", where="trackers", hint=f"one of {', '.join(KINDS)}")
    return KINDS[kind](Path(folder), name=name, project=project)


def evaluation_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """One evaluation as flat metrics; a missing value is left out.

    Example:
        >>> evaluation_metrics({"mode": "textual", "metrics": {"accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}}})
        {'eval/textual/accuracy': 0.5, 'eval/textual/accuracy_low': 0.4, 'eval/textual/accuracy_high': 0.6}
    """
    flat = {}
    for name, value in (row.get("metrics") or {}).items():
        parts = value if isinstance(value, Mapping) else {"mean": value}
        for part, number in parts.items():
            if isinstance(number, int | float) and math.isfinite(number):
                flat[f"eval/{row.get('mode', 'all')}/{name}" + ("" if part == "mean" else f"_{part}")] = float(number)
    return flat


def _module(path: str, package: str) -> ModuleType:
    try:
        return import_module(path)
    except ImportError as error:
        raise UserError(
            f"{package} is not installed", where="trackers", hint="pip install 'sightline[track]'"
        ) from error


def _name(folder: str | Path) -> str:
    path = Path(folder).resolve()
    return f"{path.parent.parent.name}-{path.name}" if path.parent.name == "arms" else path.name
