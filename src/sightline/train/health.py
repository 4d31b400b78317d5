"""Is the run well? Metrics of a step from its groups, and alarms from the metrics of the last steps. Pure functions.

The alarms watch the ways in which such runs die quietly: all Rollouts score the same, the policy stops to write boxes,
drifts away, answers nothing, boxes the whole image, or floods its replies with boxes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sightline.credit.group import is_flat
from sightline.geometry.boxes import iou
from sightline.methods.probes import SEGMENTS
from sightline.rewards.guards import is_box_spam, is_empty_answer, is_full_image
from sightline.types import Group, Reading, Rollout

if TYPE_CHECKING:
    from sightline.config import Alarms

__all__ = ["alarms", "group_metrics"]

GROUNDED = ("grounded",)
"""Streams whose replies are expected to write boxes."""


def group_metrics(groups: Sequence[Group], *, grounded: Collection[str] = GROUNDED) -> dict[str, float]:
    """`reward/`, `rollout/`, `credit/` and `probe/` metrics of a step, for every stream, from scored groups.

    A masked term or Rollout counts in no mean. Metrics that nothing defines (boxes without a box, overlap without gold
    regions, entropies without a measurement) are left out instead of being zero. So is the overlap of a stream that
    writes no box, unless it is one of the `grounded` streams: there silence is an overlap of 0.
    """
    metrics: dict[str, float] = {}
    for stream in dict.fromkeys(name for group in groups for name in group.streams):
        parts = [part for part in (group.of(stream) for group in groups) if len(part)]
        found = {**_reward(parts), **_rollouts(parts), **_boxes(parts, stream in grounded), **_credit(parts)}
        found |= _probes(parts)
        metrics |= {key.format(stream): float(value) for key, value in found.items() if value is not None}
    return metrics


def _reward(parts: Sequence[Group]) -> dict[str, float | None]:
    rows = [scores for part in parts for scores in part.scores]
    kept = [[s.total for s in part.scores if not s.is_masked] for part in parts]
    found: dict[str, float | None] = {}
    for term in dict.fromkeys(term for scores in rows for term in scores.terms):
        values = [s.terms[term].value for s in rows if term in s.terms and not s.terms[term].masked]
        found[f"reward/{{}}/{term}"] = _mean(values)
    found["reward/{}/total"] = _mean([total for totals in kept for total in totals])
    found["reward/{}/deviation"] = _mean([float(np.std(totals, ddof=1)) for totals in kept if len(totals) > 1])
    found["reward/{}/masked"] = _mean([s.is_masked for s in rows])
    return found


def _rollouts(parts: Sequence[Group]) -> dict[str, float | None]:
    rollouts = [rollout for part in parts for rollout in part.rollouts]
    readings = [reading for part in parts for reading in part.readings]
    measured = [
        seen.entropies[rollout.sampled]
        for part in parts
        if part.measurements
        for seen, rollout in zip(part.measurements, part.rollouts, strict=True)
        if seen.entropies is not None
    ]
    return {
        "rollout/{}/count": float(len(rollouts)),
        "rollout/{}/tokens": _mean([int(rollout.sampled.sum()) for rollout in rollouts]),
        "rollout/{}/truncated": _mean([rollout.finish == "length" for rollout in rollouts]),
        "rollout/{}/empty_answers": _mean([is_empty_answer(reading) for reading in readings]),
        "rollout/{}/entropy": float(np.concatenate(measured).mean()) if any(map(len, measured)) else None,
    }


def _boxes(parts: Sequence[Group], is_grounded: bool) -> dict[str, float | None]:
    readings = [reading for part in parts for reading in part.readings]
    boxes = [box for reading in readings for box in reading.boxes]
    pairs = [pair for part in parts for pair in zip(part.rollouts, part.readings, strict=True)]
    pointing = pairs if boxes or is_grounded else []
    return {
        "rollout/{}/boxes": _mean([len(reading.boxes) for reading in readings]),
        "rollout/{}/box_rate": _mean([any(box.is_valid for box in reading.boxes) for reading in readings]),
        "rollout/{}/invalid_boxes": _mean([not box.is_valid for box in boxes]),
        "rollout/{}/full_image_boxes": _mean(
            [is_full_image(box, r.prompt.images + r.images) for r, reading in pairs for box in reading.boxes]
        ),
        "rollout/{}/box_spam": _mean([is_box_spam(reading, rollout.record) for rollout, reading in pairs]),
        "rollout/{}/iou": _mean([_best_overlap(r, reading) for r, reading in pointing if r.record.regions]),
    }


def _credit(parts: Sequence[Group]) -> dict[str, float | None]:
    masked = [[s.is_masked for s in part.scores] for part in parts]
    flat = [is_flat([s.total for s in part.scores], mask) for part, mask in zip(parts, masked, strict=True)]
    sizes = [
        np.abs(credit.advantage[rollout.sampled])
        for part in parts
        if part.credits
        for credit, rollout in zip(part.credits, part.rollouts, strict=True)
        if credit.weight.any()
    ]
    return {
        "credit/{}/flat_groups": _mean(flat),
        "credit/{}/masked_groups": _mean([len(mask) - sum(mask) < 2 for mask in masked]),
        "credit/{}/advantage": float(np.concatenate(sizes).mean()) if any(map(len, sizes)) else None,
        **{f"credit/{{}}/{name}": value for name, value in _credit_parts(parts).items()},
    }


def _credit_parts(parts: Sequence[Group]) -> dict[str, float | None]:
    """Mean size of each part of the credit over the Rollouts that have it; the parts of every method aside."""
    found = [credit.parts for part in parts for credit in part.credits]
    names = dict.fromkeys(name for row in found for name in row)
    own = [name for name in names if name not in ("advantage", "baseline", "flat", "masked")]
    return {name: _mean([abs(row[name]) for row in found if name in row]) for name in own}


def _probes(parts: Sequence[Group]) -> dict[str, float | None]:
    """Mean of every probe over the sampled tokens: masses by segment, a contrast as its effect log p - log p'."""
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        for seen, rollout in zip(part.measurements, part.rollouts, strict=bool(part.measurements)):
            for name, values in seen.probes.items():
                own, label = np.asarray(values, np.float64)[rollout.sampled], f"probe/{{}}/{name.replace('/', '_')}"
                if name in seen.images and seen.logprobs is not None:
                    effect = seen.logprobs[rollout.sampled, None] - own.reshape(len(own), -1)
                    found.setdefault(f"{label}_effect", []).append(effect)
                elif own.ndim == 2:
                    for segment, column in zip(SEGMENTS, own.T, strict=True):
                        found.setdefault(f"{label}_{segment}", []).append(column)
                else:
                    found.setdefault(label, []).append(own)
    flat = {label: np.concatenate([np.ravel(v) for v in values]) for label, values in found.items()}
    return {label: _mean(values[np.isfinite(values)].tolist()) for label, values in flat.items()}


