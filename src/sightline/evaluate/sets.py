"""Figures by data set, and the two ways to sum them up: every record alike, or every set alike.

Published tables mix both without saying so; here both are printed. A row's set is its `kind`: the data set its record
names (`meta.dataset`), else the type of its question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.evaluate.metrics import METRICS

if TYPE_CHECKING:
    from sightline.evaluate.runner import EvaluationRow

__all__ = ["SetMeans", "set_means"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMeans:
    """Means of one mode.

    Attributes:
        counts: records of each set.
        sets: metric -> set -> mean over the records of the set that have it.
        weighted: metric -> mean over all records (sample-weighted).
        plain: metric -> mean over sets of their means.
    """

    counts: Mapping[str, int]
    sets: Mapping[str, Mapping[str, float]]
    weighted: Mapping[str, float]
    plain: Mapping[str, float]

    def row(self) -> dict[str, object]:
        """The form in which it stands in JSON files."""
        return {
            "n": dict(self.counts),
            "by_set": {name: dict(means) for name, means in self.sets.items()},
            "sample_weighted": dict(self.weighted),
            "plain": dict(self.plain),
        }


def set_means(rows: Sequence[EvaluationRow], mode: str) -> SetMeans:
    """The means of the rows of one mode; a metric that a set does not have enters neither sum for it.

    Example:
        >>> from sightline.evaluate.runner import EvaluationRow
        >>> said = dict(mode="grit", question="?", reference="1", answer="1", text="")
        >>> rows = [EvaluationRow(record=str(i), kind=k, metrics={"accuracy": v}, **said)
        ...         for i, (k, v) in enumerate([("vsr", 1.0), ("vsr", 1.0), ("vsr", 0.0), ("tallyqa", 0.0)])]
        >>> found = set_means(rows, "grit")
        >>> found.weighted["accuracy"], round(found.plain["accuracy"], 3)
        (0.5, 0.333)
    """
    chosen = [row for row in rows if row.mode == mode]
    names = list(dict.fromkeys(row.kind for row in chosen))
    sets: dict[str, dict[str, float]] = {}
    weighted: dict[str, float] = {}
    for metric in METRICS:
        values = {
            name: [row.metrics[metric] for row in chosen if row.kind == name and metric in row.metrics]
            for name in names
        }
        sets[metric] = {name: _mean(found) for name, found in values.items() if found}
        if sets[metric]:
            weighted[metric] = _mean([value for found in values.values() for value in found])
    return SetMeans(
        counts={name: sum(row.kind == name for row in chosen) for name in names},
        sets={metric: means for metric, means in sets.items() if means},
        weighted=weighted,
        plain={metric: _mean(list(means.values())) for metric, means in sets.items() if means},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
