"""Records of a file: validated when opened, made one by one when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from sightline.data.coordinates import FRAMES
from sightline.data.readers import Reader, load_reader
from sightline.data.schema import ImageEntry, Place, Row, parse_row, record_of
from sightline.data.tables import Table, open_table
from sightline.errors import UserError
from sightline.types import Record

if TYPE_CHECKING:
    from jaxtyping import Bool

__all__ = ["Records", "ScannedRow", "read_records", "scan_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedRow:
    """One row as the scan sees it: in our format, or the problem that kept it from getting there."""

    index: int
    place: Place
    row: Row | None = None
    problem: UserError | None = None


class Records(Sequence[Record]):
    """The Records of one file, by number.

    Memory holds one offset and one flag per row; an image is opened when its Record is asked for.

    Attributes:
        path: the file.
        has_regions: which Records carry regions, Bool of shape (records,).
    """

    has_regions: Bool[np.ndarray, " records"]

    def __init__(self, path: Path, table: Table, reader: Reader, place: Place, limit: int | None = None) -> None:
        self.path = path
        self._table, self._reader, self._place = table, reader, place
        count = len(table) if limit is None else min(limit, len(table))
        self.has_regions = np.zeros(count, dtype=bool)
        seen: dict[str, int] = {}
        opened: set[str] = set()
        for scanned in _scan(table, reader, place, count):
            if scanned.problem is not None:
                raise scanned.problem
            if scanned.row is not None:
                _require_new_id(scanned.place, seen)
                _require_images(scanned.row, scanned.place, opened)
                self.has_regions[scanned.index] = bool(scanned.row.regions)
        if not count:
            raise UserError("holds no rows", where=str(path))

    def __len__(self) -> int:
        return len(self.has_regions)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        place = replace(self._place, line=self._table.line(position))
        row, place = _read(self._table.row(position), self._reader, place)
        return record_of(row, place)

    @property
    def size(self) -> int:
        return len(self)

    def at(self, index: int) -> Record:
        return self[index]


def read_records(
    path: str | Path,
    reader: str = "ours",
    *,
    image_root: str | Path | None = None,
    frame: str | None = None,
    limit: int | None = None,
) -> Records:
    """Opens a `.jsonl` or `.parquet` file and checks every row's keys and types and the headers of its images.

    Args:
        path: the data file.
        reader: a name of `READERS`, or `package.module:function`.
        image_root: folder of relative image paths; default the folder of the file.
        frame: frame of the boxes of rows that declare none; default original pixels `xyxy`.
        limit: only the first so many rows.

    Raises:
        UserError: for the first bad row, as `FILE:LINE (id ID): KEY: problem`.
    """
    table, place = _open(path, image_root, frame)
    return Records(place.file, table, load_reader(reader), place, limit)


def scan_rows(
    path: str | Path,
    reader: str = "ours",
    *,
    image_root: str | Path | None = None,
    frame: str | None = None,
    limit: int | None = None,
) -> Iterator[ScannedRow]:
    """Every row in order, bad ones included; `data check` reads this way."""
    table, place = _open(path, image_root, frame)
    count = len(table) if limit is None else min(limit, len(table))
    return _scan(table, load_reader(reader), place, count)


def _open(path: str | Path, image_root: str | Path | None, frame: str | None) -> tuple[Table, Place]:
    file = Path(path)
    if frame is not None and frame not in FRAMES:
        raise UserError(f"unknown frame {frame!r}", where="data.frame", hint=f"one of {', '.join(FRAMES)}")
    table = open_table(file)
    root = Path(image_root) if image_root is not None else file.parent
    return table, Place(file=file, line=0, image_root=root, frame=frame)


def _scan(table: Table, reader: Reader, place: Place, count: int) -> Iterator[ScannedRow]:
    for index, values in zip(range(count), table.scan(), strict=False):
        here = replace(place, line=table.line(index))
        try:
            row, here = _read(values, reader, here)
        except UserError as problem:
            yield ScannedRow(index=index, place=here, problem=problem)
        else:
            yield ScannedRow(index=index, place=here, row=row)


def _read(values: object, reader: Reader, place: Place) -> tuple[Row, Place]:
    """Reads a row; the returned Place knows the row's id."""
    if isinstance(values, UserError):
        raise values
    if not isinstance(values, dict):
        raise place.error(f"a row must be an object with keys, got {type(values).__name__}")
    identity = values.get("id")
    if isinstance(identity, str | int) and not isinstance(identity, bool):
        place = replace(place, id=str(identity))
    try:
        translated = reader(values)
    except UserError as problem:
        raise place.error(problem.what, key=problem.where, hint=problem.hint) from problem
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise place.error(f"reader failed: {type(problem).__name__}: {problem}") from problem
    row = parse_row(translated, place)
    return row, replace(place, id=str(row.id)) if row.id is not None else place


def _require_new_id(place: Place, seen: dict[str, int]) -> None:
    """Rollouts are gathered by the id of their Record, so an id may occur once."""
    first = seen.setdefault(place.name, place.line)
    if first != place.line:
        raise place.error(f"id {place.name!r} stands in line {first} already", key="id", hint="give each row its own")


def _require_images(row: Row, place: Place, opened: set[str]) -> None:
    """Opens the header of every image not in `opened`, so that a damaged file is told before weights load."""
    from sightline.images import image_size

    for index, entry in enumerate(row.images):
        content = entry.content if isinstance(entry, ImageEntry) else None
        source = content if content is not None else str(place.image_path(_name(entry)))
        if source in opened:
            continue
        try:
            image_size(source)
        except UserError as problem:
            what, hint = f"{problem.where}: {problem.what}", problem.hint
            if isinstance(problem.__cause__, FileNotFoundError | NotADirectoryError):
                what, hint = f"no such image {source!r}", "set data.image_root to its folder"
            raise place.error(what, key=f"images[{index}]", hint=hint) from problem
        if isinstance(source, str):
            opened.add(source)


def _name(entry: str | ImageEntry) -> str:
    return entry if isinstance(entry, str) else str(entry.path)
