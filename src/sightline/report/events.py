"""A run folder: what writes it line by line while training, and what reads it back, arms included.

Layout::

    run.json            versions, seed, model, frame, method, arms
    events.jsonl        one StepStats a line
    evaluations.jsonl   one evaluation a line: step, label, mode, n, metrics with mean, low, high; faithfulness
    rollouts.jsonl      one logged Group a line
    images/             thumbnails, named by the first 16 characters of the image's digest
    arms/NAME/          each an ordinary run folder
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import UserError
from sightline.report.lines import append_line, keep_lines, plain, read_lines, repair_end
from sightline.report.rows import DecodePiece, file_stem, group_row
from sightline.types import Group, ImageRef, StepStats

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["RunFolder", "RunWriter", "stats_of"]

THUMBNAIL_SIDE = 640


class RunWriter:
    """Writes a run folder. Nothing in it is ever rewritten, except that a resumed run drops what it will repeat.

    Args:
        folder: created if it is absent.
        resume_step: the first step that will run now. Events and rollouts of it and later steps are dropped, and
            evaluations of later steps; a run that starts again at step 0 makes all of them again.
    """

    def __init__(self, folder: str | Path, *, resume_step: int | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._events = self.folder / "events.jsonl"
        self._evaluations = self.folder / "evaluations.jsonl"
        self._rollouts = self.folder / "rollouts.jsonl"
        for path in (self._events, self._evaluations, self._rollouts):
            repair_end(path)
        if resume_step is not None:
            keep_lines(self._events, lambda row: row["step"] < resume_step)
            keep_lines(self._rollouts, lambda row: row["step"] < resume_step)
            keep_lines(self._evaluations, lambda row: 0 < resume_step >= row["step"])

    def manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `run.json`; a resumed run keeps the moment at which it first started."""
        path = self.folder / "run.json"
        known = _read_object(path)
        row = dict(manifest) | ({"started": known["started"]} if "started" in known else {})
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(plain(row), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draft.replace(path)

    def step(self, stats: StepStats) -> None:
        append_line(
            self._events,
            {"step": stats.step, "metrics": stats.metrics, "seconds": stats.seconds, "alarms": stats.alarms},
        )

    def evaluation(self, row: Mapping[str, Any]) -> None:
        append_line(self._evaluations, row)

    def groups(
        self,
        step: int,
        groups: Iterable[Group],
        *,
        decode_piece: DecodePiece | None = None,
        frame: Frame | None = None,
    ) -> None:
        """Log groups with their pictures; `decode_piece` gives the text (or the bytes) of one token id."""
        for group in groups:
            for image in _images(group).values():
                self._thumbnail(image)
            append_line(self._rollouts, group_row(step, group, decode_piece=decode_piece, frame=frame))

    def _thumbnail(self, ref: ImageRef) -> None:
        from sightline.images import open_image

        path = self.folder / "images" / f"{file_stem(ref.digest)}.png"
        if path.exists():
            return
        try:
            image = open_image(ref)
        except (UserError, OSError):
            return  # the page says that the picture is missing; a file removed during training does not end it
        path.parent.mkdir(exist_ok=True)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        draft = path.with_suffix(".draft")
        image.save(draft, format="PNG", optimize=True)
        draft.replace(path)


@dataclass(frozen=True)
class RunFolder:
    """Reads a run folder while it is written or afterwards.

    Raises:
        UserError: the folder does not exist or holds no run.
    """

    path: Path
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "name", self.name or self.path.resolve().name)
        if not any((self.path / part).exists() for part in ("run.json", "events.jsonl", "evaluations.jsonl", "arms")):
            what = "this folder holds no run" if self.path.is_dir() else "there is no such folder"
            raise UserError(what, where=str(self.path), hint="sightline train demo")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return _read_object(self.path / "run.json")

    @cached_property
    def steps(self) -> list[StepStats]:
        """One StepStats per step, in order; of a step that was written twice, the later one."""
        rows = {row["step"]: stats_of(row) for row in read_lines(self.path / "events.jsonl")}
        return [rows[step] for step in sorted(rows)]

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Evaluations by step; of two with the same step, label and mode, the later one."""
        lines = read_lines(self.path / "evaluations.jsonl")
        rows = {(row.get("step", 0), row.get("label", ""), row.get("mode", "")): row for row in lines}
        return sorted(rows.values(), key=lambda row: row.get("step", 0))

    @cached_property
    def rollouts(self) -> list[dict[str, Any]]:
        """The logged groups, by step."""
        return sorted(read_lines(self.path / "rollouts.jsonl"), key=lambda row: row["step"])

    @cached_property
    def arms(self) -> list[RunFolder]:
        """The arms, in the order of the recipe."""
        folder = self.path / "arms"
        found = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()} if folder.is_dir() else {}
        order = [name for name in self.manifest.get("arms") or () if name in found]
        names = [*order, *(name for name in found if name not in order)]
        return [RunFolder(found[name], name) for name in names if any(found[name].glob("*.json*"))]

    @property
    def runs(self) -> list[RunFolder]:
        """What a page compares: the arms, or the run itself if it has none."""
        return self.arms or [self]

    def image(self, digest: str) -> Path | None:
        """The thumbnail of an image, None if it was not kept."""
        path = self.path / "images" / f"{file_stem(digest)}.png"
        return path if path.exists() else None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise UserError("not a JSON object", where=str(path))
    return value


def stats_of(row: Mapping[str, Any]) -> StepStats:
    """The StepStats of one event line; a number that was not finite comes back as nan."""

    def numbers(values: Mapping[str, Any] | None) -> dict[str, float]:
        return {name: math.nan if value is None else float(value) for name, value in (values or {}).items()}

    return StepStats(
        step=row["step"],
        metrics=numbers(row.get("metrics")),
        seconds=numbers(row.get("seconds")),
        alarms=tuple(row.get("alarms") or ()),
    )


def _images(group: Group) -> dict[str, ImageRef]:
    images = [*group.record.images]
    for rollout in group.rollouts:
        images += [*rollout.prompt.images, *rollout.images]
    for measurement in group.measurements:
        images += [image for shown in measurement.images.values() for image in shown]
    return {image.digest: image for image in images}
