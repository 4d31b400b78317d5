"""JSON Lines: rows end at a newline and nowhere else, whatever characters their texts hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.errors import UserError

__all__ = ["decoded", "read_rows"]


def decoded(line: bytes, where: str) -> Any:
    """The value of one line.

    Raises:
        UserError: at `where`; it is not UTF-8, not JSON, or holds half of a surrogate pair, which no file can store.

    Example:
        >>> decoded(b'{"id": 7}', "rows.jsonl:1")
        {'id': 7}
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
        if b"\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (UnicodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"row is not valid JSON: {error}", where=where, hint="fix or delete this line") from error


def read_rows(path: Path, *, drops_torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line numbers; blank lines are passed over.

    Args:
        path: the file.
        drops_torn: a last line without its newline is half of a row that somebody writes, and is left out.

    Raises:
        UserError: names the file and the line that is no JSON object.
    """
    if not path.is_file():
        raise UserError("no such file" if not path.exists() else "not a file", where=str(path))
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip(b"\xef\xbb\xbf \t\r\n") or (drops_torn and not line.endswith(b"\n")):
                continue
            row = decoded(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise UserError("a row must be an object with keys", where=f"{path}:{number}", hint="delete the line")
            yield number, row
