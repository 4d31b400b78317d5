"""Data probe: rows of the run's data files, before a model sees them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.doctor.finding import Finding, failed
from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["DataFile", "data_probe", "repeated_ids"]

PREFIX = "scenes:"
SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A source of records as a recipe names it.

    Attributes:
        role: `training` or `validation`.
        name: a file, or `scenes:LEVEL`.
        reader, image_root, frame: how a file is read.
    """

    role: str
    name: str
    reader: str = "ours"
    image_root: str | None = None
    frame: str | None = None


def data_probe(
    files: Sequence[DataFile], *, rows: int = 200, frame: Frame | None = None, budget: int | None = None
) -> Finding:
    """Checks the first rows of every file and the ids of all of them.

    Args:
        files: training and validation data.
        rows: rows looked at closely: boxes inside images, answer kinds, missing files, visual tokens.
        frame: the policy's resize rule; with it visual tokens are counted.
        budget: most visual tokens of a row.
    """
    try:
        checked = [_checked(file, rows, frame, budget) for file in files]
    except UserError as error:
        return failed(error, "the run could not read its data")
    errors = [line for one in checked for line in one.errors]
    warnings = [line for one in checked for line in one.warnings] + _shared(files)
    seen = ", ".join(one.said for one in checked)
    values = {"errors": len(errors), "warnings": len(warnings), "rows": sum(one.rows for one in checked)}
    bad = next((one.file for one in checked if one.errors or one.warnings), files[0])
    command = _command(bad)
    if errors:
        return Finding(
            level="fail", what=f"{len(errors)} errors in {seen}: {errors[0]}", command=command,
            meaning="training would stop at such a row, or be rewarded wrongly on it",
            details=tuple(errors[:SHOWN] + warnings[:SHOWN]), values=values,
        )  # fmt: skip
    if warnings:
        return Finding(
            level="warn", what=f"{len(warnings)} warnings in {seen}: {warnings[0]}", command=command,
            meaning="worth a look before the run: it would not stop", details=tuple(warnings[:SHOWN]), values=values,
        )  # fmt: skip
    return Finding(level="pass", what=seen, values=values,
                   meaning="boxes lie inside their images, answers score full marks, no id occurs twice")  # fmt: skip


def _command(file: DataFile) -> str:
    """What checks the file as the run reads it."""
    reader = None if file.reader == "ours" else file.reader
    options = {"--reader": reader, "--image-root": file.image_root, "--frame": file.frame}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["sightline", "data", "check", file.name, *given])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    file: DataFile
    rows: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def said(self) -> str:
        if self.file.name.startswith(PREFIX):
            return f"{self.file.role} data {self.file.name}, made on demand"
        return f"{self.rows} {self.file.role} rows of {self.file.name}"


def _checked(file: DataFile, rows: int, frame: Frame | None, budget: int | None) -> _Checked:
    if file.name.startswith(PREFIX):
        from sightline.data import open_source

        open_source(file.name, split="train", seed=0, limit=1).at(0)
        return _Checked(file=file, rows=1, errors=(), warnings=())
    from sightline.data.check import check

    report = check(
        file.name, file.reader, image_root=file.image_root, frame=file.frame, limit=rows, model_frame=frame,
        token_budget=budget,
    )  # fmt: skip
    found: dict[str, list[str]] = {"error": [], "warning": []}
    for one in report.findings:
        found[one.severity].append(f"{file.name}:{one.line} {one.id}: {one.kind}: {one.message}")
    told = {one.id for one in report.findings if one.kind == "id"}
    twice = [(name, count) for name, count in repeated_ids(file) if name not in told]
    found["error"] += [f"{file.name}: id {name!r} stands in {count} rows" for name, count in twice]
    return _Checked(file=file, rows=report.rows, errors=tuple(dict.fromkeys(found["error"])),
                    warnings=tuple(found["warning"]))  # fmt: skip


def repeated_ids(file: DataFile) -> list[tuple[str, int]]:
    """Ids that occur in several rows of the whole file; images stay closed."""
    counts = Counter(place for place, _ in _names(file))
    return [(name, count) for name, count in counts.items() if count > 1]


def _shared(files: Sequence[DataFile]) -> list[str]:
    """Rows that training and validation share: the same images and question."""
    tables = [file for file in files if not file.name.startswith(PREFIX)]
    if len(tables) < 2 or Path(tables[0].name).resolve() == Path(tables[1].name).resolve():
        same = len(tables) == 2
        return ["training and validation are the same file"] if same else []
    asked = [{key: name for name, key in _names(file)} for file in tables[:2]]
    both = [asked[1][key] for key in asked[0].keys() & asked[1].keys() if key is not None]
    return [f"{len(both)} validation rows are training rows too, e.g. {min(both)!r}"] if both else []


def _names(file: DataFile) -> Iterable[tuple[str, Any]]:
    """Name and content (images and question) of every readable row."""
    from sightline.data.records import scan_rows

    for one in scan_rows(file.name, file.reader, image_root=file.image_root, frame=file.frame):
        if one.row is not None:
            images = tuple(_image(entry) for entry in one.row.images)
            yield one.place.name, (images, one.row.question.strip()) if None not in images else None


def _image(entry: Any) -> str | None:
    """The name of an image that a row points at; None for pixels within the row."""
    return entry if isinstance(entry, str) else getattr(entry, "path", None)
