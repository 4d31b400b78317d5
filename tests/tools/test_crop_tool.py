"""Crops: where they lie under each policy, and that their pixels are those of the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import UserError
from sightline.geometry.boxes import repair
from sightline.geometry.frames import Frame
from sightline.images import blank, cut_out, fitted, image_ref, open_image
from sightline.language.parse import read
from sightline.tools.crop import CropSettings, CropTool, elsewhere, stand_in
from sightline.types import Box, ImageRef, ReadBox, Size, Span

SIZE = Size(640, 480)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ground_r1_crops.json").read_text())


def found(box: tuple[float, float, float, float], size: Size = SIZE, *problems: str) -> ReadBox:
    """A box as reading would leave it: ordered, clamped, its faults named."""
    mended = repair(Box(*box), size)
    return ReadBox(
        box=mended.box, written=box, span=Span(0, 9), problems=(*problems, *mended.problems), is_valid=mended.is_valid
    )


def tool(policy: str = "lenient", **more) -> CropTool:
    return CropTool(CropSettings(policy=policy, **{"padding": 0.0, **more}))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["case"])
def test_the_release_geometry(case: dict) -> None:
    """The golden vectors, through the reading and the frame of the release."""
    size, written = Size(*case["file"]), case["written"]
    frame = _Resized("absolute", 28, 3136, 401408)
    frame.to_size.update({size: Size(*case["input"])})
    text = f"<think> a </think> <box>[{','.join(map(str, written))}]</box>"
    (box,) = read(text, frame, [size]).boxes
    place = tool("parity", min_side=GOLDEN["min_side"]).place(box, size)
    expected = Box(0, 0, *size) if case["cut"] is None else Box(*case["cut"])
    assert place.box == expected
    assert bool(place.problem) == (case["cut"] is None)


class _Resized(Frame):
    """A frame whose resized images have the sizes that the golden cases give."""

    def __init__(self, *limits) -> None:
        super().__init__(*limits)
        object.__setattr__(self, "to_size", {})

    def resized(self, size: Size) -> Size:
        return self.to_size[size]


def test_ours_lies_inside_where_the_release_does_not() -> None:
    for written, scale in (((0, 0, 4, 4), 640 / 560), ((300, 200, 100, 50), 640 / 560)):
        place = tool("lenient", min_side=28).place(found(tuple(v * scale for v in written)), Size(640, 480))  # type: ignore[arg-type]
        assert place.box is not None
        assert place.box.x1 >= 0
        assert place.box.y1 >= 0
        assert place.box.x2 <= 640
        assert place.box.y2 <= 480
        assert min(place.box.width, place.box.height) >= 28


def test_the_release_pads_with_black(chart: ImageRef) -> None:
    cut = tool("parity").cut(found((0, 0, 4.6, 4.6)), chart)
    assert cut.box == Box(-12, -12, 16, 16)
    assert cut.image is not None
    pixels = np.asarray(open_image(cut.image))
    assert pixels.shape == (28, 28, 3)
    assert (pixels[:12] == 0).all()
    assert (pixels[:, :12] == 0).all()
    assert (pixels[12:, 12:] == np.asarray(open_image(chart))[:16, :16]).all()


def test_the_release_sends_the_full_image_again(chart: ImageRef) -> None:
    assert tool("parity").cut(None, chart).image is chart
    assert tool("parity").cut(None, chart).problem == "no box"


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ((300, 100, 100, 200), "reversed"),
        ((-5, 100, 100, 200), "negative"),
        ((600, 100, 700, 200), "outside"),
        ((100, 100, 100, 200), "empty"),
        ((100, 100, 127, 200), "smaller than 28 px"),
        ((float("nan"), 100, 127, 200), "not a number"),
    ],
)
def test_strict_refuses_what_lenient_repairs(box: tuple[float, float, float, float], problem: str) -> None:
    size = Size(640, 480)
    assert tool("strict").place(found(box), size) == (None, problem)
    mended = tool("lenient", min_side=28).place(found(box), size).box
    assert mended is not None
    assert repair(mended, size).problems == ()
    assert min(mended.width, mended.height) >= 28


def test_strict_cuts_exactly_what_was_asked(chart: ImageRef) -> None:
    cut = tool("strict").cut(found((100, 50, 180, 90)), chart)
    assert (cut.box, cut.problem) == (Box(100, 50, 180, 90), "")
    assert cut.image is not None
    assert (np.asarray(open_image(cut.image)) == np.asarray(open_image(chart))[50:90, 100:180]).all()


def test_too_elongated() -> None:
    size = Size(640, 480)
    thin = found((0, 100, 640, 130))
    assert tool("strict", max_aspect=10).place(thin, size) == (None, "too elongated")
    widened = tool("lenient", max_aspect=10).place(thin, size)
    assert widened.problem == "too elongated"
    assert widened.box is not None
    assert widened.box.width / widened.box.height <= 10
    assert tool("lenient", max_aspect=10).place(found((0, 0, 500, 1), Size(500, 1)), Size(500, 1)).box is None


def test_a_region_of_no_image_is_not_cut() -> None:
    lost = ReadBox(box=Box(0, 0, 50, 50), written=(0, 0, 50, 50), span=Span(0, 9), problems=("no image",), image=3)
    for policy in ("strict", "lenient"):
        assert tool(policy).place(lost, Size(640, 480)) == (None, "no image")
        assert tool(policy).place(None, Size(640, 480)) == (None, "no box")


def test_padding_is_a_share_of_the_box_and_stays_inside() -> None:
    assert tool(padding=0.5, min_side=1).place(found((10, 100, 110, 200)), Size(640, 480)).box == Box(0, 50, 160, 250)


def test_the_pixel_budget(chart: ImageRef) -> None:
    asked = found((100, 100, 140, 120))
    larger = tool(min_pixels=28 * 28 * 4, min_side=1).cut(asked, chart)
    assert larger.image is not None
    assert larger.image.size == Size(80, 40)
    assert larger.box == Box(100, 100, 140, 120)
    smaller = tool(max_pixels=200, min_side=1).cut(asked, chart)
    assert smaller.image is not None
    assert smaller.image.size == Size(20, 10)
    expected = open_image(chart).crop((100, 100, 140, 120)).resize((80, 40), Image.Resampling.BICUBIC)
    assert (np.asarray(open_image(larger.image)) == np.asarray(expected)).all()
    with pytest.raises(ValueError, match="must not exceed"):
        CropSettings(min_pixels=10, max_pixels=5)


def test_crops_come_from_the_file_at_full_resolution(tmp_path: Path, chart: ImageRef) -> None:
    photo = open_image(chart)
    exif = photo.getexif()
    exif[0x0112] = 6  # the file lies on its side
    photo.save(tmp_path / "photo.png", exif=exif)
    upright = image_ref(tmp_path / "photo.png")
    assert upright.size == Size(480, 640)
    cut = tool(min_side=1).cut(found((0, 0, 480, 10), upright.size), upright)
    assert cut.image is not None
    expected = np.rot90(np.asarray(photo), k=-1)[:10]
    assert (np.asarray(open_image(cut.image)) == expected).all()


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    gone = ImageRef(size=Size(640, 480), digest="x", path=str(tmp_path / "gone.png"))
    with pytest.raises(UserError, match="does not exist"):
        tool().cut(found((0, 0, 50, 50)), gone)


def test_controls() -> None:
    place, size = Box(10, 20, 60, 50), Size(640, 480)
    assert stand_in("none", place, size, "k") == place == stand_in("blank-crop", place, size, "k")
    assert stand_in("no-crop", place, size, "k") == Box(0, 0, 640, 480)
    moved = {stand_in("random-crop", place, size, str(key)) for key in range(20)}
    assert len(moved) == 20
    assert all((box.width, box.height) == (50, 30) and repair(box, size).problems == () for box in moved)
    assert elsewhere(place, size, "k") == elsewhere(place, size, "k")
    assert np.unique(np.asarray(open_image(blank(Size(5, 3))))).tolist() == [127]


sides = st.integers(1, 700)
corners = st.floats(-2000, 2000) | st.sampled_from([0.0, 1e9, -1e9, 0.5])


@settings(max_examples=600)
@given(
    st.tuples(corners, corners, corners, corners), st.tuples(sides, sides), st.sampled_from(["strict", "lenient"]),
    st.floats(0, 4), st.integers(1, 90),
)  # fmt: skip
def test_places_lie_inside_whatever_was_written(box, size, policy, padding, min_side) -> None:
    size = Size(*size)
    place = tool(policy, padding=padding, min_side=min_side).place(found(box, size), size)
    if place.box is None:
        assert place.problem
        return
    x1, y1, x2, y2 = place.box
    assert all(side == int(side) for side in place.box)
    assert 0 <= x1 < x2 <= size.width
    assert 0 <= y1 < y2 <= size.height
    assert max(x2 - x1, y2 - y1) <= 200 * min(x2 - x1, y2 - y1)
    if policy == "lenient":
        assert x2 - x1 >= min(min_side, size.width)
        assert y2 - y1 >= min(min_side, size.height)


@settings(max_examples=300)
@given(st.tuples(corners, corners, corners, corners), st.tuples(sides, sides))
def test_the_release_always_has_something_to_cut(box, size) -> None:
    size = Size(*size)
    place = tool("parity").place(found(box, size), size).box
    assert place is not None
    assert place == (0, 0, *size) or min(place.width, place.height) >= 28


@settings(max_examples=300)
@given(st.tuples(sides, sides), st.integers(1, 10**6), st.integers(0, 10**6))
def test_fitted_sizes_keep_the_budget_and_the_shape(size, least, more) -> None:
    size = Size(*size)
    width, height = fitted(size, least, least + more)
    assert width >= 1
    assert height >= 1
    if size.width * size.height < least:
        assert width * height >= least
        assert abs(width - height * size.width / size.height) <= 1 + size.width / size.height
    elif min(width, height) > 1:
        assert width * height <= least + more


def test_cutting_beyond_the_border_is_black() -> None:
    white = image_ref(np.full((4, 4, 3), 255, np.uint8))
    pixels = np.asarray(open_image(cut_out(white, Box(2, 2, 6, 6))))
    assert pixels.shape == (4, 4, 3)
    assert (pixels[:2, :2] == 255).all()
    assert pixels.sum() == 4 * 3 * 255
