"""Random access to the raw rows of a file without keeping them all in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sightline.errors import UserError
from sightline.jsonl import decoded

__all__ = ["JsonLines", "Parquet", "Table", "open_table"]


class Table(Protocol):
    """Rows of a file by number; `line` is the number a person would look for."""

    def __len__(self) -> int: ...

    def line(self, index: int) -> int: ...

    def row(self, index: int) -> Any: ...

    def scan(self) -> Iterator[Any]:
        """Every row in order; a UserError stands in for a row that cannot be decoded."""
        ...


def open_table(path: Path) -> Table:
    """The table of a `.jsonl` or `.parquet` file."""
    if not path.is_file():
        hint = "`sightline data scenes --out DIR` writes example data" if not path.exists() else "name a file in it"
        raise UserError("no such data file" if not path.exists() else "is a folder", where=str(path), hint=hint)
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if path.suffix == ".parquet":
        return Parquet(path)
    raise UserError(
        f"cannot read {path.suffix or 'a file without suffix'}", where=str(path), hint="use .jsonl or .parquet"
    )


class JsonLines:
    """A JSONL file, indexed by byte offset; blank lines are skipped but counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, lines, offset = [], [], 0
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if raw.strip(b"\xef\xbb\xbf \t\r\n"):
                    starts.append(offset)
                    lines.append(number)
                offset += len(raw)
        self._starts = np.array(starts, dtype=np.int64)
        self._lines = np.array(lines, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> int:
        return int(self._lines[index])

    def row(self, index: int) -> Any:
        with self.path.open("rb") as stream:
            stream.seek(int(self._starts[index]))
            return self._decoded(stream.readline(), self.line(index))

    def scan(self) -> Iterator[Any]:
        with self.path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if raw.strip(b"\xef\xbb\xbf \t\r\n"):
                    try:
                        yield self._decoded(raw, number)
                    except UserError as problem:
                        yield problem

    def _decoded(self, raw: bytes, line: int) -> Any:
        return decoded(raw, f"{self.path}:{line}")


class Parquet:
    """A parquet file. Without embedded image bytes it is read whole; with them, by row group, the last few kept."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as problem:
            raise UserError(
                "parquet files need pyarrow", where=str(path), hint="pip install 'sightline[train]'"
            ) from problem
        self.path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as problem:
            raise UserError(f"is not a readable parquet file: {problem}", where=str(path)) from problem
        schema = self._file.schema_arrow
        self._heavy = [name for name in schema.names if "binary" in str(schema.field(name).type)]
        rows = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(np.array(rows, dtype=np.int64))
        self._light = self._file.read(columns=[n for n in schema.names if n not in self._heavy])
        self._group = lru_cache(maxsize=4)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def line(self, index: int) -> int:
        return index + 1

    def row(self, index: int) -> Any:
        values = self._light.slice(index, 1).to_pylist()[0] if self._light.num_columns else {}
        if self._heavy:
            group = int(np.searchsorted(self._ends, index, side="right"))
            first = int(self._ends[group - 1]) if group else 0
            values |= self._group(group, columns=tuple(self._heavy)).slice(index - first, 1).to_pylist()[0]
        return values

    def scan(self) -> Iterator[Any]:
        for batch in self._file.iter_batches(batch_size=64):
            yield from batch.to_pylist()
