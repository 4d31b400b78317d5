"""What the demo of GRIT stands on: triplets with balanced counts, and the picture of the curve."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest

from curve import Curve, draw_curves
from paired import Pair, held
from sightline.data import read_records
from sightline.evaluate.statistics import Estimate
from triplets import COUNTS, triplets, write_triplets


def test_marks_and_counts_take_turns_and_counts_are_even() -> None:
    found = list(islice(triplets("hard", "train", 0), 16))
    assert [record.meta["type"] for record in found] == ["mark", "count"] * 8
    assert Counter(record.answer for record in found[1::2]) == {str(count): 2 for count in COUNTS}
    assert all(len(record.regions) == int(record.answer) for record in found[1::2])
    assert len({record.images[0].digest for record in found}) == 16


def test_a_smaller_file_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    small = list(read_records(write_triplets(tmp_path / "4", "hard", "train", 1, 4)))
    large = list(read_records(write_triplets(tmp_path / "8", "hard", "train", 1, 8)))
    assert [r.id for r in small] == [r.id for r in large[:4]]
    stamp = (tmp_path / "4" / "records.jsonl").stat().st_mtime_ns
    write_triplets(tmp_path / "4", "hard", "train", 1, 4)
    assert (tmp_path / "4" / "records.jsonl").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("sizes", [(20, 200, 2000), (20,)])
def test_the_curve_is_a_picture(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    curve = Curve("a < b", sizes, [Estimate(0.5, 0.4, 0.6, 9)] * len(sizes), Estimate(0.5, 0.5, 0.5, 9))
    root = ElementTree.parse(draw_curves([curve, curve], tmp_path / "new" / "c.svg", "triplets")).getroot()
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2 * len(sizes)
    assert all(0 < float(c.get("cy", "nan")) < 220 for c in circles)


def test_figures_need_both_of_their_arms() -> None:
    figures = {"gain": Pair("start", "grit", "grit", "accuracy"), "vs": Pair("sft", "grit", "grit", "accuracy")}
    assert list(held(figures, ["grit", "plain"])) == ["gain"]
