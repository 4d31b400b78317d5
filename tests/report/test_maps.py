"""Maps in rows: what comes back, what is averaged, and where the regions lie on the grid."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sightline.geometry.frames import Frame
from sightline.report.maps import pack_map, region_target, thinned, unpack_map
from sightline.types import Box, Region, Size

FRAME = Frame("relative_1000", 16, 1024, 65536)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.just(6)), elements=st.floats(0, 1, width=32)))
def test_round_trip_is_exact_to_half_a_step(values: np.ndarray) -> None:
    packed = json.loads(json.dumps(pack_map(values, [(2, 3)])))
    assert packed["grid"] == [[2, 3]]
    step = values.max(axis=1, keepdims=True) / 255
    assert (np.abs(unpack_map(packed) - values) <= 0.5 * step + 1e-3 * values.max(axis=1, keepdims=True)).all()


def test_rows_of_zeros_count_in_no_mean() -> None:
    values = np.array([[0.2, 0.4], [0.0, 0.0], [0.6, 0.0], [0.2, 0.2]])
    packed = pack_map(values, [(1, 2)], limit=4)
    assert (packed["rows"], packed["every"]) == (2, 2)
    assert unpack_map(packed) == pytest.approx(np.array([[0.2, 0.4], [0.4, 0.1]]), abs=2e-3)
    again = thinned(packed, 1)
    assert (again["rows"], again["every"]) == (1, 4)
    assert unpack_map(again) == pytest.approx(np.array([[0.3, 0.25]]), abs=4e-3)


def test_a_map_that_fits_is_left_alone() -> None:
    packed = pack_map(np.eye(4), [(2, 2)])
    assert thinned(packed, 16) == packed
    assert len(json.dumps(packed)) < 200


def test_numbers_that_are_not_finite_or_below_zero_are_none() -> None:
    packed = pack_map(np.array([[np.nan, -1.0, 0.5]]), [(1, 3)])
    assert unpack_map(packed).tolist() == [[0.0, 0.0, 0.5]]
    assert unpack_map(pack_map(np.zeros((2, 3)), [(1, 3)])).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("shape", [(2, 5), (6,)])
def test_a_map_of_other_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not fit images of 6 visual tokens"):
        pack_map(np.zeros(shape), [(2, 3)])


def test_target_is_the_covered_area_of_each_cell() -> None:
    sizes = [Size(64, 64), Size(64, 64)]
    regions = [Region(box=Box(0, 0, 24, 16), image=1), Region(box=Box(0, 0, 16, 16), image=1)]
    target = region_target(regions, sizes, FRAME)
    assert target is not None
    assert target[:16].tolist() == [0.0] * 16
    assert target[16:18] == pytest.approx([2 / 3, 1 / 3])
    assert region_target([], sizes, FRAME) is None
