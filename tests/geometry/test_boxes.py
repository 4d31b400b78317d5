"""The IoU family: closed forms, properties, and pycocotools as the oracle."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from sightline.geometry.boxes import (
    clamp,
    dual_iou,
    enclosing,
    has_duplicates,
    iou,
    iou_matrix,
    matched_iou,
    precision_iou,
    recall_iou,
    repair,
    union_area,
    union_iou,
)
from sightline.types import Box, Size

coordinate = st.integers(0, 60).map(float) | st.floats(0, 60, width=32)


@st.composite
def any_box(draw: st.DrawFn) -> Box:
    x1, x2 = sorted((draw(coordinate), draw(coordinate)))
    y1, y2 = sorted((draw(coordinate), draw(coordinate)))
    return Box(x1, y1, x2, y2)


box_sets = st.lists(any_box(), max_size=6)
whole_sets = st.lists(
    st.tuples(*[st.integers(0, 12)] * 4).map(
        lambda t: Box(min(t[0], t[2]), min(t[1], t[3]), max(t[0], t[2]), max(t[1], t[3]))
    ),
    max_size=6,
)
MEASURES = (
    dual_iou,
    recall_iou,
    precision_iou,
    union_iou,
    matched_iou,
    lambda a, b: matched_iou(a, b, how="hungarian"),
)


def test_closed_forms() -> None:
    assert iou(Box(0, 0, 2, 2), Box(1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert iou(Box(0, 0, 2, 2), Box(2, 0, 4, 2)) == 0.0
    assert iou(Box(2, 2, 0, 0), Box(0, 0, 2, 2)) == 0.0
    assert iou(Box(1, 1, 1, 1), Box(1, 1, 1, 1)) == 0.0


def test_dual_iou_lets_one_prediction_serve_two_gold_boxes() -> None:
    gold = Box(10, 10, 30, 30)
    assert dual_iou([gold], [gold, gold]) == 1.0
    assert dual_iou([gold], [gold, Box(50, 50, 60, 60)]) == 0.75
    assert recall_iou([gold], [gold, Box(50, 50, 60, 60)]) == 0.5
    assert precision_iou([gold, Box(0, 0, 1, 1)], [gold]) == 0.5


@given(any_box(), any_box())
def test_iou_agrees_with_pycocotools(a: Box, b: Box) -> None:
    x, y = ([[box.x1, box.y1, box.width, box.height]] for box in (a, b))
    if min(a.area, b.area) < 1e-3:
        return
    assert iou(a, b) == pytest.approx(float(np.asarray(coco.iou(x, y, [0]))[0, 0]), abs=1e-9)


@given(whole_sets, whole_sets)
def test_unions_agree_with_painting_pixels(a: list[Box], b: list[Box]) -> None:
    masks = []
    for boxes in (a, b):
        painted = np.zeros((12, 12), dtype=bool)
        for box in boxes:
            painted[int(box.y1) : int(box.y2), int(box.x1) : int(box.x2)] = True
        masks.append(painted)
        assert union_area(boxes) == painted.sum()
    both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert union_iou(a, b) == pytest.approx(both / either if either else 0.0)


@given(any_box(), any_box())
def test_iou_is_symmetric_and_bounded(a: Box, b: Box) -> None:
    value = iou(a, b)
    assert 0.0 <= value <= 1.0
    assert value == iou(b, a)
    assert iou(a, a) == (1.0 if a.area > 0 else 0.0)
    assert iou_matrix([a], [b])[0, 0] == pytest.approx(value, abs=1e-12)


@given(box_sets, box_sets)
def test_set_measures_are_bounded_and_symmetric(a: list[Box], b: list[Box]) -> None:
    for measure in MEASURES:
        assert 0.0 <= measure(a, b) <= 1.0
    for measure in (dual_iou, union_iou, lambda p, g: matched_iou(p, g, how="hungarian")):
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-9)
    assert precision_iou(a, b) == recall_iou(b, a)
    if not a or not b:
        assert all(measure(a, b) == 0.0 for measure in MEASURES)


@given(whole_sets, whole_sets, st.floats(0.1, 50), st.floats(0.1, 50), st.randoms(use_true_random=False))
def test_scale_shift_and_order_do_not_matter(a: list[Box], b: list[Box], sx: float, sy: float, random: object) -> None:
    def moved(boxes: list[Box]) -> list[Box]:
        out = [Box(x1 * sx + 7, y1 * sy - 3, x2 * sx + 7, y2 * sy - 3) for x1, y1, x2, y2 in boxes]
        random.shuffle(out)  # type: ignore[attr-defined]
        return out

    for measure in (dual_iou, recall_iou, precision_iou, union_iou, lambda p, g: matched_iou(p, g, how="hungarian")):
        assert measure(moved(a), moved(b)) == pytest.approx(measure(a, b), abs=1e-6)


@given(st.lists(any_box(), min_size=1, max_size=4), st.lists(any_box(), min_size=1, max_size=4))
def test_hungarian_is_the_best_matching(a: list[Box], b: list[Box]) -> None:
    small, large = sorted((a, b), key=len)
    best = max(sum(iou(x, y) for x, y in zip(small, p, strict=False)) for p in permutations(large, len(small)))
    hungarian = matched_iou(a, b, how="hungarian")
    assert hungarian == pytest.approx(best / len(large), abs=1e-9)
    assert matched_iou(a, b) <= hungarian + 1e-9


def test_greedy_can_be_beaten() -> None:
    predicted = [Box(0, 0, 10, 10), Box(0, 0, 8, 10)]
    gold = [Box(0, 0, 9, 10), Box(0, 0, 16, 10)]
    assert matched_iou(predicted, gold) < matched_iou(predicted, gold, how="hungarian")
    with pytest.raises(ValueError, match="greedy"):
        matched_iou(predicted, gold, how="nearest")  # type: ignore[arg-type]


def test_box_spam_lowers_every_measure_that_counts_precision() -> None:
    gold = [Box(10, 10, 20, 20)]
    spam = [*gold, *(Box(5 * i, 40, 5 * i + 4, 50) for i in range(10))]
    assert recall_iou(spam, gold) == 1.0
    assert dual_iou(spam, gold) < 0.6
    assert matched_iou(spam, gold) < 0.1


@given(box_sets)
def test_union_area_lies_between_the_largest_and_the_sum(boxes: list[Box]) -> None:
    area = union_area(boxes)
    assert max((b.area for b in boxes), default=0.0) <= area + 1e-6
    assert area <= sum(b.area for b in boxes) + 1e-6
    assert union_area([*boxes, *boxes]) == pytest.approx(area)


def test_union_area_ignores_reversed_boxes_and_takes_hundreds() -> None:
    assert union_area([Box(5, 5, 0, 0), Box(0, 0, 2, 2)]) == 4.0
    assert union_area([]) == 0.0
    assert union_area([Box(i, 0, i + 1, 1) for i in range(400)]) == 400.0


def test_enclosing() -> None:
    assert enclosing([Box(1, 2, 3, 4)]) == Box(1, 2, 3, 4)
    with pytest.raises(ValueError, match="values to unpack"):
        enclosing([])


corner = st.floats(-1e12, 1e12) | st.integers(-50, 50).map(float) | st.just(float("nan")) | st.just(float("inf"))


@given(st.tuples(corner, corner, corner, corner), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_repair_always_ends_inside(numbers: tuple[float, float, float, float], sides: tuple[int, int]) -> None:
    size = Size(*sides)
    out = repair(Box(*numbers), size)
    assert 0 <= out.box.x1 <= out.box.x2 <= size.width
    assert 0 <= out.box.y1 <= out.box.y2 <= size.height
    assert out.is_valid == (out.box.area > 0)
    assert bool(out.problems) or Box(*numbers) == out.box
    again = repair(out.box, size)
    assert again.box == out.box
    assert set(again.problems) <= {"empty"}
    if not np.isnan(numbers).any():
        assert clamp(out.box, size) == out.box


def test_repair_names_what_was_wrong() -> None:
    size = Size(20, 10)
    assert repair(Box(1, 1, 5, 5), size).problems == ()
    assert repair(Box(5, 1, 1, 5), size).problems == ("reversed",)
    assert repair(Box(25, 1, 30, 5), size).problems == ("outside", "empty")
    assert repair(Box(-9, 1, -2, 5), size).problems == ("negative", "empty")
    assert repair(Box(float("nan"), 1, 2, 5), size).problems == ("not a number",)


def test_duplicates_are_found_anywhere() -> None:
    boxes = [Box(10 * i, 0, 10 * i + 8, 8) for i in range(5)]
    assert not has_duplicates(boxes)
    assert has_duplicates([*boxes, boxes[-1]])
    assert has_duplicates([boxes[0], *boxes])
    assert not has_duplicates([])
