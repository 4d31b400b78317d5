"""The run page: one HTML file that needs no network and runs nothing that a model wrote.

Texts reach the page either through jinja2 with autoescape or as JSON that the script puts in place as text. The
content security policy admits exactly this page's own style and script, by their hashes, and pictures in the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.report.compare import Comparison, compare, mode_title
from sightline.report.environment import digest, environment, json_block, source
from sightline.report.events import RunFolder
from sightline.report.faithfulness import FIGURES, faithfulness_tables
from sightline.report.figures import change_text, range_text, value_text
from sightline.report.page_data import page_data

__all__ = ["render_page", "write_page"]

SCRIPTS = (
    "dom.js", "plot.js", "curves.js", "heat.js", "picture.js", "evidence.js", "tokens.js", "turns.js", "credit.js",
    "rollouts.js", "metrics.js", "faithfulness.js", "main.js",
)  # fmt: skip
STYLES = ("page.css", "rollouts.css", "turns.css", "evidence.css", "faithfulness.css")
HEADLINES = ("accuracy", "iou", "region")


def write_page(
    run: RunFolder | str | Path, path: str | Path | None = None, *, groups_per_arm: int = 60, budget: int = 5_500_000
) -> Path:
    """Write the page of a run, by default as `report.html` in its folder, and return its path.

    Args:
        run: a run folder, with or without arms.
        path: where to write.
        groups_per_arm: more logged groups than this are thinned evenly over the steps.
        budget: bytes of data and pictures, about; fewer groups and smaller pictures keep to it.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    target = Path(path) if path else folder.path / "report.html"
    draft = target.with_name(target.name + ".draft")
    page = render_page(folder, groups_per_arm=groups_per_arm, budget=budget)
    draft.write_text(page, encoding="utf-8", errors="replace")
    os.replace(draft, target)
    return target


def render_page(run: RunFolder, *, groups_per_arm: int = 60, budget: int = 5_500_000) -> str:
    """The page of a run as text; see `write_page`."""
    style, script = source(*STYLES), source(*SCRIPTS)
    data = page_data(run, groups_per_arm=groups_per_arm, budget=budget)
    header = _header(run)
    template = environment().get_template("page.html.jinja")
    return template.render(
        header=header,
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        table=_table({arm.name: compare(arm.evaluations) for arm in run.runs}),
        arms=[arm.name for arm in run.runs],
        faithfulness=faithfulness_tables(run.runs),
        figures=FIGURES,
        data=json_block(data),
    )


def _header(run: RunFolder) -> dict[str, Any]:
    """The line of facts under the title; what differs between arms is listed once per arm value."""
    manifests = [run.manifest, *(arm.manifest for arm in run.arms)]
    methods = dict.fromkeys(str(arm.manifest.get("method") or arm.name) for arm in run.arms)
    title = run.manifest.get("method") or " and ".join(methods)

    def values(key: str) -> str:
        return ", ".join(dict.fromkeys(str(m[key]) for m in manifests if m.get(key) not in (None, "", [], {})))

    facts = [("model", values("model")), ("seed", values("seed")), ("frame", values("frame"))]
    steps = max((stats.step + 1 for arm in run.runs for stats in arm.steps[-1:]), default=0)
    facts += [
        ("steps", str(steps) if steps else ""),
        ("started", values("started").split(",")[0][:16].replace("T", " ")),
    ]
    return {
        "title": str(title or run.name),
        "lead": str(run.manifest.get("recipe") or ""),
        "facts": [(k, v) for k, v in facts if v],
    }


@dataclass(frozen=True, slots=True)
class _Cell:
    """One arm's line of one measure; plot coordinates are per cent of the measure's own range."""

    arm: int
    name: str
    n: int
    before: str
    before_range: str
    after: str
    after_range: str
    change: str
    trend: str
    plot: Mapping[str, float]
    is_single: bool


def _table(rows: Mapping[str, Sequence[Comparison]]) -> list[dict[str, Any]]:
    """Measures, each with a line per arm, headline measures first."""
    by_title: dict[str, list[tuple[int, str, Comparison]]] = {}
    for number, (arm, comparisons) in enumerate(rows.items()):
        for comparison in comparisons:
            by_title.setdefault(comparison.title, []).append((number, arm, comparison))
    has_grounded = any(c.measure.name == "iou" and c.mode == "grounded" for found in rows.values() for c in found)
    table = [_measure_row(entries, has_grounded=has_grounded) for entries in by_title.values()]
    return sorted(table, key=lambda row: not row["is_headline"])


def _measure_row(entries: Sequence[tuple[int, str, Comparison]], *, has_grounded: bool) -> dict[str, Any]:
    comparisons = [comparison for _, _, comparison in entries]
    first = comparisons[0]
    ends = [end for c in comparisons for i in (c.before, c.after) for end in (i.low, i.high)]
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
    low, span = low - pad, high - low + 2 * pad
    where = mode_title(first.mode) + (f", {first.split}" if first.split else "")
    is_silent = all(c.before.mean == c.after.mean == 0 for c in comparisons)
    is_repeated = first.measure.name == "iou" and has_grounded and first.mode != "grounded"  # crops: the same boxes
    return {
        "title": first.measure.title,
        "where": where,
        "unit": "%" if first.measure.is_share else "",
        "sentence": first.measure.sentence,
        "is_headline": first.measure.name in HEADLINES and not is_silent and not is_repeated,
        "cells": [_cell(number, arm, c, low, span) for number, arm, c in entries],
    }


def _cell(number: int, arm: str, comparison: Comparison, low: float, span: float) -> _Cell:
    before, after, known = comparison.before, comparison.after, comparison.measure
    ends = {"before": before.mean, "before_low": before.low, "before_high": before.high}
    ends |= {"after": after.mean, "after_low": after.low, "after_high": after.high}
    is_clear = after.low > before.high or after.high < before.low
    return _Cell(
        arm=number,
        name=arm,
        n=comparison.n,
        before="" if comparison.is_single else value_text(before.mean, known),
        before_range="" if comparison.is_single else range_text(before, known),
        after=value_text(after.mean, known),
        after_range=range_text(after, known),
        change="" if comparison.is_single else change_text(comparison.change, known),
        trend=("up" if comparison.change > 0 else "down") if is_clear else "flat",
        plot={name: round(100 * (value - low) / span, 2) for name, value in ends.items()},
        is_single=comparison.is_single,
    )
