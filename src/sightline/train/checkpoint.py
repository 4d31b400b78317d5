"""Checkpoints: a loadable model folder plus everything an exact resume needs.

A checkpoint is written to a temporary folder, synced and renamed, so that a folder named `step-...` is always whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["Checkpoints", "Saved", "write_atomically"]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk: the next step to run, plain state (JSON) and tensors (optimiser)."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self) -> dict[str, Any]:
        """The optimiser state, read without unpickling code."""
        import torch

        return torch.load(self.folder / "optimizer.pt", weights_only=True, map_location="cpu")


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder.
        keep: how many of the newest stay, beside the one named best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder) / "checkpoints", keep

    def save(
        self, step: int, policy: Policy, state: Mapping[str, Any], tensors: Mapping[str, Any], *, is_best: bool = False
    ) -> Path:
        """Saves the state after `step` finished steps; returns the folder."""
        import torch

        from sightline.policy.load import save_policy

        target = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".step-{step:06d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        save_policy(policy, temporary)
        torch.save(dict(tensors), temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps({"schema": SCHEMA, "step": step, **state}))
        _sync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        if is_best:
            write_atomically(self.folder / "best", target.name)
        _sync_entry(self.folder)
        self._prune()
        return target

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if (p / "state.json").exists())

    def best(self) -> Path | None:
        """The checkpoint with the best held-out result, if one was named."""
        name = self.folder / "best"
        path = self.folder / name.read_text().strip() if name.exists() else None
        return path if path is not None and path.exists() else None

    def latest(self) -> Saved | None:
        """The newest checkpoint, or None in a fresh folder.

        Raises:
            UserError: it was written by an incompatible version.
        """
        folders = self.all()
        if not folders:
            return None
        raw = json.loads((folders[-1] / "state.json").read_text())
        if raw.get("schema") != SCHEMA:
            raise UserError(
                f"checkpoint schema {raw.get('schema')} cannot be resumed by this version (needs {SCHEMA})",
                where=str(folders[-1]), hint="start over beside it with --fresh",
            )  # fmt: skip
        return Saved(folders[-1], int(raw["step"]), raw)

    def _prune(self) -> None:
        best = self.best()
        for path in self.all()[: -self.keep]:
            if path != best:
                shutil.rmtree(path)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file that is either old or new after a kill, never torn."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
