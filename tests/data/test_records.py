from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sightline.data import read_records, write_records
from sightline.data.coordinates import FRAMES, to_pixels
from sightline.data.schema import default_answer_kind
from sightline.errors import UserError
from sightline.images import image_ref, open_image
from sightline.types import Box, Record, Region, Size


def save_image(folder: Path, name: str = "a.png", size: tuple[int, int] = (200, 100)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path)
    return path


def save_rows(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes: object) -> dict[str, object]:
    base = {"id": "r1", "question": "What color?", "answer": "green", "images": ["a.png"]}
    return {key: value for key, value in {**base, **changes}.items() if value is not ...}


def test_a_full_row_becomes_the_record(tmp_path: Path) -> None:
    image = save_image(tmp_path)
    save_rows(
        tmp_path,
        row(
            options=["red", "green"],
            regions=[{"box": [10, 20, 30.5, 40], "label": "cup"}, {"box": [0, 0, 1, 1], "role": "distractor"}],
            meta={"source": "mine"},
        ),
    )
    (record,) = read_records(tmp_path / "rows.jsonl")
    assert record.id == "r1"
    assert record.answer_kind == "option"
    assert record.options == ("red", "green")
    assert record.regions[0] == Region(box=Box(10, 20, 30.5, 40), label="cup")
    assert record.regions[1].role == "distractor"
    assert record.meta == {"source": "mine"}
    assert record.images[0].size == Size(200, 100)
    assert record.images[0].path == str(image)
    assert record.images[0].digest == image_ref(image).digest


def test_rows_without_images_and_with_several_are_records(tmp_path: Path) -> None:
    save_image(tmp_path)
    save_image(tmp_path, "b.png", (50, 60))
    path = save_rows(
        tmp_path,
        row(images=..., regions=...),
        row(id="r2", images=["a.png", "b.png"], regions=[{"box": [1, 2, 3, 4], "image": 1}]),
        row(id="r3", answer=0),
    )
    records = read_records(path)
    assert [len(r.images) for r in records] == [0, 2, 1]
    assert records[2].answer == "0"
    assert records[2].answer_kind == "number"
    assert records.has_regions.tolist() == [False, True, False]
    assert [r.id for r in records[1:]] == ["r2", "r3"]
    with pytest.raises(IndexError):
        records[3]


def test_a_missing_id_is_the_place_in_the_file(tmp_path: Path) -> None:
    path = save_rows(tmp_path, "", row(id=..., images=...), "", row(id=7, images=...))
    assert [r.id for r in read_records(path)] == ["rows-2", "7"]


