"""What the page embeds: curves thinned, groups sampled evenly, token columns packed, pictures within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.report.colours import ramp_codes
from sightline.report.compare import interval, mode_title, series
from sightline.report.environment import json_block
from sightline.report.events import RunFolder
from sightline.report.faithfulness import dependence_curves
from sightline.report.figures import alarm_kind
from sightline.report.lines import plain
from sightline.report.metrics import measure, sentence
from sightline.report.pack import image_keys, pack_group
from sightline.report.pictures import data_uris
from sightline.types import StepStats

__all__ = ["curves", "evenly", "page_data"]

MAX_POINTS = 400
MAX_ALARMS = 200
FAIR_MAP = 16_384


def page_data(run: RunFolder, *, groups_per_arm: int, budget: int) -> dict[str, Any]:
    """Everything the page's script reads, as strict JSON data of about `budget` bytes at most.

    Texts and numbers may fill six tenths of the budget; where they do not fit, maps of attention lose detail down to
    `FAIR_MAP` values, then fewer groups are shown, never shortened ones. Pictures share what is left.
    """
    arms = run.runs
    count, map_values = groups_per_arm, 4 * FAIR_MAP
    while True:
        data = plain({"arms": [_arm(arm, count, map_values) for arm in arms]})
        size = len(json_block(data).encode("utf-8"))
        if size <= 0.6 * budget or (count <= 1 and not map_values):
            break
        if map_values > FAIR_MAP or count <= 1:
            map_values = map_values // 2 if map_values > 64 else 0
        else:
            count //= 2
    data["ramp"] = ramp_codes()
    data["images"] = _images(arms, data["arms"], budget - size)
    names = {name for arm in data["arms"] for name in arm["curves"]["metrics"]}
    data["sentences"] = {name: sentence(name) for name in sorted(names)}
    return data


def curves(steps: Sequence[StepStats]) -> dict[str, Any]:
    """Metrics and seconds as columns; more than `MAX_POINTS` steps are averaged over equal runs of steps."""
    width = max(1, math.ceil(len(steps) / MAX_POINTS))
    rows = [{**s.metrics, **{f"seconds/{part}": value for part, value in s.seconds.items()}} for s in steps]
    names = dict.fromkeys(name for row in rows for name in row)
    bins = [range(i, min(i + width, len(steps))) for i in range(0, len(steps), width)]
    columns = {name: [_rounded([rows[i].get(name, math.nan) for i in indices]) for indices in bins] for name in names}
    return {"steps": [steps[indices[-1]].step for indices in bins], "width": width, "metrics": columns}


def evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows spread evenly, first and last among them.

    Example:
        >>> evenly([0, 1, 2, 3, 4], 3), evenly([0, 1], 5)
        ([0, 2, 4], [0, 1])
    """
    if len(rows) <= count:
        return list(rows)
    if count == 1:
        return [rows[-1]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _arm(run: RunFolder, count: int, map_values: int) -> dict[str, Any]:
    alarms = _alarms(run.steps)
    shown = _sampled(run.rollouts, count)
    return {
        "name": run.name,
        "curves": curves(run.steps),
        "evaluations": _evaluations(run),
        "dependence": dependence_curves(run),
        "alarms": alarms[:MAX_ALARMS],
        "alarm_count": len(alarms),
        "groups": [pack_group(row, map_values=map_values) for row in shown],
        "group_count": len(run.rollouts),
    }


def _alarms(steps: Sequence[StepStats]) -> list[dict[str, Any]]:
    """One entry per alarm and unbroken run of steps in which it rang."""
    found: list[dict[str, Any]] = []
    ringing: dict[str, dict[str, Any]] = {}
    for stats in steps:
        still = {}
        for text in stats.alarms:
            entry = ringing.get(alarm_kind(text)) or {"step": stats.step, "text": text}
            if entry["step"] == stats.step:
                found.append(entry)
            still[alarm_kind(text)] = entry
            entry["last"] = stats.step
        ringing = still
    return found


def _sampled(rows: Sequence[dict], count: int) -> list[dict]:
    """Whole steps, spread evenly, as long as they fit; single groups where even that is too much."""
    by_step: dict[int, list[dict]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    most = max((len(group) for group in by_step.values()), default=1)
    if len(rows) <= count:
        return list(rows)
    if most >= count:
        return evenly(rows, count)
    chosen = evenly(sorted(by_step), count // most)
    return [row for step in chosen for row in by_step[step]]


def _evaluations(run: RunFolder) -> list[dict[str, Any]]:
    rows = []
    for (mode, split), entries in series(run.evaluations).items():
        names = dict.fromkeys(name for entry in entries for name in entry.get("metrics") or {})
        for name in names:
            points = []
            for entry in entries:
                found = interval((entry.get("metrics") or {}).get(name))
                if found:
                    points.append([entry.get("step", 0), found.mean, found.low, found.high])
            known = measure(name)
            head = {"mode": mode, "split": split, "measure": name, "title": known.title, "is_share": known.is_share}
            head["where"] = mode_title(mode)
            rows.append(head | {"sentence": known.sentence, "n": entries[-1].get("n"), "points": points})
    return rows


def _images(arms: Sequence[RunFolder], data: Sequence[Mapping[str, Any]], budget: float) -> dict[str, str]:
    paths = {}
    for arm, part in zip(arms, data, strict=True):
        for group in part["groups"]:
            for key in image_keys(group):
                if path := arm.image(key):
                    paths.setdefault(key, path)
    return data_uris(paths, int(max(0.0, budget) * 0.72))  # base64 writes three bytes as four characters


def _rounded(values: Sequence[float]) -> float | None:
    finite = [v for v in values if math.isfinite(v)]
    return float(f"{sum(finite) / len(finite):.5g}") if finite else None
