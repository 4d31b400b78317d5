from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sightline.data.check import FINDINGS, Report, check
from sightline.geometry.frames import Frame
from sightline.types import Record, Score, Size


def checked(folder: Path, *rows: object, size: tuple[int, int] = (200, 100), **options: object) -> Report:
    Image.new("RGB", size).save(folder / "a.png")
    base = {"question": "What color is it?", "answer": "green", "images": ["a.png"]}
    lines = [
        one if isinstance(one, str) else json.dumps({"id": f"r{n}", **base, **one}) for n, one in enumerate(rows, 1)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return check(folder / "rows.jsonl", **options)  # type: ignore[arg-type]


def kinds(report: Report) -> list[tuple[int, str]]:
    return [(f.line, f.kind) for f in report.findings]


def test_a_clean_file_passes(tmp_path: Path) -> None:
    report = checked(
        tmp_path,
        {"regions": [{"box": [1, 2, 50, 60]}]},
        {"answer": 0, "question": "How many?"},
        {"images": [], "regions": []},
        {"answer": "B", "options": ["red", "green"]},
        {"answer": "green", "options": ["red", "green"]},
        {"answer": "yes"},
        {"answer": r"\frac{1}{2}", "answer_kind": "math"},
        {"answer": "EXIT 12", "answer_kind": "text_ocr"},
        {"answer": "a man walks", "answer_kind": "free"},
    )
    assert report.findings == ()
    assert report.rows == 9
    assert report.exit_status == 0


@pytest.mark.parametrize(
    ("row", "kind", "part"),
    [
        ('{"id": ', "row", "not valid JSON"),
        ({"answer": None}, "row", "answer: "),
        ({"question": "<image><image>?"}, "row", "2 <image> markers"),
        ({"images": ["b.png"]}, "image", "does not exist"),
        ({"images": ["a\0.png"]}, "image", "NUL"),
        ({"images": ["n" * 300]}, "image", "too long"),
        ({"regions": [{"box": [10, 10, 10, 20]}]}, "box", "empty"),
        ({"regions": [{"box": [50, 10, 10, 20]}]}, "box", "reversed"),
        ({"regions": [{"box": [10, 10, 230, 20]}]}, "box", "outside by 30 px"),
        ({"regions": [{"box": [-9, 10, 30, 20]}]}, "box", "outside by 9 px"),
        ({"answer": "blue", "options": ["red", "green"]}, "option", "none of"),
        ({"answer": "E", "options": ["red", "green"]}, "option", "none of"),
        ({"answer": "..."}, "gold", "scores 0"),
        ({"question": "What color is the green cup?"}, "leak", "green"),
        ({"regions": [{"box": [0.1, 0.2, 0.5, 0.6]}]}, "frame", "norm_1"),
        ({"regions": [{"box": [100, 200, 500, 600]}]}, "frame", "norm_1000"),
    ],
)
def test_each_kind_of_problem_is_found(tmp_path: Path, row: object, kind: str, part: str) -> None:
    report = checked(tmp_path, {}, row, {})
    found = [f for f in report.findings if f.kind == kind]
    assert [f.line for f in found] == [2]
    assert part in found[0].message
    assert found[0].severity == FINDINGS[kind][0]
    assert report.exit_status == (2 if report.errors else 0)
    assert {f.line for f in report.findings} == {2}


def test_a_border_of_one_pixel_is_rounding_not_an_error(tmp_path: Path) -> None:
    assert checked(tmp_path, {"regions": [{"box": [0, 0, 201, 100]}]}).findings == ()


def test_an_id_twice_is_an_error(tmp_path: Path) -> None:
    report = checked(tmp_path, {"id": "x"}, {"id": "y"}, {"id": "x"})
    assert kinds(report) == [(3, "id")]
    assert "line 1" in report.findings[0].message


def test_declared_frames_are_not_suspected(tmp_path: Path) -> None:
    rows = [{"frame": "norm_1", "regions": [{"box": [0.1, 0.2, 0.5, 0.6]}]}] * 6
    assert [k for _, k in kinds(checked(tmp_path, *rows))] == []


def test_a_whole_file_in_thousandths_is_suspected(tmp_path: Path) -> None:
    rows = [{"regions": [{"box": [100, 200, 500 + n, 990]}]} for n in range(6)]
    report = checked(tmp_path, *rows, size=(1600, 1200))
    assert kinds(report) == [(0, "frame")]
    assert "norm_1000" in report.findings[0].message
    assert report.exit_status == 0


def test_xywh_boxes_are_suspected(tmp_path: Path) -> None:
    rows = [{"regions": [{"box": [100, 60, 20, 30]}]} for _ in range(6)]
    report = checked(tmp_path, *rows)
    assert (0, "frame") in kinds(report)
    assert "xywh" in report.findings[-1].message


def test_visual_tokens_are_counted_against_the_budget(tmp_path: Path) -> None:
    frame = Frame("absolute", 28, 3136, 1_000_000)
    assert frame.tokens(Size(200, 100)) == 28
    row = {"images": ["a.png", "a.png"]}
    assert checked(tmp_path, row, model_frame=frame, token_budget=56).findings == ()
    report = checked(tmp_path, row, model_frame=frame, token_budget=55)
    assert kinds(report) == [(1, "tokens")]
    assert "56 visual tokens" in report.findings[0].message


def test_an_impossible_image_is_found_with_a_frame(tmp_path: Path) -> None:
    report = checked(tmp_path, {}, size=(900, 2), model_frame=Frame("absolute", 28, 3136, 1_000_000))
    assert kinds(report) == [(1, "image")]


def test_the_reward_of_the_run_can_re_score_the_gold_answer(tmp_path: Path) -> None:
    def half(record: Record) -> Score:
        return Score(0.5, "only half right", masked=record.id == "r2")

    report = checked(tmp_path, {}, {}, rescore=half)
    assert kinds(report) == [(1, "gold")]
    assert "scores 0.5: only half right" in report.findings[0].message


def test_limit_and_progress(tmp_path: Path) -> None:
    seen = []

    def progress(rows):
        for one in rows:
            seen.append(one.index)
            yield one

    assert checked(tmp_path, {}, {}, {}, limit=2, progress=progress).rows == 2
    assert seen == [0, 1]


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    report = check(tmp_path / "rows.jsonl")
    assert (report.rows, report.exit_status) == (0, 2)


def test_the_table_shows_rows_and_survives_markup(tmp_path: Path) -> None:
    rows = [{"answer": "[/red]x", "options": ["a", "b"]} for _ in range(20)]
    report = checked(tmp_path, *rows)
    stream = io.StringIO()
    report.show(Console(file=stream, width=200))
    text = stream.getvalue()
    assert "[/red]x" in text
    assert "and 8 more" in text
    assert "20 rows, " in text
    assert report.counts()["option"] == 20
