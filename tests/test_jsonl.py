from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.errors import UserError
from sightline.jsonl import read_rows

ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"


def save(folder: Path, content: bytes) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    return path


def test_rows_end_at_newlines_only(tmp_path: Path) -> None:
    lines = [json.dumps({"text": ODD}, ensure_ascii=False), "", json.dumps({"text": "é 😀"})]
    path = save(tmp_path, b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert list(read_rows(path)) == [(1, {"text": ODD}), (3, {"text": "é 😀"})]


def test_a_torn_last_row_is_left_out_where_a_file_is_still_written(tmp_path: Path) -> None:
    path = save(tmp_path, b'{"a": 1}\n{"a": ')
    assert list(read_rows(path, drops_torn=True)) == [(1, {"a": 1})]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: row is not valid JSON"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}\n\xff\xfe\n", r"rows\.jsonl:2: row is not valid JSON: 'utf-8'"),
        (b"{}\n\n[1]\n", r"rows\.jsonl:3: a row must be an object"),
        (b'{}\n{"id": "\\ud83d"}\n', r"rows\.jsonl:2: row is not valid JSON: .* surrogates not allowed"),
        (b"[" * 100_000, r"rows\.jsonl:1: row is not valid JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list(read_rows(save(tmp_path, content)))


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        list(read_rows(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(tmp_path / "gone.jsonl"))
