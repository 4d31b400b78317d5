"""What the page embeds: curves thinned, groups sampled evenly, token columns packed, pictures within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sightline.report.compare import interval, mode_title, series
from sightline.report.environment import json_block
from sightline.report.events import RunFolder
from sightline.report.figures import alarm_kind
from sightline.report.lines import plain
from sightline.report.metrics import measure, sentence
from sightline.report.pictures import data_uri
from sightline.report.rows import file_stem
from sightline.types import StepStats

__all__ = ["curves", "evenly", "pack_group", "page_data"]

MAX_POINTS = 400
MAX_TOKENS = 3000
MAX_TEXT = 12_000
MAX_ALARMS = 200


def page_data(run: RunFolder, *, groups_per_arm: int, budget: int) -> dict[str, Any]:
    """Everything the page's script reads, as strict JSON data of about `budget` bytes at most.

    Texts and numbers may fill six tenths of the budget; where they do not fit, fewer groups are shown, never
    shortened ones. Pictures share what is left.
    """
    arms = run.runs
    count = groups_per_arm
    while True:
        data = plain({"arms": [_arm(arm, count) for arm in arms]})
        size = len(json_block(data).encode("utf-8"))
        if size <= 0.6 * budget or count <= 1:
            break
        count = max(1, count // 2)
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


def pack_group(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `rollouts.jsonl` without paths, its tokens as columns, overlong texts cut."""
    record = dict(row["record"])
    record["images"] = [_image(image) for image in record.get("images") or ()]
    reference = dict(row["reference"]) if row.get("reference") else None
    if reference:
        reference["text"] = _cut(reference.get("text") or "")
    packed = {"step": row["step"], "record": record, "reference": reference}
    return packed | {"rollouts": [_pack_rollout(rollout) for rollout in row.get("rollouts") or ()]}


def _arm(run: RunFolder, count: int) -> dict[str, Any]:
    alarms = _alarms(run.steps)
    shown = _sampled(run.rollouts, count)
    return {
        "name": run.name,
        "curves": curves(run.steps),
        "evaluations": _evaluations(run),
        "alarms": alarms[:MAX_ALARMS],
        "alarm_count": len(alarms),
        "groups": [pack_group(row) for row in shown],
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


def _pack_rollout(rollout: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("stream", "branch", "finish", "answer", "problems", "turns", "terms", "total", "is_masked", "advantage")
    packed = {name: rollout.get(name) for name in kept}
    tokens = rollout.get("tokens") or []
    packed["text"] = _cut(rollout.get("text") or "")
    packed["boxes"] = [box for box in rollout.get("boxes") or () if isinstance(box, dict)][:100]
    packed["images"] = [_image(image) for image in rollout.get("images") or () if isinstance(image, dict)]
    packed["tokens"] = _pack_tokens(tokens[:MAX_TOKENS]) | {"left_out": max(0, len(tokens) - MAX_TOKENS)}
    return packed


def _pack_tokens(tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    advantages = [token.get("advantage") for token in tokens]
    sampled = {a for a, token in zip(advantages, tokens, strict=True) if token.get("sampled", True)}
    return {
        "text": [_cut(token.get("text") or "", 200) for token in tokens],
        "logprob": [None if token.get("logprob") is None else round(token["logprob"], 3) for token in tokens],
        "advantage": sampled.pop() if len(sampled) == 1 else advantages,
        "inserted": [i for i, token in enumerate(tokens) if not token.get("sampled", True)],
    }


def _image(image: Mapping[str, Any]) -> dict[str, Any]:
    return {"key": file_stem(str(image.get("digest"))), "width": image.get("width"), "height": image.get("height")}


def _images(arms: Sequence[RunFolder], data: Sequence[Mapping[str, Any]], budget: float) -> dict[str, str]:
    paths = {}
    for arm, part in zip(arms, data, strict=True):
        for group in part["groups"]:
            for image in [*group["record"]["images"], *(i for r in group["rollouts"] for i in r["images"])]:
                if path := arm.image(image["key"]):
                    paths.setdefault(image["key"], path)
    share = int(max(0.0, budget) * 0.72 / max(1, len(paths)))  # base64 writes three bytes as four characters
    pictures = {key: data_uri(path, share) for key, path in paths.items()}
    return {key: picture for key, picture in pictures.items() if picture}


def _rounded(values: Sequence[float]) -> float | None:
    finite = [v for v in values if math.isfinite(v)]
    return float(f"{sum(finite) / len(finite):.5g}") if finite else None


def _cut(text: str, length: int = MAX_TEXT) -> str:
    return text if len(text) <= length else text[:length] + f" … ({len(text) - length} more characters)"
