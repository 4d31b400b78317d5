"""Rows of the released Ground-R1 files become Records of the right kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sightline.data import read_records
from sightline.errors import UserError
from sightline.types import Box, Record, Region


def row(**changes) -> dict:
    base = {
        "image": "a.png", "width": 64, "height": 48, "bboxs": [[5, 6, 20, 30]], "dataset": "docvqa", "split": "train",
        "problem": "What is written?", "solution": "march 4", "problem_id": 7, "input_width": 56, "input_height": 56,
    }  # fmt: skip
    return {**base, **changes}


def records(folder: Path, *rows: dict) -> list[Record]:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return list(read_records(path, reader="ground_r1"))


def test_a_row_becomes_a_record(tmp_path: Path) -> None:
    (record,) = records(tmp_path, row())
    assert (record.id, record.question, record.answer, record.answer_kind) == (
        "7", "What is written?", "march 4", "text_ocr",
    )  # fmt: skip
    assert record.regions == (Region(box=Box(5, 6, 20, 30)),)
    assert record.meta == {"dataset": "docvqa", "split": "train"}


@pytest.mark.parametrize(
    ("dataset", "solution", "kind", "answer"),
    [
        ("v7w", "<answer>B</answer>", "option", "B"),
        ("flickr30k", "a dog runs", "free", "a dog runs"),
        ("CLEVR", "3", "math", "3"),
        ("vsr", "no", "yes_no", "no"),
        ("cub", "brown", "text", "brown"),
        ("visual_toolbox_v2", "C", "option", "C"),
        ("visual_toolbox_v2", "Yes, it is.", "yes_no", "Yes, it is."),
        ("visual_toolbox_v2", "The cup is red.", "free", "The cup is red."),
        ("mine", "12", "number", "12"),
    ],
)
def test_the_data_set_and_the_answer_decide_the_kind(tmp_path: Path, dataset, solution, kind, answer) -> None:
    (record,) = records(tmp_path, row(dataset=dataset, solution=solution))
    assert (record.answer_kind, record.answer) == (kind, answer)


def test_rows_without_boxes_and_broken_rows(tmp_path: Path) -> None:
    (record,) = records(tmp_path, row(bboxs=None))
    assert record.regions == ()
    with pytest.raises(UserError, match="missing"):
        records(tmp_path, row(solution=None))
    with pytest.raises(UserError, match="list of boxes"):
        records(tmp_path, row(bboxs="none"))
