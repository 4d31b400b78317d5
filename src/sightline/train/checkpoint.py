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

from sightline.errors import SightlineError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.policy.load import Policy
    from sightline.train.distributed import World
    from sightline.train.shards import Like

__all__ = ["REMEDY", "Checkpoints", "Saved", "read_state", "write_atomically"]

SCHEMA = 1
SHARES = "optimizer"
"""Folder in a checkpoint with the shares of several processes, in place of the file `optimizer.pt`."""
REMEDY = "delete this folder; the run resumes from the one before"


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk: the next step to run, plain state (JSON) and tensors (optimiser)."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, like: Like | None = None, world: World | None = None) -> dict[str, Any]:
        """The optimiser state, read without unpickling code.

        Args:
            like: the layout of each tensor, for a state that several processes saved (see `read_shards`).
            world: the processes that read it.

        Raises:
            UserError: the file is missing or damaged.
        """
        import pickle

        import torch

        path, shares = self.folder / "optimizer.pt", self.folder / SHARES
        try:
            if shares.is_dir() and not path.exists():
                from sightline.train.distributed import World
                from sightline.train.shards import read_shards

                path = shares
                return read_shards(shares, like or (lambda _: None), world or World())
            return torch.load(path, weights_only=True, map_location="cpu")
        except (
            SightlineError, OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(f"the optimiser state cannot be read: {reason}", where=str(path), hint=REMEDY) from error


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: the run folder.
        keep: how many of the newest stay, beside the one named best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder) / "checkpoints", keep

    def save(
        self,
        step: int,
        policy: Policy,
        state: Mapping[str, Any],
        tensors: Mapping[str, Any],
        *,
        is_best: bool = False,
        world: World | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Saves the state after `step` finished steps; returns the folder. Every process of the run calls it.

        Args:
            step: finished steps.
            policy: the policy.
            state: plain state (JSON).
            tensors: the learner's state; where it consists of shares, each process writes its own.
            is_best: names this checkpoint the best.
            world: the processes; the main one writes all that is whole.
            weights: the policy's weights by name, where it does not hold them whole.
        """
        import torch

        from sightline.policy.save import save_policy
        from sightline.train.distributed import World
        from sightline.train.shards import has_shares, write_shards

        world = world or World()
        target = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".step-{step:06d}.tmp"
        is_cut = world.size > 1 and has_shares(tensors)
        with world.agreeing():
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                save_policy(policy, temporary, state=weights)
                if not is_cut:
                    torch.save(dict(tensors), temporary / "optimizer.pt")
                (temporary / "state.json").write_text(json.dumps({"schema": SCHEMA, "step": step, **state}))
        if is_cut:
            write_shards(temporary / SHARES, tensors, world)
        with world.agreeing():
            if world.is_main:
                self._put_in_place(temporary, target, is_best=is_best)
        return target

    def _put_in_place(self, temporary: Path, target: Path, *, is_best: bool) -> None:
        _sync(temporary)
        aside = self.folder / f".{target.name}.old"
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        temporary.rename(target)
        if is_best:
            write_atomically(self.folder / "best", target.name)
        _sync_entry(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        self._prune()

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
            UserError: it is damaged, or was written by an incompatible version.
        """
        self._put_back()
        folders = self.all()
        if not folders:
            return None
        raw = read_state(folders[-1] / "state.json")
        return Saved(folders[-1], raw["step"], raw)

    def _put_back(self) -> None:
        """Undoes a save that was killed between moving the old folder aside and moving the new one in."""
        for aside in self.folder.glob(".step-*.old"):
            target = self.folder / aside.name.removeprefix(".").removesuffix(".old")
            if not target.exists():
                aside.rename(target)

    def _prune(self) -> None:
        best = self.best()
        for path in self.all()[: -self.keep]:
            if path != best:
                shutil.rmtree(path)


def read_state(path: Path) -> dict[str, Any]:
    """The plain state of a checkpoint.

    Raises:
        UserError: the file is damaged, or was written by an incompatible version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise UserError(f"the state of this checkpoint is damaged: {error}", where=str(path), hint=REMEDY) from error
    if not isinstance(raw, dict) or "schema" not in raw or not isinstance(raw.get("step"), int):
        raise UserError("this is not the state of a checkpoint", where=str(path), hint=REMEDY)
    if raw["schema"] != SCHEMA:
        raise UserError(
            f"checkpoint schema {raw['schema']} cannot be resumed by this version (needs {SCHEMA})",
            where=str(path.parent), hint="start over beside it with --fresh",
        )  # fmt: skip
    return raw


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
            continue
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