@pytest.mark.parametrize(
    ("bad", "key", "part"),
    [
        ('{"id": "x", "question": ', "", "not valid JSON"),
        ("[1, 2]", "", "must be an object"),
        (row(question=...), "question", "missing"),
        (row(question=5), "question", "valid string"),
        (row(answer=["a"]), "answer", "got ['a']"),
        (row(answer=True), "answer", "got True"),
        (row(images=["nowhere.png"]), "images[0]", "no such image"),
        (row(regoins=[]), "regoins", "did you mean 'regions'"),
        (row(source="x"), "source", "`meta`"),
        (row(regions=[{"box": [1, 2, 3]}]), "regions[0].box", "needs four numbers, got [1, 2, 3]"),
        (row(regions=[{"box": [1, 2, 3, "4"]}]), "regions[0].box[3]", "valid number"),
        (row(regions=[{"box": [1, 2, 3, 4], "image": 1}]), "", "regions[0].image is 1 but the row has 1 images"),
        (row(question="<image><image>What?"), "", "2 <image> markers but the row has 1 images"),
        (row(answer_kind="mcq"), "answer_kind", "'option'"),
        (row(frame="pixels"), "frame", "unknown frame"),
        ('{"question": "q", "answer": "a", "regions": [{"box": [0, 0, NaN, 1]}]}', "regions[0].box[2]", "finite"),
    ],
)
def test_a_bad_row_is_one_line_with_file_row_and_key(tmp_path: Path, bad: object, key: str, part: str) -> None:
    save_image(tmp_path)
    path = save_rows(tmp_path, row(id="r0"), bad)
    with pytest.raises(UserError) as caught:
        read_records(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2")
    assert "\n" not in message
    assert part in message
    if key:
        assert f": {key}: " in message
    if isinstance(bad, dict):
        assert "(id r1)" in message


def test_an_id_twice_is_refused(tmp_path: Path) -> None:
    path = save_rows(tmp_path, row(images=...), row(id="rows-3", images=...), row(id=..., images=...))
    with pytest.raises(UserError, match=r"rows\.jsonl:3: id: id 'rows-3' stands in line 2 already"):
        read_records(path)


def test_a_damaged_image_names_row_and_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    image = save_image(tmp_path, "b.png")
    path = save_rows(tmp_path, row(images=["b.png"]), row(id="r2", images=["b.png", "a.png"]))
    named = r"rows\.jsonl:2 \(id r2\): images\[1\]: .*a\.png"
    for content in (b"not an image", b"", image.read_bytes()[:20]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=named):
            read_records(path)
    (tmp_path / "a.png").write_bytes(image.read_bytes())
    records = read_records(path)
    (tmp_path / "a.png").write_bytes(b"")  # damaged while the run goes on
    with pytest.raises(UserError, match=named):
        records[1]


@pytest.mark.parametrize(("name", "said"), [("n" * 300 + ".png", "too long"), ("a\0.png", "NUL"), (".", "directory")])
def test_an_impossible_image_name_names_row_and_path(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)rows\.jsonl:1 \(id r1\): images\[0\]: .*{said}"):
        read_records(save_rows(tmp_path, row(images=[name])))


def test_an_image_stored_in_a_row_is_looked_at_when_opened(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row(images=[{"bytes": b"no image", "path": "a.png"}])]), path)
    with pytest.raises(UserError, match=r"rows\.parquet:1 \(id r1\): images\[0\]: image data"):
        read_records(path)


def test_undecodable_text_and_empty_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"question": "\xff\xfe"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:1: row is not valid JSON"):
        read_records(path)
    path.write_bytes(b"\n\n")
    with pytest.raises(UserError, match="holds no rows"):
        read_records(path)
    with pytest.raises(UserError, match="no such data file"):
        read_records(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        read_records(tmp_path)
    with pytest.raises(UserError, match=r"use \.jsonl or .parquet"):
        read_records(save_rows(tmp_path, row(), name="rows.csv"))


def test_limit_stops_before_later_bad_rows(tmp_path: Path) -> None:
    path = save_rows(tmp_path, row(images=...), "broken")
    assert len(read_records(path, limit=1)) == 1


def test_a_byte_order_mark_and_unicode_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(row(images=..., answer="grün"), ensure_ascii=False).encode() + b"\r\n"
    )
    assert read_records(path)[0].answer == "grün"


def test_image_root_replaces_the_folder_of_the_file(tmp_path: Path) -> None:
    save_image(tmp_path / "pictures")
    path = save_rows(tmp_path, row())
    assert read_records(path, image_root=tmp_path / "pictures")[0].images[0].size == (200, 100)


@pytest.mark.parametrize(
    ("frame", "numbers"),
    [
        ("original_px", [20, 25, 60, 75]),
        ("original_px_xywh", [20, 25, 40, 50]),
        ("norm_1", [0.1, 0.25, 0.3, 0.75]),
        ("norm_1_xywh", [0.1, 0.25, 0.2, 0.5]),
        ("norm_1000", [100, 250, 300, 750]),
        ("norm_1000_xywh", [100, 250, 200, 500]),
        ("padded_square_1", [0.1, 0.375, 0.3, 0.625]),
    ],
)
def test_every_frame_gives_the_same_region(tmp_path: Path, frame: str, numbers: list[float]) -> None:
    save_image(tmp_path)  # 200 x 100
    declared = save_rows(tmp_path, row(frame=frame, regions=[{"box": numbers}]))
    assert read_records(declared)[0].regions[0].box == pytest.approx((20, 25, 60, 75))
    plain = save_rows(tmp_path, row(regions=[{"box": numbers}]), name="plain.jsonl")
    assert read_records(plain, frame=frame)[0].regions[0].box == pytest.approx((20, 25, 60, 75))


