"""`sightline archive stats | show | export`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.archive import Archive

__all__ = ["Export", "Show", "Stats", "open_archive"]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Print how many references the archive holds, their age and their mean scores."""

    folder: Positional[Path]
    """Run folder, checkpoint folder, or an archive file."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        archive = open_archive(self.folder)
        stats = {"step": archive.step, **archive.stats()}
        if self.json:
            print(json.dumps(stats))
        else:
            for name, value in stats.items():
                print(f"{name:<12}{value:g}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print references: when they entered, what ranks them, their boxes (original pixels) and their text."""

    folder: Positional[Path]
    """Run folder, checkpoint folder, or an archive file."""
    limit: int = 10
    """How many, best rank first."""
    key: str = ""
    """Only references whose key begins so."""

    def run(self) -> int:
        references = [r for r in open_archive(self.folder).references() if r.key.startswith(self.key)]
        if not references:
            print("no reference" + (f" whose key begins with {self.key!r}" if self.key else ""))
        for reference in sorted(references, key=lambda r: r.rank, reverse=True)[: self.limit]:
            scores = ", ".join(f"{name} {value:.3g}" for name, value in reference.scores.items())
            boxes = " ".join(str([round(side) for side in box]) for box in reference.boxes)
            print(f"{reference.key}  step {reference.step}  {scores}\n  boxes {boxes or 'none'}\n  {reference.text}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write all references as JSONL."""

    folder: Positional[Path]
    """Run folder, checkpoint folder, or an archive file."""
    target: Positional[Path]
    """The file to write."""

    def run(self) -> int:
        if self.target.exists():
            raise UserError("exists already", where=str(self.target), hint="choose another name")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        count = open_archive(self.folder).export(self.target)
        print(f"{count} references: {self.target}")
        return 0


def open_archive(path: Path) -> Archive:
    """The archive of a run's newest checkpoint, of a checkpoint, or of a file.

    Raises:
        UserError: there is none.
    """
    from sightline.archive import read_archive

    if not path.exists():
        raise UserError("no such run or archive", where=str(path))
    if path.is_file() and path.name != "state.json":
        return read_archive(path)
    from sightline.commands.model import source

    state = path if path.is_file() else Path(source(str(path))) / "state.json"
    if not state.is_file():
        raise UserError("holds no checkpoint", where=str(path))
    from sightline.train.checkpoint import REMEDY, read_state

    saved = read_state(state).get("archive")
    if not saved:
        raise UserError("this checkpoint holds no archive", where=str(state), hint="only some methods keep one")
    archive = _empty_archive(state.resolve().parents[2] / "recipe.yaml")
    try:
        archive.load_state(saved, str(state))
    except UserError as error:
        raise UserError(error.what, where=error.where, hint=REMEDY) from error
    return archive


def _empty_archive(recipe: Path) -> Archive:
    """An archive with the policy of the run that `recipe` describes; the default one if it is no run's checkpoint."""
    from sightline.archive import Archive

    if not recipe.is_file():
        return Archive()
    from sightline.config import load_recipe
    from sightline.methods import load_method
    from sightline.train.scoring import archive_for

    return archive_for(load_method(load_recipe(recipe).method))
