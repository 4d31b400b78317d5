"""What is measured about one answered record, and how the values become figures with intervals.

A metric is absent where it says nothing: `iou` without gold regions or in a mode that is not asked for boxes, `region`
without scene truth, `accuracy` where no rule decides and no judge is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sightline.evaluate.statistics import DRAWS, Estimate, mean_intervals

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.sampling.modes import ModeResult

__all__ = ["METRICS", "SHARES", "aggregate", "measure"]

METRICS: dict[str, str] = {
    "accuracy": "Share of answers that match the reference by the rules of their answer kind.",
    "iou": "Dual IoU: mean of the best IoU of each gold box and of each predicted box, halves of equal weight.",
    "iou_recall": "Mean over gold boxes of the best IoU with a predicted box (the mIoU of TreeBench).",
    "iou_union": "IoU of the union of all predicted boxes with the union of all gold boxes.",
    "iou_at_50": "Share of records whose gold boxes are met with a mean best IoU of at least 0.5.",
    "region": "Share of reasonings in words that name the right part of the image, by the truth of the scene.",
    "format": "Share of replies that are one think block followed by one answer block.",
    "box_rate": "Share of replies with at least one valid box.",
    "boxes": "Boxes written per reply.",
    "tokens": "Tokens sampled per record, both passes of a crop mode together.",
    "truncated": "Share of replies cut by the token limit.",
    "unanswered": "Share of replies in which no answer was found.",
}
# Right or wrong per record, so that their means are shares and McNemar's test applies.
SHARES = ("accuracy", "iou_at_50", "region", "format", "box_rate", "truncated", "unanswered")
SCENE_TRUTH = {"objects", "targets", "level", "side"}  # keys of `meta` that a scene fills
_BOX_MODES = ("grounded", "crops", "crops+union")


def measure(result: ModeResult, judge: Judge | None = None) -> dict[str, float]:
    """The metrics of one record in one mode, absent ones left out.

    Args:
        result: what the mode returned for the record.
        judge: asked where no rule decides about the answer; without one such records have no accuracy.
    """
    from sightline.answers.extract import final_answer
    from sightline.rewards.answer import accuracy
    from sightline.rewards.format import think_answer_format

    record, reading = result.record, result.reading
    correct = accuracy(reading, record, judge=judge)
    values = {} if correct.masked else {"accuracy": correct.value}
    if result.mode in _BOX_MODES:
        values |= _overlap(result)
    region = _region(result)
    if region is not None:
        values["region"] = region
    return values | {
        "format": think_answer_format(reading).value,
        "box_rate": float(any(found.is_valid for found in result.boxes)),
        "boxes": float(len(result.boxes)),
        "tokens": float(sum(int(rollout.sampled.sum()) for rollout in result.rollouts)),
        "truncated": float(result.rollouts[-1].finish == "length"),
        "unanswered": float(not final_answer(reading)),
    }


def aggregate(values: Iterable[Mapping[str, float]], *, seed: int = 0, draws: int = DRAWS) -> dict[str, Estimate]:
    """Each metric's mean with its 95 % bootstrap interval over the records that have it, in the order of `METRICS`."""
    rows = list(values)
    columns = {name: [row[name] for row in rows if name in row] for name in METRICS}
    found: dict[str, Estimate] = {}
    for length in {len(column) for column in columns.values() if column}:
        names = [name for name, column in columns.items() if len(column) == length]
        found |= zip(names, mean_intervals([columns[name] for name in names], seed=seed, draws=draws), strict=True)
    return {name: found[name] for name in columns if name in found}


def _overlap(result: ModeResult) -> dict[str, float]:
    """Box metrics of the pass that looks at the original images."""
    from sightline.rewards.boxes import box_iou

    if not result.record.regions:
        return {}
    looked = result.readings[0]
    recall = box_iou(looked, result.record, match="recall").value
    return {
        "iou": box_iou(looked, result.record, match="dual").value,
        "iou_recall": recall,
        "iou_union": box_iou(looked, result.record, match="union").value,
        "iou_at_50": float(recall >= 0.5),
    }


def _region(result: ModeResult) -> float | None:
    """Whether a reasoning in words names the right region; None in the grounded mode and without scene truth."""
    if result.mode == "grounded" or not result.record.meta.keys() >= SCENE_TRUTH:
        return None
    from sightline.scenes.truth import right_region

    reading = result.reading
    named = right_region(reading.text if reading.think is None else reading.think, result.record)
    return None if named is None else float(named)
