"""Arms against each other over seeds: train them, read their tables, print paired differences and one JSON line.

A seed trains every arm of a recipe from the same start and evaluates all of them on the same held-out records. Runs are
kept: the same command again resumes what is unfinished and repeats nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from sightline.evaluate.compare import Difference, compare
from sightline.evaluate.runner import EvaluationRow, read_table
from sightline.evaluate.statistics import Estimate, paired_difference

__all__ = ["Pair", "Seed", "build_start", "held", "mean", "pool", "report", "train_seed", "values"]


class Pair(NamedTuple):
    """A figure: arm `after` minus arm `before` (`start` is the common start) in one metric of one mode.

    `after_mode` differs from `mode` where two modes are compared, crops against no crops say. `kind` keeps the records
    of one data set or question type.
    """

    before: str
    after: str
    mode: str
    metric: str
    after_mode: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Seed:
    """The tables of one seed: the common start, and the end of every arm."""

    name: str
    start: list[EvaluationRow]
    ends: dict[str, list[EvaluationRow]]

    @property
    def tables(self) -> dict[str, list[EvaluationRow]]:
        return {"start": self.start, **self.ends}


def build_start(folder: Path, seed: int) -> Path:
    """A policy built from nothing with another seed."""
    if not (folder / "card.json").exists():
        words = ["scenes", "build-policy", "--family", "qwen3_vl", "--seed", str(seed), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "sightline", *words], check=True)
    return folder.resolve()


def train_seed(recipe: Mapping[str, Any], folder: Path, overrides: Sequence[str] = ()) -> Seed:
    """Trains the arms of a recipe in `folder` (kept runs are not repeated) and reads their tables."""
    import yaml

    path = folder.with_name(f"{folder.name}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    words = ["train", str(path), "--out", str(folder), *overrides]
    subprocess.run([sys.executable, "-m", "sightline", *words], check=True)
    arms = list(recipe["arms"])
    tables = {arm: sorted((folder / "arms" / arm / "evaluations").glob("step-*.jsonl")) for arm in arms}
    ends = {arm: read_table(found[-1]) for arm, found in tables.items()}
    return Seed(folder.name, read_table(tables[arms[0]][0]), ends)


def held(figures: Mapping[str, Pair], arms: Sequence[str]) -> dict[str, Pair]:
    """The figures whose two sides were trained."""
    known = {"start", *arms}
    return {name: pair for name, pair in figures.items() if {pair.before, pair.after} <= known}


def report(
    seeds: Sequence[Seed],
    levels: Mapping[str, tuple[str, str]],
    figures: Mapping[str, Pair],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Prints the levels of every arm, the differences per seed and pooled, and all of it as one JSON line.

    Args:
        levels: header of a column -> mode and metric.
        figures: name of a difference -> what it compares; those with an arm that was not trained are left out.
        more: further keys of the JSON object.
    """
    console = Console(width=160)
    console.print(_levels(seeds, levels))
    wanted = held(figures, list(seeds[0].ends))
    found: dict[str, list[float]] = {}
    table = Table("seed", "figure", "difference", "95 % interval", "off zero")
    for seed in seeds:
        for name, pair in wanted.items():
            one = difference(seed, pair)
            e = one.difference
            found.setdefault(name, []).append(round(e.mean, 4))
            off = "yes" if one.is_off_zero else "no"
            table.add_row(seed.name, name, f"{e.mean:+.3f}", f"[{e.low:+.3f}, {e.high:+.3f}]", off)
    console.print(table)
    pooled = {name: pool(seeds, pair) for name, pair in wanted.items()}
    summary = Table("figure", "mean over seeds", "pooled 95 % interval")
    for name, e in pooled.items():
        summary.add_row(name, f"{e.mean:+.3f}", f"[{e.low:+.3f}, {e.high:+.3f}]")
    console.print(summary)
    intervals = {name: [round(x, 4) for x in (e.mean, e.low, e.high)] for name, e in pooled.items()}
    print(json.dumps({**found, "pooled": intervals, **(more or {})}))


def difference(seed: Seed, pair: Pair) -> Difference:
    """One figure of one seed with its paired interval."""
    modes = {pair.mode: pair.after_mode or pair.mode}
    before, after = (_of_kind(seed.tables[arm], pair.kind) for arm in (pair.before, pair.after))
    found = compare(before, after, modes=modes).differences
    return next(iter(found.values()))[pair.metric]


def pool(seeds: Sequence[Seed], pair: Pair) -> Estimate:
    """Mean over seeds, with the paired bootstrap over all records of all seeds."""
    before: list[float] = []
    after: list[float] = []
    for seed in seeds:
        left = values(_of_kind(seed.tables[pair.before], pair.kind), pair.mode, pair.metric)
        right = values(_of_kind(seed.tables[pair.after], pair.kind), pair.after_mode or pair.mode, pair.metric)
        shared = [record for record in left if record in right]
        before += [left[r] for r in shared]
        after += [right[r] for r in shared]
    return paired_difference(before, after)


def values(rows: Sequence[EvaluationRow], mode: str, metric: str) -> dict[str, float]:
    """A metric by record."""
    return {row.record: row.metrics[metric] for row in rows if row.mode == mode and metric in row.metrics}


def mean(rows: Sequence[EvaluationRow], mode: str, metric: str) -> float:
    found = list(values(rows, mode, metric).values())
    return float(np.mean(found)) if found else float("nan")


def _of_kind(rows: Sequence[EvaluationRow], kind: str) -> list[EvaluationRow]:
    return [row for row in rows if not kind or row.kind == kind]


def _levels(seeds: Sequence[Seed], levels: Mapping[str, tuple[str, str]]) -> Table:
    table = Table("seed", "arm", *levels)
    for seed in seeds:
        for arm, rows in seed.tables.items():
            table.add_row(seed.name, arm, *(f"{mean(rows, *shown):.3f}" for shown in levels.values()))
    return table