def test_an_unknown_frame_of_the_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.frame: unknown frame 'px'"):
        read_records(save_rows(tmp_path, row(images=...)), frame="px")


@given(
    st.sampled_from(sorted(FRAMES)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    st.integers(2, 5),
)
def test_frames_scale_with_the_image(
    frame: str, numbers: tuple[float, ...], size: tuple[int, int], factor: int
) -> None:
    small = to_pixels(numbers, frame, Size(*size))
    large = to_pixels(numbers, frame, Size(size[0] * factor, size[1] * factor))
    by = 1 if frame.startswith("original") else factor
    assert large == pytest.approx(tuple(by * v for v in small), abs=1e-6)


def test_the_frame_names_of_recipes_and_rows_are_the_same() -> None:
    from typing import get_args

    from sightline.config.sections import FrameName

    assert set(get_args(FrameName)) == set(FRAMES)


def test_markers_leave_the_question(tmp_path: Path) -> None:
    save_image(tmp_path)
    path = save_rows(
        tmp_path,
        row(question="<image>\nWhat color?"),
        row(id="r2", images=["a.png", "a.png"], question="<image> Is it like <image>?"),
    )
    assert [r.question for r in read_records(path)] == ["What color?", "Is it like image 2?"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("Yes", "yes_no"), ("no.", "yes_no"), ("-3.5", "number"), ("1,200", "number"), ("40%", "number"), ("red", "text")],
)
def test_the_default_kind(answer: str, kind: str) -> None:
    assert default_answer_kind(answer) == kind
    assert default_answer_kind(answer, ("red", "no")) == "option"


def picture_record(number: int) -> Record:
    pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Record(
        id=f"p{number}",
        question="What is <b>this</b> & that?\n",
        answer="ä 'quoted' \"answer\"",
        answer_kind="free",
        images=(image_ref(pixels), image_ref(pixels)),
        options=("x", "y") if number % 2 else (),
        regions=(Region(box=Box(0.1, 1 / 3, 20.25, 19), label="thing", role="distractor", image=1),),
        meta={"level": "hard", "nested": {"list": [1, 2.5, None]}},
    )


def without_images(record: Record) -> tuple:
    return (
        record.id,
        record.question,
        record.answer,
        record.answer_kind,
        record.options,
        record.regions,
        dict(record.meta),
    )


def test_written_records_read_back_the_same(tmp_path: Path) -> None:
    records = [picture_record(n) for n in range(3)]
    path = write_records(records, tmp_path / "out")
    back = read_records(path)
    for old, new in zip(records, back, strict=True):
        assert without_images(new) == without_images(old)
        for a, b in zip(old.images, new.images, strict=True):
            assert np.array_equal(np.asarray(open_image(a)), np.asarray(open_image(b)))
            assert a.size == b.size
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3


def test_a_second_round_trip_keeps_files_and_digests(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), (1, 2, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    first = read_records(save_rows(tmp_path, row(images=["turned.jpg"])))
    second = read_records(write_records(first, tmp_path / "copy"))
    assert first[0].images[0].size == Size(20, 40)
    assert second[0].images[0].size == Size(20, 40)
    assert second[0].images[0].digest == first[0].images[0].digest


def test_writing_refuses_to_overwrite_and_bad_meta(tmp_path: Path) -> None:
    write_records([], tmp_path)
    with pytest.raises(UserError, match="already exists"):
        write_records([], tmp_path)
    bad = Record(id="m", question="q", answer="a", meta={"x": {1, 2}})
    with pytest.raises(UserError, match="record m: cannot be written as JSON"):
        write_records([bad], tmp_path / "other")
    assert not (tmp_path / "other" / "records.jsonl").exists()


@given(
    st.text(min_size=1).filter(lambda t: "<image>" not in t),
    st.text(),
    st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4), max_size=3),
)
def test_any_text_and_any_box_survive(tmp_path_factory, question: str, answer: str, boxes: list) -> None:
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    record = Record(
        id="h",
        question=question,
        answer=answer,
        images=(image_ref(pixels),),
        regions=tuple(Region(box=Box(*b)) for b in boxes),
    )
    folder = tmp_path_factory.mktemp("round")
    (back,) = read_records(write_records([record], folder))
    assert without_images(back) == without_images(record)
