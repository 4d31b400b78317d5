"""Before against after: the evaluations of a run, reduced to one row per mode and measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sightline.report.metrics import MEASURES, Measure, measure

__all__ = ["Comparison", "Interval", "compare", "mode_title", "series"]

_PHASES = {"", "before", "during", "after", "start", "end", "final"}
_MODE_TITLES = {"crops": "textual + crops", "crops+union": "textual + crops + union"}


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; `low` and `high` equal the mean where none was computed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One measure in one mode, first and last evaluation of a run; equal if there was only one."""

    mode: str
    split: str
    measure: Measure
    n: int
    before: Interval
    after: Interval
    is_single: bool

    @property
    def title(self) -> str:
        where = f", {self.split}" if self.split else ""
        return f"{self.measure.title}, {mode_title(self.mode)}{where}"

    @property
    def change(self) -> float:
        return self.after.mean - self.before.mean


def mode_title(mode: str) -> str:
    """The name of a mode for people.

    Example:
        >>> mode_title("crops")
        'textual + crops'
    """
    return _MODE_TITLES.get(mode, mode)


def series(evaluations: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Evaluations by (mode, split) in order of steps; a label that names no phase of the run is a split.

    Of two evaluations with the same step and label the later one counts.
    """
    rows: dict[tuple[str, str], dict[tuple[int, str], Mapping[str, Any]]] = {}
    for row in evaluations:
        mode, label = str(row.get("mode", "")), str(row.get("label", ""))
        rows.setdefault((mode, _split(label)), {})[(int(row.get("step", 0)), label)] = row
    return {key: sorted(found.values(), key=lambda row: row.get("step", 0)) for key, found in rows.items()}


def compare(evaluations: Iterable[Mapping[str, Any]]) -> list[Comparison]:
    """First against last evaluation: known measures first, then the run's own; modes in order of appearance."""
    found = []
    for (mode, split), rows in series(evaluations).items():
        first, last = rows[0], rows[-1]
        for name, value in (last.get("metrics") or {}).items():
            after, before = interval(value), interval((first.get("metrics") or {}).get(name))
            if after is None or before is None:
                continue
            n = int(last.get("n") or 0)
            single = len(rows) == 1
            comparison = Comparison(
                mode=mode, split=split, measure=measure(name), n=n, before=before, after=after, is_single=single
            )
            found.append(comparison)
    order = {m.name: i for i, m in enumerate(MEASURES)}
    return sorted(found, key=lambda c: order.get(c.measure.name, len(order)))


def interval(value: Any) -> Interval | None:
    """The interval of one logged measure: a number, or a mapping with mean, low and high; None if it has no mean."""
    if isinstance(value, int | float):
        return Interval(value, value, value)
    if not isinstance(value, Mapping) or value.get("mean") is None:
        return None
    mean = float(value["mean"])
    low, high = value.get("low"), value.get("high")
    return Interval(mean, mean if low is None else float(low), mean if high is None else float(high))


def _split(label: str) -> str:
    return "" if label in _PHASES or label.startswith("step") else label
