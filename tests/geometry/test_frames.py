"""The resize rule against the processors' own, and the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from sightline.errors import UserError
from sightline.geometry.boxes import iou
from sightline.geometry.frames import Frame
from sightline.types import Box, Size

QWEN2_5 = Frame("absolute", 28, 3136, 3211264)
QWEN3 = Frame("relative_1000", 32, 65536, 16777216)
EMBEDDED = Frame("relative_1000", 16, 256, 9216)

frames = st.sampled_from(
    [QWEN2_5, QWEN3, EMBEDDED, Frame("absolute", 28, 3136, 200704), Frame("absolute", 1, 0, 10**6)]
)
sizes = (
    st.tuples(st.integers(1, 3000), st.integers(1, 3000))
    .filter(lambda s: max(s) <= 200 * min(s))
    .map(lambda s: Size(*s))
)


@st.composite
def box_in(draw: st.DrawFn, size: Size) -> Box:
    x1, x2 = sorted(draw(st.floats(0, size.width)) for _ in range(2))
    y1, y2 = sorted(draw(st.floats(0, size.height)) for _ in range(2))
    return Box(x1, y1, x2, y2)


@pytest.mark.parametrize(
    ("size", "loaded", "seen"),
    [
        (Size(640, 480), (644, 476), (504, 364)),
        (Size(900, 600), (896, 588), (532, 336)),
        (Size(1920, 1080), (1932, 1092), (588, 336)),
    ],
)
def test_the_two_resizes_of_the_grit_release(size: Size, loaded: tuple[int, int], seen: tuple[int, int]) -> None:
    first = Frame("absolute", 28, 3136, 16384 * 784).resized(size)
    assert first == loaded
    assert Frame("absolute", 28, 3136, 200704).resized(first) == seen


@given(frames, sizes)
def test_resize_agrees_with_the_processors(frame: Frame, size: Size) -> None:
    height, width = smart_resize(size.height, size.width, frame.factor, frame.min_pixels, frame.max_pixels)
    if min(height, width) > 0:
        assert frame.resized(size) == (width, height)


@given(frames, sizes)
def test_resized_sides_are_cells(frame: Frame, size: Size) -> None:
    width, height = frame.resized(size)
    rows, columns = frame.cells(size)
    assert (columns * frame.factor, rows * frame.factor) == (width, height)
    assert frame.tokens(size) == rows * columns >= 1


@given(st.data(), frames, sizes)
def test_there_and_back(data: st.DataObject, frame: Frame, size: Size) -> None:
    box = data.draw(box_in(size))
    there = frame.to_model(box, size)
    extent = frame.extent(size)
    assert 0 <= there.x1 <= there.x2 <= extent.width * (1 + 1e-12)
    assert frame.to_original(there, size) == pytest.approx(box, abs=1e-6)
    assert frame.to_model(frame.to_original(there, size), size) == pytest.approx(there, abs=1e-6)


@given(st.data(), frames, sizes)
def test_what_is_written_lies_within_rounding(data: st.DataObject, frame: Frame, size: Size) -> None:
    box = data.draw(box_in(size))
    extent = frame.extent(size)
    x1, y1, x2, y2 = frame.write(box, size)
    assert all(type(v) is int for v in (x1, y1, x2, y2))
    assert 0 <= x1 < x2 <= extent.width
    assert 0 <= y1 < y2 <= extent.height
    for number, exact in zip((x1, y1, x2, y2), frame.to_model(box, size), strict=True):
        assert abs(number - exact) <= 1.51


@given(frames, sizes)
def test_the_whole_image_maps_to_itself_exactly(frame: Frame, size: Size) -> None:
    whole = Box(0, 0, size.width, size.height)
    extent = frame.extent(size)
    assert frame.to_model(whole, size) == (0, 0, *extent)
    assert frame.to_original(Box(0, 0, *extent), size) == whole
    assert frame.write(whole, size) == (0, 0, *extent)


def test_a_wrong_convention_is_costly() -> None:
    size, box = Size(640, 480), Box(100, 100, 200, 200)
    absolute = Frame("absolute", 28, 3136, 12845056)
    written = absolute.write(box, size)
    relative = Frame("relative_1000", 28, 3136, 12845056)
    assert iou(absolute.to_original(Box(*written), size), box) > 0.95
    assert iou(relative.to_original(Box(*written), size), box) < 0.2


def test_boxes_outside_are_written_inside() -> None:
    assert QWEN3.write(Box(-50, -50, 9999, 9999), Size(640, 480)) == (0, 0, 1000, 1000)
    assert QWEN3.write(Box(9999, 9999, 9999, 9999), Size(640, 480)) == (999, 999, 1000, 1000)
    assert QWEN3.write(Box(320, 240, 0, 0), Size(640, 480)) == (0, 0, 500, 500)


def test_limits_and_guards() -> None:
    assert QWEN2_5.resized(Size(8, 8)) == (56, 56)
    assert QWEN2_5.tokens(Size(8000, 6000)) <= 4096
    with pytest.raises(UserError, match="200 times"):
        QWEN2_5.resized(Size(2010, 10))
    with pytest.raises(UserError, match="empty"):
        QWEN2_5.resized(Size(0, 10))
    with pytest.raises(UserError, match="convention"):
        Frame("norm", 28, 3136, 200704)  # type: ignore[arg-type]
    for factor, low, high in ((0, 1, 9), (28, 9999, 9998), (28, 0, 700)):
        with pytest.raises(UserError, match="do not fit"):
            Frame("absolute", factor, low, high)


def test_describe_names_convention_and_budget() -> None:
    assert "0..1000" in QWEN3.describe()
    assert "resized" in QWEN2_5.describe()
    assert "4096 visual tokens" in QWEN2_5.describe()
    assert "\n" not in QWEN3.describe()