def _best_overlap(rollout: Rollout, reading: Reading) -> float:
    pairs = ((box, region) for box in reading.boxes if box.is_valid for region in rollout.record.regions)
    return max((iou(box.box, region.box) for box, region in pairs if box.image == region.image), default=0.0)


def _mean(values: Sequence[float | int]) -> float | None:
    return float(np.mean(values)) if len(values) else None


@dataclass(frozen=True, slots=True)
class _Watch:
    """A limit on a metric: `{}` in `key` stands for every stream."""

    key: str
    limit: float | None
    is_floor: bool
    what: str
    advice: str

    def is_passed(self, value: float) -> bool:
        limit = self.limit
        return limit is not None and not (value >= limit if self.is_floor else value <= limit)


def alarms(
    history: Sequence[Mapping[str, float]], limits: Alarms, *, grounded: Collection[str] = GROUNDED
) -> tuple[str, ...]:
    """One line for each limit that the last `patience` values of a metric have all passed.

    Args:
        history: metrics of the steps so far, oldest first; a step without a metric is skipped for that metric.
        limits: the limits; None switches one off. A value that is not a number has passed its limit.
        grounded: streams whose replies are expected to write boxes.
    """
    if not history:
        return ()
    rung = []
    for watch in _watches(limits):
        head, _, tail = watch.key.partition("{}")
        for key in (k for k in history[-1] if k.startswith(head) and k.endswith(tail) and len(k) >= len(watch.key) - 2):
            stream = key[len(head) : len(key) - len(tail)] if "{}" in watch.key else ""
            if "/" in stream or (watch.what == "box rate" and stream not in grounded):
                continue
            values = [metrics[key] for metrics in history if key in metrics][-limits.patience :]
            if len(values) == limits.patience and all(map(watch.is_passed, values)):
                side = "below" if watch.is_floor else "above"
                name = f"{watch.what} of {stream}" if stream else watch.what
                rung.append(
                    f"{name} {values[-1]:.3g} {side} {watch.limit:g} for {limits.patience} steps: {watch.advice}"
                )
    return tuple(rung)


def _watches(limits: Alarms) -> tuple[_Watch, ...]:
    return (
        _Watch(
            "reward/{}/deviation",
            limits.reward_std_min,
            True,
            "reward deviation",
            "rollouts of a group score alike and teach nothing; raise the temperature or change the data",
        ),
        _Watch(
            "rollout/{}/box_rate",
            limits.box_rate_min,
            True,
            "box rate",
            "replies stopped writing boxes; check the start, the prompt and the weight of the box term",
        ),
        _Watch(
            "reward/{}/masked",
            limits.masked_max,
            False,
            "share of masked rollouts",
            "the judge fails and these rollouts teach nothing; read the reasons in the rollouts and check the judge",
        ),
        _Watch(
            "policy/kl",
            limits.kl_max,
            False,
            "KL to the reference",
            "the policy drifts away; lower optim.lr or raise method.objective.kl",
        ),
        _Watch(
            "rollout/{}/empty_answers",
            limits.empty_answer_max,
            False,
            "share of empty answers",
            "look at the rollouts; check sampling.max_new_tokens and the accuracy term",
        ),
        _Watch(
            "rollout/{}/full_image_boxes",
            limits.full_image_box_max,
            False,
            "share of full-image boxes",
            "boxes point at nothing; check the coordinate frame and the box term",
        ),
        _Watch(
            "rollout/{}/boxes",
            limits.boxes_per_reply_max,
            False,
            "boxes per reply",
            "replies are flooded with boxes; use a box term with precision, not recall alone",
        ),
    )
