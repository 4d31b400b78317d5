"""Overlays: every kind of picture, boxes where they belong, texts inert."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.images import image_ref
from sightline.report.overlay import STYLES, Style, draw, html
from sightline.types import Box


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(c) for c in np.asarray(image).reshape(-1, 3).tolist()}


def rgb(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(STYLES[name].colour[1:]))


def test_box_edges_are_where_the_box_is() -> None:
    image = draw(Image.new("RGB", (200, 100)), [Box(40, 20, 120, 80)], styles=[Style("#ff0000", width=1)])
    red = np.argwhere((np.asarray(image) == (255, 0, 0)).all(-1))
    (top, left), (bottom, right) = red.min(0), red.max(0)
    assert (left, top, right, bottom) == pytest.approx((40, 20, 120, 80), abs=1)
    assert tuple(np.asarray(image)[50, 80]) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "RGB"])
def test_every_mode_becomes_rgb_at_its_own_size(mode: str) -> None:
    image = draw(Image.new(mode, (60, 40)), [Box(5, 5, 30, 30)])
    assert image.mode == "RGB"
    assert image.size == (60, 40)
    assert rgb("predicted") in colours(image)


def test_transparency_lies_on_white() -> None:
    assert colours(draw(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), [])) == {(255, 255, 255)}


def test_rotated_photo_is_drawn_upright(tmp_path: Path) -> None:
    photo = Image.new("RGB", (60, 20), "white")
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / "photo.jpg", exif=exif)
    image = draw(image_ref(tmp_path / "photo.jpg"), [Box(2, 30, 18, 58)], styles=[Style("#ff0000", width=2)])
    assert image.size == (20, 60)
    assert np.argwhere((np.asarray(image) == (255, 0, 0)).all(-1))[:, 0].min() >= 28


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_thin_pictures(size: tuple[int, int]) -> None:
    box = Box(0, 0, *size)
    styles = ["predicted", "gold", "reference"]
    assert draw(Image.new("RGB", size), [box] * 3, ["a label"] * 3, styles).size == size


def test_odd_boxes_draw_inside_the_picture() -> None:
    boxes = [Box(30, 30, 10, 10), Box(-50, -50, 500, 500), Box(5, 5, 5, 5), Box(200, 200, 300, 300)]
    for name in STYLES:
        drawn = draw(Image.new("RGB", (50, 50)), boxes, ["", "é 🙂 \n x", "y" * 500, "z"], [name] * 4)
        assert drawn.size == (50, 50)


def test_source_is_left_alone() -> None:
    image = Image.new("RGB", (50, 50))
    draw(image, [Box(1, 1, 40, 40)])
    assert colours(image) == {(0, 0, 0)}


def test_reference_is_dashed() -> None:
    def count(style: str) -> int:
        image = draw(Image.new("RGB", (300, 300)), [Box(20, 20, 280, 280)], styles=[style])
        return int((np.asarray(image) == rgb(style)).all(-1).sum())

    assert 0 < count("reference") < 0.75 * count("predicted")


def test_html_keeps_the_resolution_and_escapes() -> None:
    hostile = "</svg><script>document.documentElement.dataset.hacked = 1</script>"
    page = html(Image.new("L", (321, 77), 9), [Box(1, 2, 30, 40)], [hostile], ["gold"], texts=[("answer", hostile)])
    assert "<script" not in page
    assert 'viewBox="0 0 321 77"' in page
    assert 'x="1" y="2" width="29" height="38"' in page
    assert "default-src 'none'" in page
    picture = re.search(r"base64,([^\"]+)", page)
    assert picture
    assert Image.open(io.BytesIO(base64.b64decode(picture.group(1)))).size == (321, 77)


def test_html_opens_in_a_browser(tmp_path: Path, browse) -> None:
    page = tmp_path / "overlay.html"
    page.write_text(html(Image.new("RGB", (80, 60), "teal"), [Box(1, 2, 30, 40)], ["a mark, IoU 0.71"], ["predicted"]))
    dom, console = browse(page)
    assert console == []
    assert "a mark, IoU 0.71" in dom
