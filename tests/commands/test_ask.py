"""`sightline ask` from the words typed to the pixels drawn: every mode, every kind of picture, every mistake."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sightline.cli import main
from sightline.commands.replies import result_row, save_picture, verdict
from sightline.commands.streaming import Ink
from sightline.images import image_ref, open_image
from sightline.report.overlay import STYLES
from sightline.sampling.crops import Crop
from sightline.sampling.modes import MODES, ModeResult
from sightline.tools.crop import CropSettings, CropTool
from sightline.types import Box, ReadBox, Reading, Record, Rollout, Span

QUESTION = "What color is the mark on the red square?"


def rgb(style: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(STYLES[style].colour[1:])))


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, str]:
    """A scene with small marks as a file, and a question about it."""
    from sightline.data import open_source

    record = open_source("scenes:zoom", split="test", seed=0, types=None, reader="ours", limit=1).at(0)
    open_image(record.images[0]).save(tmp_path / "scene.png")
    return tmp_path / "scene.png", record.question


def asked(words: list[str], capsys) -> tuple[int, str, str]:
    code = main(["ask", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers(scene, capsys, mode) -> None:
    image, question = scene
    code, shown, _ = asked([str(image), question, "--mode", mode], capsys)
    assert code == 0
    assert re.search(r"^answer: \w+", shown, re.MULTILINE)
    assert re.search(r"^imports \d+\.\d\d s, loading \d+\.\d\d s, answer \d+\.\d\d s", shown, re.MULTILINE)
    assert ("box 1:" in shown) == (mode != "textual")
    assert ("crop 1:" in shown) == (mode in ("crops", "crops+union", "turns"))


def test_turns_appear_in_the_order_in_which_they_happen(scene, capsys) -> None:
    image, question = scene
    _, shown, _ = asked([str(image), question, "--mode", "turns"], capsys)
    first, crop, answer = (shown.index(mark) for mark in ("<box>", "crop [", "<answer>"))
    assert first < crop < answer < shown.index("answer: ")


def test_rows_and_nothing_else(scene, capsys) -> None:
    image, question = scene
    _, shown, _ = asked([str(image), question, "--mode", "turns", "--json"], capsys)
    row = json.loads(shown)
    assert (row["mode"], len(row["texts"]), row["crops"][0]["turn"]) == ("turns", 2, 1)
    assert row["answer"] in row["texts"][1]


def test_streamed_and_plain_replies_are_the_same(scene, capsys) -> None:
    image, question = scene
    words = [str(image), question, "--mode", "turns", "--temperature", "1", "--seed", "3"]
    _, shown, _ = asked(words, capsys)
    _, row, _ = asked([*words, "--json"], capsys)
    for text in json.loads(row)["texts"]:
        assert text in shown


def test_the_second_image_is_the_expected_crop(scene, capsys, tmp_path) -> None:
    """What the page shows as the crop is, pixel for pixel, the padded box of the first reply cut out of the file."""
    image, question = scene
    words = [str(image), question, "--mode", "turns", "--json", "--out", str(tmp_path / "page.html")]
    row = json.loads(asked(words, capsys)[1])
    numbers = [float(v) for v in re.findall(r"\d+", row["texts"][0].split("<box>")[1])]
    width, height = image_ref(image).size
    written = Box(*(v / 1000 * side for v, side in zip(numbers, (width, height) * 2, strict=True)))
    found = ReadBox(box=written, written=tuple(numbers), span=Span(0, 1))  # type: ignore[arg-type]
    expected = CropTool(CropSettings(padding=0.1, min_side=28)).cut(found, image_ref(image))
    assert expected.image is not None
    assert list(expected.box or ()) == row["crops"][0]["box"]
    pictures = embedded(tmp_path / "page.html")
    assert (pictures[1] == np.asarray(open_image(expected.image))).all()


def test_a_file_of_records(scenes, capsys, tmp_path) -> None:
    code, shown, told = asked([str(scenes), "--mode", "turns", "--limit", "2", "--out", str(tmp_path / "out")], capsys)
    assert code == 0
    assert shown.count("answer: ") == 2
    assert "slowest answer" in shown
    assert told.count("picture: ") == len(list((tmp_path / "out").glob("*.png"))) == 2


@pytest.mark.parametrize("mode", ["grounded", "turns"])
def test_rows_of_a_batch_are_those_of_single_records(scenes, capsys, mode) -> None:
    words = [str(scenes), "--json", "--mode", mode, "--temperature", "1", "--seed", "5"]
    batches = [asked([*words, "--batch", size], capsys)[1].splitlines() for size in ("1", "4")]
    rows = [[json.loads(line) for line in lines] for lines in batches]
    assert len(rows[0]) == 6
    assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]


def test_a_batch_is_answered_together(scenes, capsys, monkeypatch) -> None:
    from sightline.sampling import modes

    counts, whole = [], modes.answer
    monkeypatch.setattr(
        modes, "answer", lambda s, records, *a, **k: counts.append(len(records)) or whole(s, records, *a, **k)
    )
    asked([str(scenes), "--json", "--batch", "4"], capsys)
    asked([str(scenes), "--limit", "2"], capsys)
    assert counts == [4, 2, 1, 1]


def table(folder: Path, *rows: dict) -> str:
    lines = [json.dumps({"question": "What?", "answer": "red", **row}) for row in rows]
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "own.jsonl")


@pytest.mark.parametrize(
    ("second", "words", "expected"),
    [
        ({"id": "bare"}, ["--out", "pictures"], "own.jsonl (id bare): there is no image to draw on"),
        ({"id": "bare"}, ["--attention"], "own.jsonl (id bare): there is no image to draw on"),
        ({"id": "thin", "images": ["thin.png"]}, [], "thin.png: an image of 1x400 pixels"),
        ({"id": "b", "images": ["scene.png"]}, ["--out", "own.jsonl"], "own.jsonl: File exists"),
        ({"id": "b", "images": ["scene.png"]}, ["--attention", "--heads", "no.json"], "no.json: the list of heads"),
        ({"id": "b\x1b[2J", "images": ["no.png"]}, [], "(id b [2J)"),
    ],
)
def test_mistakes_in_a_file_are_told_before_the_first_answer(
    scene, capsys, monkeypatch, second, words, expected
) -> None:
    folder = scene[0].parent
    monkeypatch.chdir(folder)
    Image.new("RGB", (1, 400)).save(folder / "thin.png")
    path = table(folder, {"id": "a", "images": ["scene.png"]}, second)
    code, shown, told = asked([path, *words], capsys)
    assert (code, told.count("\n")) == (2, 1)
    assert expected in told
    assert "answer" not in shown


def test_a_file_cannot_command_the_terminal(scene, capsys) -> None:
    path = table(scene[0].parent, *({"id": f"{i}\x1b]0;x\x07", "question": "What\x1b[2J?"} for i in range(2)))
    _, shown, _ = asked([path], capsys)
    assert "What[2J?" in shown
    assert "\x1b" not in shown.replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize(("mode", "limit"), [("textual", 1.5), ("crops", 2.5), ("turns", 2.5)])
def test_loading_and_answering_take_little_time(scene, capsys, mode, limit) -> None:
    image, question = scene
    began = time.process_time()
    asked([str(image), question, "--mode", mode], capsys)
    assert time.process_time() - began < limit


def test_no_box_falls_back_with_a_note(scene, capsys) -> None:
    image, question = scene
    _, shown, _ = asked([str(image), question, "--mode", "turns", "--max-new-tokens", "3"], capsys)
    assert "note: no usable box: answered from the textual prompt" in shown
    assert "no usable box, asked again in words" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scene.png", "What?", "--mode", "zoom"], "unknown mode 'zoom' (one of textual"),
        (["scene.png"], "the question is missing"),
        (["scene.png", "--mode", "turns"], "the question is missing"),
        (["nowhere.png", "What?"], "the image does not exist"),
        (["broken.png", "What?"], "not an image"),
        (["cut.png", "What?", "--mode", "turns"], "cut.png"),
        (["thin.png", "What?", "--mode", "turns"], "more than 200 times longer than wide"),
        (["rows.jsonl", "What?"], "brings its own questions"),
        (["rows.jsonl"], "rows.jsonl:1"),
        (["scene.png", "What?", "--out", "picture.gif"], "ends in .png or .html"),
        (["scene.png", "What?", "--max-crops", "0"], "--max-crops"),
        (["scene.png", "What?", "--min-pixels", "99999999999"], "--min-pixels: Input should be less"),
        (["scene.png", "What?", "--batch", "0"], "--batch: must be at least 1"),
        (["scene.png", "What?", "--min-pixels", "9", "--max-pixels", "4"], "min_pixels must not exceed"),
        (["scene.png", "What?", "--model", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(scene, capsys, monkeypatch, words, expected) -> None:
    folder = scene[0].parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "broken.png").write_text("no picture")
    (folder / "cut.png").write_bytes(scene[0].read_bytes()[:900])
    Image.new("RGB", (1, 400)).save(folder / "thin.png")
    (folder / "rows.jsonl").write_text("{}\n")
    code, _, told = asked(words, capsys)
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert expected in told


# Pictures


def upright(path: Path) -> np.ndarray:
    return np.asarray(open_image(image_ref(path)))


def embedded(page: Path) -> list[np.ndarray]:
    """The pictures of a page: the original, then the crops."""
    found = re.findall(r"base64,([^\"]+)", page.read_text())
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def colourful(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 90, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def turned(image: Image.Image, path: Path) -> Path:
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


def saved(kind: str, folder: Path) -> Path:
    path = folder / "picture.png"
    image = colourful(121, 77)
    if kind == "rotated":
        return turned(image, path)
    if kind == "grey":
        image = image.convert("L")
    elif kind == "rgba":
        image.putalpha(Image.fromarray(np.full((77, 121), 120, np.uint8)))
    elif kind == "thin":
        image = colourful(1, 60)
    elif kind == "flat":
        image = colourful(60, 1)
    image.save(path)
    return path


KINDS = ("odd", "rotated", "grey", "rgba", "thin", "flat")


def result_on(path: Path, share: tuple[float, float, float, float] = (0.2, 0.2, 0.8, 0.7)) -> ModeResult:
    """A result with one box and its crop, at these shares of the upright picture."""
    image = image_ref(path)
    width, height = image.size
    box = Box(share[0] * width, share[1] * height, share[2] * width, share[3] * height)
    cut = CropTool(CropSettings(padding=0.0, min_side=1)).cut(ReadBox(box=box, written=box, span=Span(0, 1)), image)  # type: ignore[arg-type]
    assert cut.image is not None
    assert cut.box is not None
    record = Record(id="r", question=QUESTION, answer="red", images=(image,))
    reading = Reading(text="", answer="red", boxes=(ReadBox(box=box, written=box, span=Span(0, 1)),))  # type: ignore[arg-type]
    rollouts: tuple[Rollout, ...] = ()
    crops = (Crop(box=cut.box, pixels=cut.image, turn=1),)
    return ModeResult(record=record, mode="turns", rollouts=rollouts, readings=(reading,), crops=crops)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_boxes_lie_on_the_upright_original(tmp_path, kind) -> None:
    path = saved(kind, tmp_path)
    before = upright(path)
    result = result_on(path)
    drawn = upright(save_picture(result, tmp_path / "out.png"))
    assert drawn.shape == before.shape
    (box,) = (found.box for found in result.boxes)
    inked = np.argwhere((drawn == rgb("predicted")).all(-1) | (drawn == rgb("reference")).all(-1))
    (top, left), (bottom, right) = inked.min(0), inked.max(0)
    if kind in ("thin", "flat"):
        lengthwise = (top, bottom, box.y1, box.y2) if kind == "thin" else (left, right, box.x1, box.x2)
        assert lengthwise[0] == pytest.approx(lengthwise[2], abs=3)
        assert lengthwise[1] == pytest.approx(lengthwise[3], abs=3)
        return
    assert (right, bottom) == pytest.approx((box.x2, box.y2), abs=3)
    assert left == pytest.approx(box.x1, abs=3)
    middle = (slice(int(box.y1) + 6, int(box.y2) - 6), slice(int(box.x1) + 6, int(box.x2) - 6))
    assert (drawn[middle] == before[middle]).mean() > 0.7  # the tags of the boxes lie over a part
    outside = (slice(int(box.y2) + 6, None), slice(None))
    assert (drawn[outside] == before[outside]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_pages_hold_the_original_and_the_crops_beside_it(tmp_path, kind) -> None:
    path = saved(kind, tmp_path)
    before = upright(path)
    result = result_on(path)
    page = save_picture(result, tmp_path / "out.html")
    original, crop = embedded(page)
    assert (original == before).all()
    x1, y1, x2, y2 = (int(side) for side in result.crops[0].box)
    assert (crop == before[y1:y2, x1:x2]).all()
    text = page.read_text()
    assert f'viewBox="0 0 {before.shape[1]} {before.shape[0]}"' in text
    assert f'x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}"' in text
    assert text.count("#crop-1") == text.count("#box-of-crop-1") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_can_be_asked_about(tmp_path, capsys, kind) -> None:
    path = saved(kind, tmp_path)
    words = [str(path), QUESTION, "--mode", "turns", "--json", "--out", str(tmp_path / "page.html")]
    code, shown, _ = asked(words, capsys)
    assert code == 0
    row, before = json.loads(shown), upright(path)
    original, *crops = embedded(tmp_path / "page.html")
    assert (original == before).all()
    assert len(crops) == len(row["crops"])
    for pixels, crop in zip(crops, row["crops"], strict=True):
        x1, y1, x2, y2 = (int(side) for side in crop["box"])
        assert (pixels == before[y1:y2, x1:x2]).all()


# Words


def test_streamed_text_is_whole_and_harmless() -> None:
    target = io.StringIO()
    ink = Ink(Console(file=target, force_terminal=False, soft_wrap=True))
    text = "<think> a < b \x1b[2J</think><box>[1,2,3,4]</box> <not a tag at all, really> é 漢\n<answer> [x]</answer"
    for character in text:
        ink.write(character)
    ink.end()
    assert target.getvalue() == text.replace("\x1b", "") + "\n"


def test_streamed_tags_and_boxes_are_coloured() -> None:
    target = io.StringIO()
    ink = Ink(Console(file=target, force_terminal=True, color_system="standard", soft_wrap=True))
    ink.write("<think>a</think><box>[1,2]</box>b")
    ink.end()
    shown = target.getvalue()
    assert "\x1b[2m<think>\x1b[0ma" in shown
    assert "\x1b[36m[\x1b[0m" in shown
    assert shown.endswith("\x1b[0mb\n")


def test_the_verdict_and_the_row_name_every_crop(tmp_path) -> None:
    result = result_on(saved("odd", tmp_path))
    assert "crop 1: [24, 15, 97, 54] px" in verdict(result).plain
    row = result_row(result, 0.5)
    assert row["crops"] == [{"box": [24, 15, 97, 54], "image": 0, "turn": 1, "is_union": False}]
    assert row["texts"] == [""]
