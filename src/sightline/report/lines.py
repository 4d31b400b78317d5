"""JSON Lines files that survive a kill: one write per line; readers ignore a torn last line, writers repair it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sightline.jsonl import read_rows

__all__ = ["Tail", "append_line", "keep_lines", "plain", "read_lines", "repair_end"]


def plain(value: Any) -> Any:
    """`value` as strict JSON data: numpy scalars and arrays unwrapped, numbers that are not finite turned into None.

    Example:
        >>> plain({"loss": float("nan"), "steps": (1, 2)})
        {'loss': None, 'steps': [1, 2]}
    """
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row. The line reaches the operating system in a single write, so a reader never sees half of two."""
    line = json.dumps(plain(row), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview(line.encode("utf-8", errors="replace"))
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete row of a file; an absent file has none. A last line without its newline was torn and is left out.

    Raises:
        UserError: a line in the middle is not a JSON object.
    """
    if not path.exists():
        return []
    return [row for _, row in read_rows(path, drops_torn=True)]


def repair_end(path: Path) -> None:
    """Cut a torn last line, so that the next row starts on a line of its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def keep_lines(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the rows for which `is_kept` holds; the file is replaced in one move, or left alone if all stay."""
    if not path.exists():
        return
    repair_end(path)
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    kept = [line for line, row in zip(lines, read_lines(path), strict=True) if is_kept(row)]
    if len(kept) == len(lines):
        return
    draft = path.with_suffix(path.suffix + ".draft")
    with draft.open("wb") as file:
        file.write(b"".join(line + b"\n" for line in kept))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Tail:
    """Reads what was appended to a file since the last look; starts over when the file was replaced or cut."""

    def __init__(self, path: Path) -> None:
        self.path, self._position, self._file_number = path, 0, -1

    def read(self) -> list[dict[str, Any]]:
        """The rows that were completed since the last call; a line without its newline waits for the next one."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file_number or status.st_size < self._position:
                self._position, self._file_number = 0, status.st_ino
            file.seek(self._position)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._position += end
        return [json.loads(line) for line in data[:end].split(b"\n") if line.strip()]
