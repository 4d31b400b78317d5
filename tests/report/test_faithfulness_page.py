"""Faithfulness on the run page: a row per evaluation, both drops on one axis, the dependence over the reply."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sightline.evaluate.faithfulness import ATTENTION, Faithfulness
from sightline.evaluate.statistics import Estimate
from sightline.report.events import RunFolder, RunWriter
from sightline.report.faithfulness import FIGURES, dependence_curves, faithfulness_tables
from sightline.report.page import render_page, write_page


def _estimate(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.05, mean + 0.05, 40)


def _evaluation(step: int, gain: float, mode: str = "textual") -> dict[str, Any]:
    found = Faithfulness(
        mode=mode,
        n=40,
        skipped=2,
        accuracy={name: _estimate(0.5 + gain) for name in ("original", "region_mask", "random_region")},
        drops={
            "region_mask": _estimate(0.2 + gain),
            "random_region": _estimate(-0.1),
            "difference": _estimate(0.3 + gain),
        },
        attention={name: _estimate(0.1 + 0.1 * i) for i, name in enumerate(ATTENTION)},
        curve=(_estimate(0.5), None, _estimate(2.0 + gain)),
    )
    label = "before" if step == 0 else "after"
    metrics = {"accuracy": {"mean": 0.5 + gain, "low": 0.4, "high": 0.7}}
    return {
        "step": step, "label": label, "mode": mode, "n": 42, "metrics": metrics, "faithfulness": found.row(),
    }  # fmt: skip


def _run(folder: Path, rows: list[dict[str, Any]]) -> RunFolder:
    writer = RunWriter(folder)
    writer.manifest({"method": "grpo"})
    for row in rows:
        writer.evaluation(row)
    return RunFolder(folder)


def test_a_row_per_evaluation_in_order_of_steps(tmp_path: Path) -> None:
    plain = {key: value for key, value in _evaluation(10, 0.1).items() if key != "faithfulness"}
    run = _run(tmp_path, [_evaluation(20, 0.2), plain, _evaluation(0, 0.0), _evaluation(0, 0.0, "crops")])
    first, second = faithfulness_tables([run])
    assert [table.where for table in (first, second)] == ["textual", "textual + crops"]
    assert [(row.step, row.n) for row in first.rows] == [(0, 40), (20, 40)]
    cells = dict(zip([figure.title for figure in FIGURES], first.rows[1].cells, strict=True))
    assert cells["drop, regions filled"] == ("40.0", "[35.0, 45.0]")
    assert cells["drop, elsewhere"] == ("-10.0", "[-15.0, -5.0]")
    assert cells["difference"] == ("50.0", "[45.0, 55.0]")
    assert cells["on the regions"] == ("10.0", "[5.0, 15.0]")
    assert cells["pointing"] == ("50.0", "[45.0, 55.0]")


def test_both_drops_share_an_axis_with_zero(tmp_path: Path) -> None:
    run = _run(tmp_path, [_evaluation(0, 0.0), _evaluation(20, 0.2)])
    before, after = faithfulness_tables([run])[0].rows
    assert before.plot["zero"] == after.plot["zero"]
    scale = (after.plot["region_mask"] - after.plot["zero"]) / 0.4
    assert before.plot["random_region"] == pytest.approx(before.plot["zero"] - 0.1 * scale, abs=0.02)
    assert before.plot["region_mask"] == pytest.approx(before.plot["zero"] + 0.2 * scale, abs=0.02)
    assert all(0 < value < 100 for row in (before, after) for value in row.plot.values())


def test_curves_are_of_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    run = _run(tmp_path, [_evaluation(step, step / 100) for step in (0, 10, 20)])
    (found,) = dependence_curves(run)
    assert [curve["step"] for curve in found["curves"]] == [0, 20]
    assert found["curves"][1]["points"] == [[1, 0.5, 0.45, 0.55], [3, 2.2, pytest.approx(2.15), 2.25]]


def test_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    row = _evaluation(0, 0.0)
    row["faithfulness"] = {"n": 3, "drops": {"region_mask": None}}
    (table,) = faithfulness_tables([_run(tmp_path, [row])])
    assert set(table.rows[0].cells) == {("–", "")}
    assert set(table.rows[0].plot) == {"zero"}
    assert 'id="faithfulness"' in render_page(RunFolder(tmp_path))


def test_without_it_there_is_no_section(demo: Path) -> None:
    assert faithfulness_tables(RunFolder(demo).runs) == []
    assert 'id="faithfulness"' not in render_page(RunFolder(demo))


def test_browser_draws_the_curves_of_arms(tmp_path: Path, browse) -> None:
    for name, gain in (("ours", 0.2), ("theirs", 0.1)):
        _run(tmp_path / "arms" / name, [_evaluation(0, 0.0), _evaluation(20, gain)])
    (tmp_path / "run.json").write_text(json.dumps({"method": "both", "arms": ["ours", "theirs"]}))
    dom, console = browse(write_page(tmp_path))
    assert console == []
    assert 'data-ready=""' in dom
    assert "theirs, 20 " in dom
    section = dom[dom.index('id="faithfulness"') : dom.index('id="rollouts"')]
    assert section.count('class="interval after"') == 4
    chart = section[section.index('id="dependence"') :]
    assert "Image dependence, textual" in chart
    assert len(re.findall(r'<path class="line" d="M', chart)) == 2
