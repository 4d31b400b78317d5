"""Region targets: distributions, brute-force coverage, odd sizes, several images, shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.geometry.frames import Frame
from sightline.geometry.targets import region_share, region_target
from sightline.types import Box, Region, Size

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "faithful_mr1.json").read_text())
FRAME = Frame("absolute", 28, 4 * 28**2, 1280 * 28**2)
SHAPES = ("coverage", "binary", "gaussian", "blur")


@pytest.mark.parametrize("case", GOLDEN["resize"])
def test_golden_resize(case: dict) -> None:
    frame = Frame("absolute", 28, 3136, case["max_pixels"])
    resized = frame.resized(Size(*case["size"]))
    assert list(resized) == case["resized"]
    for scale, (new, old) in zip(case.get("scales", []), zip(resized, case["size"], strict=True), strict=False):
        assert new / old == pytest.approx(scale, abs=0.0005)


def pixel_cover(boxes: list[Box], size: Size, rows: int, columns: int) -> np.ndarray:
    """Share of 40 x 40 points of each cell that lie in a box."""
    y, x = ((np.arange(n * 40) + 0.5) / 40 for n in (rows, columns))
    y, x = y * size.height / rows, x * size.width / columns
    inside = np.zeros((len(y), len(x)), bool)
    for box in boxes:
        inside |= ((y > box.y1) & (y < box.y2))[:, None] & ((x > box.x1) & (x < box.x2))[None]
    return inside.reshape(rows, 40, columns, 40).mean((1, 3)).reshape(-1)


def test_coverage_agrees_with_brute_force_on_odd_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = Size(*(int(v) for v in rng.integers(60, 400, 2)))
        corners = rng.uniform(0, 1, (int(rng.integers(1, 4)), 2, 2)) * size
        boxes = [Box(*np.sort(c, axis=0).reshape(-1)) for c in corners]
        rows, columns = FRAME.cells(size)
        wanted = pixel_cover(boxes, size, rows, columns)
        if wanted.sum() < 0.05:
            continue
        target = region_target([Region(box=b) for b in boxes], [size], FRAME, smooth=0.0)
        assert target == pytest.approx(wanted / wanted.sum(), abs=0.06 / wanted.sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_are_distributions_with_a_floor(shape) -> None:
    regions = [Region(box=Box(30, 40, 90, 100)), Region(box=Box(60, 60, 120, 90))]
    target = region_target(regions, [Size(170, 140)], FRAME, shape, smooth=0.05)
    assert target.sum() == pytest.approx(1.0)
    assert target.min() >= 0.05 / len(target) - 1e-12
    inside = region_target(regions, [Size(170, 140)], FRAME, "binary", smooth=0.0) > 0
    assert target[inside].sum() > (0.6 if shape == "blur" else 0.95)


def test_a_gaussian_peaks_at_the_centre_of_the_box() -> None:
    target = region_target([Region(box=Box(0, 0, 280, 280))], [Size(280, 280)], FRAME, "gaussian", smooth=0.0)
    grid = target.reshape(10, 10)
    assert grid[4:6, 4:6].min() > grid[0, 0] * 1.5
    assert grid == pytest.approx(grid.T)


def test_several_images_share_one_distribution() -> None:
    sizes = [Size(56, 56), Size(84, 56)]
    target = region_target([Region(box=Box(0, 0, 28, 28), image=1)], sizes, FRAME, smooth=0.0)
    assert target.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    both = [Region(box=Box(0, 0, 28, 28), image=1), Region(box=Box(28, 28, 56, 56))]
    assert region_target(both, sizes, FRAME, smooth=0.0)[[3, 4]].tolist() == [0.5, 0.5]


def test_a_degenerate_box_takes_the_cell_of_its_centre() -> None:
    target = region_target([Region(box=Box(40, 10, 40, 10))], [Size(56, 56)], FRAME, smooth=0.0)
    assert target.tolist() == [0, 1, 0, 0]


def test_no_region_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs a region"):
        region_target([], [Size(56, 56)], FRAME)


def test_share_of_large_regions() -> None:
    whole = [Region(box=Box(0, 0, 280, 280))]
    assert region_share(whole, [Size(280, 280), Size(280, 280)], FRAME) == pytest.approx(1.0)
    assert region_share([Region(box=Box(0, 0, 140, 280))], [Size(280, 280)], FRAME) == pytest.approx(0.5)
    assert region_share([], [Size(280, 280)], FRAME) == 0.0
