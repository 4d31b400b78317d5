from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from sightline.data import read_records
from sightline.data.readers import READERS, load_reader
from sightline.errors import UserError
from sightline.types import Box, Region, Size

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(stream, format="PNG")
    return stream.getvalue()


def save_parquet(path: Path, rows: list[dict], row_group_size: int = 2) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def ivgr_rows() -> list[dict]:
    boxed = {
        "problem": "<image>\nWhat color is the ball?",
        "query": "What color is the ball?",
        "answer": "Blue",
        "images": ["images/a.png"],
        "datasource": "treevgr",
        "target_instances": [
            {"bbox": [5, 6, 20, 30], "label": None, "name": "ball"},
            {"bbox": None, "label": "gone", "name": None},
        ],
    }
    general = {
        "problem": "<image>\nSolve it.",
        "query": None,
        "answer": "12",
        "images": ["images/a.png"],
        "datasource": "ours_mmk12",
        "target_instances": [],
    }
    return [boxed, general]


def test_ivgr_rows_become_records(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png())
    records = read_records(save_parquet(tmp_path / "train.parquet", ivgr_rows()), reader="ivgr")
    assert [r.question for r in records] == ["What color is the ball?", "Solve it."]
    assert records[0].regions == (Region(box=Box(5, 6, 20, 30), label="ball"),)
    assert records[1].regions == ()
    assert records[0].meta == {"datasource": "treevgr"}
    assert records[0].images[0].size == Size(64, 48)
    assert [r.id for r in records] == ["train-1", "train-2"]
    assert [r.answer_kind for r in records] == ["text", "number"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_ivgr_rows_hold_any_number_of_images(count: int) -> None:
    row = {"query": "Which?", "answer": "b", "images": [{"bytes": png(), "path": None}] * count}
    assert len(load_reader("ivgr")(row)["images"]) == count


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"query": None, "problem": None}, "query: missing"),
        ({"answer": None}, "answer: missing"),
        ({"target_instances": [{"bbox": [1, 2, 3]}]}, "regions[0].box"),
        ({"images": 5}, "images: expected a list"),
    ],
)
def test_bad_ivgr_rows_name_file_row_and_key(tmp_path: Path, change: dict, part: str) -> None:
    from sightline.data.records import scan_rows

    path = tmp_path / "train.jsonl"
    import json

    path.write_text(json.dumps({**ivgr_rows()[0], **change}) + "\n")
    (scanned,) = scan_rows(path, "ivgr")
    assert scanned.problem is not None
    assert part in str(scanned.problem)
    assert str(scanned.problem).startswith(f"{path}:1: ")


def test_parquet_with_image_bytes_is_read_by_row_group(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"q{n}",
            "question": "Where?",
            "answer": "left",
            "images": [{"bytes": png((10 + n, 20)), "path": "x.png"}],
            "regions": [{"box": [0.0, 0.0, 5.0, 5.0], "label": None, "image": 0}] if n % 2 else [],
        }
        for n in range(7)
    ]
    records = read_records(save_parquet(tmp_path / "rows.parquet", rows))
    assert records.has_regions.tolist() == [False, True] * 3 + [False]
    for n in (6, 0, 3, 5, 1):
        assert records[n].id == f"q{n}"
        assert records[n].images[0].size == (10 + n, 20)
        assert records[n].images[0].pixels is not None


def test_parquet_errors_name_the_row(tmp_path: Path) -> None:
    rows = [{"question": "Where?", "answer": "a"}, {"question": "", "answer": "b"}]
    with pytest.raises(UserError, match=r"rows\.parquet:2: question: "):
        read_records(save_parquet(tmp_path / "rows.parquet", rows))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="is not a readable parquet file"):
        read_records(tmp_path / "bad.parquet")


def test_every_reader_of_the_table_loads() -> None:
    for name in READERS:
        assert callable(load_reader(name))


def test_a_reader_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reader.py").write_text("def read(row):\n    return {'question': row['q'], 'answer': row['a']}\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "How many?", "a": 3}\n{"q": "How many?"}\n')
    assert read_records(path, reader="my_reader:read", limit=1)[0].answer == "3"
    with pytest.raises(UserError, match=r"rows\.jsonl:2: reader failed: KeyError: 'a'"):
        read_records(path, reader="my_reader:read")


@pytest.mark.parametrize(
    ("name", "part"),
    [("ivrg", "did you mean 'ivgr'"), ("no.such:f", "cannot load"), ("os:sep", "not a function"), ("x", "one of ours")],
)
def test_an_unknown_reader_is_explained(name: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        load_reader(name)
    assert part in str(caught.value)
