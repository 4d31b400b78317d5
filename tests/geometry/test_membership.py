"""Which visual cells belong to regions, against brute force over random boxes and sizes."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.geometry.frames import Frame
from sightline.geometry.grid import membership
from sightline.types import Box, Region, Size

FRAME = Frame("absolute", 16, 16 * 16, 160 * 160)


def random_case(seed: int) -> tuple[Size, list[Region]]:
    rng = np.random.default_rng(seed)
    size = Size(int(rng.integers(17, 150)), int(rng.integers(17, 150)))
    boxes = []
    for _ in range(int(rng.integers(1, 4))):
        x, y = np.sort(rng.uniform(0, size.width, 2)), np.sort(rng.uniform(0, size.height, 2))
        boxes.append(Region(box=Box(float(x[0]), float(y[0]), float(x[1]), float(y[1]))))
    return size, boxes


def brute_force(regions: list[Region], size: Size, fine: int = 32) -> np.ndarray:
    """Share of fine points of each cell that lie in some box."""
    rows, columns = FRAME.cells(size)
    x = (np.arange(columns * fine) + 0.5) / fine / columns * size.width
    y = (np.arange(rows * fine) + 0.5) / fine / rows * size.height
    inside = np.zeros((len(y), len(x)), bool)
    for region in regions:
        x1, y1, x2, y2 = region.box
        inside |= np.outer((y1 < y) & (y < y2), (x1 < x) & (x < x2))
    return inside.reshape(rows, fine, columns, fine).mean((1, 3)).reshape(-1)


@pytest.mark.parametrize("seed", range(40))
def test_coverage_of_a_union_of_boxes(seed: int) -> None:
    size, regions = random_case(seed)
    found = membership(regions, [size], FRAME, "coverage")
    assert np.abs(found - brute_force(regions, size)).max() < 0.1
    assert 0 <= found.min() <= found.max() <= 1
    rows, columns = FRAME.cells(size)
    cell = size.width / columns * size.height / rows
    union = brute_force(regions, size, 128).sum() * cell
    assert found.sum() * cell == pytest.approx(union, rel=0.03, abs=0.05 * cell)


@pytest.mark.parametrize("seed", range(40))
def test_overlap_marks_every_cell_with_a_covered_point(seed: int) -> None:
    size, regions = random_case(seed)
    found = membership(regions, [size], FRAME, "overlap")
    assert set(np.unique(found)) <= {0.0, 1.0}
    assert (found[brute_force(regions, size) > 0] == 1).all()
    assert np.array_equal(found, (membership(regions, [size], FRAME, "coverage") > 0).astype(float))


def test_boxes_that_overlap_are_counted_once() -> None:
    size, box = Size(64, 64), Box(0.0, 0.0, 24.0, 24.0)
    once = membership([Region(box=box)], [size], FRAME, "coverage")
    assert np.array_equal(membership([Region(box=box)] * 3, [size], FRAME, "coverage"), once)
    assert once.sum() == 2.25  # 24 px are one and a half cells of 16


def test_the_inclusive_range_takes_one_cell_more_on_a_border() -> None:
    region, size = [Region(box=Box(16.0, 16.0, 32.0, 32.0))], Size(64, 64)
    assert membership(region, [size], FRAME, "overlap").sum() == 1
    inclusive = membership(region, [size], FRAME, "inclusive_floor").reshape(4, 4)
    assert inclusive.sum() == 4
    assert inclusive[1:3, 1:3].all()


def test_a_box_without_area_owns_the_cell_of_its_centre() -> None:
    found = membership([Region(box=Box(40.0, 20.0, 40.0, 20.0))], [Size(64, 64)], FRAME, "coverage")
    assert np.flatnonzero(found).tolist() == [6]
    outside = membership([Region(box=Box(900.0, 900.0, 901.0, 901.0))], [Size(64, 64)], FRAME)
    assert np.flatnonzero(outside).tolist() == [15]


def test_several_images_stand_one_after_the_other() -> None:
    regions = [Region(box=Box(0.0, 0.0, 16.0, 16.0), image=1), Region(box=Box(32.0, 32.0, 48.0, 48.0), image=0)]
    sizes = [Size(48, 48), Size(32, 64)]
    found = membership(regions, sizes, FRAME)
    assert np.flatnonzero(found).tolist() == [8, 9]
    assert np.flatnonzero(membership(regions, sizes, FRAME, is_first_only=True)).tolist() == [9]
    assert not membership([], sizes, FRAME).any()
    assert len(membership(regions, [], FRAME)) == 0
