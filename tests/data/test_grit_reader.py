"""Rows of GRIT's data files become Records; what rewards and metrics go by stays in `meta`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.data import read_records
from sightline.errors import UserError
from sightline.rewards.counting import gold_count
from sightline.types import Box, Record

COUNT = {
    "question": "How many dogs are there?", "answer": 0, "image": "a.png", "width": 64, "height": 48, "bboxs": [],
    "dataset": "tallyqa", "split": "train",
}  # fmt: skip
RELATION = {
    "question": "Is the cat left of the dog?", "answer": "yes", "image": "a.png", "width": 64, "height": 48,
    "bboxs": [[1.5, 2, 30, 40], [31, 2, 60, 47]], "dataset": "vsr", "split": "train", "key_words": ["cat"],
}  # fmt: skip


def records(folder: Path, *rows: dict[str, Any]) -> list[Record]:
    Image.new("RGB", (64, 48), (200, 10, 10)).save(folder / "a.png")
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_records(path, "grit"))


def test_rows_become_records(tmp_path: Path) -> None:
    count, relation = records(tmp_path, COUNT, RELATION)
    assert (count.answer, count.answer_kind, count.regions) == ("0", "number", ())
    assert count.meta == {"dataset": "tallyqa", "split": "train", "type": "count"}
    assert gold_count(count) == 0
    assert (relation.answer, relation.answer_kind) == ("yes", "yes_no")
    assert [region.box for region in relation.regions] == [Box(1.5, 2, 30, 40), Box(31, 2, 60, 47)]
    assert relation.meta == {"dataset": "vsr", "split": "train", "key_words": ["cat"]}
    assert gold_count(relation) is None


def test_boxes_may_be_missing(tmp_path: Path) -> None:
    row = {key: value for key, value in RELATION.items() if key != "bboxs"}
    assert records(tmp_path, row)[0].regions == ()


@pytest.mark.parametrize(
    ("key", "value"), [("question", None), ("answer", None), ("image", None), ("bboxs", "1,2,3,4")]
)
def test_a_bad_row_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        records(tmp_path, COUNT, {**RELATION, key: value})
    assert "train.jsonl:2" in str(caught.value)
    assert key in str(caught.value)
