"""Boxes on the grid of visual tokens, against a brute-force count on a fine raster."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.geometry.frames import Frame
from sightline.geometry.grid import coverage, region_name, touched
from sightline.types import Box, Size

FRAME = Frame("relative_1000", 16, 256, 9216)


@st.composite
def placed(draw: st.DrawFn) -> tuple[Box, Size]:
    size = Size(draw(st.integers(5, 300)), draw(st.integers(5, 300)))
    x1, x2 = sorted(draw(st.floats(-10, size.width + 10)) for _ in range(2))
    y1, y2 = sorted(draw(st.floats(-10, size.height + 10)) for _ in range(2))
    return Box(x1, y1, x2, y2), size


@given(placed())
def test_shares_add_up_to_the_area_inside(case: tuple[Box, Size]) -> None:
    box, size = case
    shares = coverage(box, FRAME, size)
    assert shares.shape == FRAME.cells(size)
    assert (shares >= 0).all()
    assert (shares <= 1).all()
    inside = Box(*np.clip(box, 0, [size.width, size.height, size.width, size.height]))
    rows, columns = shares.shape
    cell_area = size.width * size.height / (rows * columns)
    assert shares.sum() * cell_area == pytest.approx(inside.area, rel=1e-6, abs=1e-6)


def test_against_a_fine_raster() -> None:
    size, box = Size(100, 70), Box(13.0, 9.0, 61.0, 44.0)
    rows, columns = FRAME.cells(size)
    fine = np.zeros((rows * 64, columns * 64))
    y, x = (np.arange(n * 64) + 0.5 for n in (rows, columns))
    is_in_x = (x / 64 * size.width / columns > box.x1) & (x / 64 * size.width / columns < box.x2)
    is_in_y = (y / 64 * size.height / rows > box.y1) & (y / 64 * size.height / rows < box.y2)
    fine[np.ix_(is_in_y, is_in_x)] = 1.0
    brute = fine.reshape(rows, 64, columns, 64).mean(axis=(1, 3))
    assert np.abs(coverage(box, FRAME, size) - brute).max() < 0.04


@given(placed(), placed())
def test_touched_is_the_union(first: tuple[Box, Size], second: tuple[Box, Size]) -> None:
    (a, size), (b, _) = first, second
    both = touched([a, b], FRAME, size)
    assert both.shape == (FRAME.tokens(size),)
    assert np.array_equal(both, touched([a], FRAME, size) | touched([b], FRAME, size))
    assert np.array_equal(touched([a], FRAME, size), coverage(a, FRAME, size).reshape(-1) > 0)
    assert not touched([], FRAME, size).any()


def test_the_whole_image_touches_everything() -> None:
    size = Size(123, 77)
    assert (coverage(Box(0, 0, *size), FRAME, size) == 1).all()


@pytest.mark.parametrize(
    ("centre", "name"),
    [
        ((10, 10), ("top", "left")),
        ((150, 10), ("top", "center")),
        ((290, 190), ("bottom", "right")),
        ((150, 100), ("middle", "center")),
        ((290, 100), ("middle", "right")),
        ((10, 190), ("bottom", "left")),
    ],
)
def test_region_names(centre: tuple[int, int], name: tuple[str, str]) -> None:
    x, y = centre
    assert region_name(Box(x - 4, y - 4, x + 4, y + 4), Size(300, 200)) == name
