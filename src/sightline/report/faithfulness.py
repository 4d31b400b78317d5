"""Do the replies use the evidence: the faithfulness of a run's evaluations, as its page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.evaluate.faithfulness import ATTENTION
from sightline.report.compare import Interval, interval, mode_title, series
from sightline.report.events import RunFolder
from sightline.report.figures import range_text, value_text
from sightline.report.metrics import Measure

__all__ = ["FIGURES", "FaithfulnessTable", "dependence_curves", "faithfulness_tables"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One column: where it stands in a row of evaluations.jsonl, what it is called and what it means."""

    part: str
    name: str
    title: str
    sentence: str


FIGURES = (
    Figure("accuracy", "original", "accuracy", "Accuracy on the images as they are."),
    Figure("drops", "region_mask", "drop, regions filled", "Accuracy lost where the gold regions are filled."),
    Figure("drops", "random_region", "drop, elsewhere", "Accuracy lost where as much is filled elsewhere."),
    Figure(
        "drops", "difference", "difference",
        "Accuracy lost to filling the regions beyond what filling elsewhere costs, paired by record; above zero the "
        "replies need the evidence itself.",
    ),
    Figure("attention", "region_mass", "on the regions", ATTENTION["region_mass"]),
    Figure("attention", "area_share", "their area", ATTENTION["area_share"]),
    Figure("attention", "pointing", "pointing", ATTENTION["pointing"]),
    Figure("attention", "top1_share", "top cell", ATTENTION["top1_share"]),
)  # fmt: skip
_SHARE = Measure("share", "", "", is_share=True)
_DRAWN = ("region_mask", "random_region")


@dataclass(frozen=True, slots=True)
class _Row:
    """One evaluation; `plot` holds the ends of both drops in per cent of the table's range, `zero` among them."""

    arm: int
    name: str
    step: int
    n: int
    cells: Sequence[tuple[str, str]]
    plot: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FaithfulnessTable:
    """All evaluations of one mode that measured faithfulness, arm by arm in order of steps."""

    where: str
    rows: Sequence[_Row]


def faithfulness_tables(arms: Sequence[RunFolder]) -> list[FaithfulnessTable]:
    """One table per mode and split; none where faithfulness was not measured."""
    found: dict[str, list[tuple[int, str, Mapping[str, Any]]]] = {}
    for number, arm in enumerate(arms):
        for where, rows in _measured(arm):
            found.setdefault(where, []).extend((number, arm.name, row) for row in rows)
    drops = [_drop(row, name) for rows in found.values() for _, _, row in rows for name in _DRAWN]
    ends = [0.0, *(end for drop in drops if drop is not None for end in (drop.low, drop.high))]
    pad = 0.06 * (max(ends) - min(ends)) or 0.5
    low, span = min(ends) - pad, max(ends) - min(ends) + 2 * pad
    return [
        FaithfulnessTable(where, [_row(number, name, row, low, span) for number, name, row in rows])
        for where, rows in found.items()
    ]


def dependence_curves(run: RunFolder) -> list[dict[str, Any]]:
    """Per mode and split log p - log p' over the tenths of the reply: first and last evaluation."""
    return [
        {"where": where, "curves": [_curve(row) for row in (rows[:1] if len(rows) < 2 else (rows[0], rows[-1]))]}
        for where, rows in _measured(run)
    ]


def _measured(run: RunFolder) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Evaluations that measured faithfulness, by what they are called."""
    for (mode, split), rows in series(run.evaluations).items():
        own = [row for row in rows if isinstance(row.get("faithfulness"), Mapping)]
        if own:
            yield mode_title(mode) + (f", {split}" if split else ""), own


def _row(number: int, name: str, row: Mapping[str, Any], low: float, span: float) -> _Row:
    cells = [_texts(interval((row["faithfulness"].get(f.part) or {}).get(f.name))) for f in FIGURES]
    plot = {"zero": round(100 * -low / span, 2)}
    for drop in _DRAWN:
        seen = _drop(row, drop)
        if seen is not None:
            ends = {"": seen.mean, "_low": seen.low, "_high": seen.high}
            plot |= {drop + end: round(100 * (value - low) / span, 2) for end, value in ends.items()}
    return _Row(number, name, int(row.get("step", 0)), int(row["faithfulness"].get("n") or 0), cells, plot)


def _texts(found: Interval | None) -> tuple[str, str]:
    return ("–", "") if found is None else (value_text(found.mean, _SHARE), range_text(found, _SHARE))


def _drop(row: Mapping[str, Any], name: str) -> Interval | None:
    return interval((row["faithfulness"].get("drops") or {}).get(name))


def _curve(row: Mapping[str, Any]) -> dict[str, Any]:
    points = [(place, interval(value)) for place, value in enumerate(row["faithfulness"].get("curve") or (), 1)]
    known = [[place, seen.mean, seen.low, seen.high] for place, seen in points if seen is not None]
    return {"step": row.get("step", 0), "points": known}
