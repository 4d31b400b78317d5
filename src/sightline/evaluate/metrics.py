"""What is measured about one answered record, and how the values become figures with intervals.

A metric is absent where it says nothing: `iou` without gold regions or in a mode that is not asked for boxes, `region`
without scene truth, `accuracy` where no rule decides and no judge is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.evaluate.statistics import DRAWS, Estimate, mean_intervals

if TYPE_CHECKING:
    from sightline.answers.judge import Judge
    from sightline.sampling.modes import ModeResult
    from sightline.types import Reading

__all__ = ["METRICS", "SHARES", "aggregate", "measure"]

METRICS: dict[str, str] = {
    "accuracy": "Share of answers that match the reference by the rules of their answer kind.",
    "iou": "Dual IoU: mean of the best IoU of each gold box and of each predicted box, halves of equal weight.",
    "iou_recall": "Mean over gold boxes of the best IoU with a predicted box (the mIoU of TreeBench).",
    "iou_union": "IoU of the union of all predicted boxes with the union of all gold boxes.",
    "counts_match": "Share of counting questions whose reply writes as many boxes as there are things to count.",
    "iou_at_50": "Share of records whose gold boxes are met with a mean best IoU of at least 0.5.",
    "region": "Share of reasonings in words that name the right part of the image, by the truth of the scene.",
    "format": "Share of replies that are one think block followed by one answer block; in a conversation every "
    "turn before the last is one think block followed by a box or tool calls; in the mode grit a rethink block stands "
    "before the answer.",
    "box_rate": "Share of replies with at least one valid box.",
    "box_validity": "Share of the boxes of a reply that lie in the image with a positive area, where it writes any.",
    "correlation": "How often a judge picks the boxes of a reasoning against random ones of the same sizes.",
    "boxes": "Boxes written per reply.",
    "tokens": "Tokens sampled per record, all passes and turns together.",
    "truncated": "Share of replies cut by the token limit.",
    "unanswered": "Share of replies in which no answer was found.",
}
# Right or wrong per record, so that their means are shares and McNemar's test applies.
SHARES = ("accuracy", "counts_match", "iou_at_50", "region", "format", "box_rate", "truncated", "unanswered")
SCENE_TRUTH = {"objects", "targets", "level", "side"}  # keys of `meta` that a scene fills
_BOX_MODES = ("grounded", "crops", "crops+union", "turns", "grit")


def measure(result: ModeResult, judge: Judge | None = None) -> dict[str, float]:
    """The metrics of one record in one mode, absent ones left out.

    Args:
        result: what the mode returned for the record.
        judge: asked where no rule decides about the answer; without one such records have no accuracy.
    """
    from sightline.rewards.answer import accuracy

    # what a turn asks for is not what it answers
    record, reading = result.record, result.reading if result.answer else replace(result.reading, answer="")
    correct = accuracy(reading, record, judge=judge)
    values = {} if correct.masked else {"accuracy": correct.value}
    if result.mode in _BOX_MODES:
        values |= {**_overlap(result), **_counts(result)}
    region = _region(result)
    if region is not None:
        values["region"] = region
    return values | {
        "format": float(_has_form(result.reading, result.mode)),
        "box_rate": float(any(found.is_valid for found in result.boxes)),
        "boxes": float(len(result.boxes)),
        "tokens": float(sum(int(rollout.sampled.sum()) for rollout in result.rollouts)),
        "truncated": float(result.rollouts[-1].finish == "length"),
        "unanswered": float(not result.answer),
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


def _has_form(reading: Reading, mode: str) -> bool:
    """Every turn has its form: the last thinks and answers, those before it think and ask."""
    from sightline.rewards.format import think_answer_format
    from sightline.rewards.grit import grit_format

    if mode == "grit":
        return grit_format(reading).value == 1
    *before, last = reading.turns or (reading,)
    return think_answer_format(last).value == 1 and all(_asks_well(turn) for turn in before)


def _asks_well(turn: Reading) -> bool:
    """One think block with a word in it, then one box or any number of tool calls, and nothing else."""
    from sightline.language.sections import scan

    tags = scan(turn.text, ("think", "answer", "box", "tool_call"))
    thought, boxes, calls = (tags.blocks.get(name, ()) for name in ("think", "box", "tool_call"))
    asked = [block for block in (*boxes, *calls) if thought and block.span.start >= thought[0].span.end]
    if tags.opened("answer") or len(tags.opened("think")) != 1 or not thought or not asked:
        return False
    is_one_kind = len(asked) == 1 or all(block in calls for block in asked)
    rest, end = turn.text[: thought[0].span.start], thought[0].span.end
    for block in sorted(asked):
        rest += turn.text[end : block.span.start]
        end = block.span.end
    has_word = re.search(r"\w", turn.text[slice(*thought[0].content)])
    return is_one_kind and has_word is not None and not (rest + turn.text[end:]).strip()


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


def _counts(result: ModeResult) -> dict[str, float]:
    """Whether as many boxes were written as there are things to count, and how many of them are boxes at all.

    In the mode grit a box that is written again behind the chain counts nothing a second time.
    """
    from sightline.rewards.counting import gold_count
    from sightline.rewards.grit import chain_end

    gold, written, reading = gold_count(result.record), result.boxes, result.readings[0]
    end = chain_end(reading) if result.mode == "grit" else len(reading.text)
    counted = sum(found.span.start < end for found in written)
    return {
        **({} if gold is None else {"counts_match": float(counted == gold)}),
        **({"box_validity": sum(found.is_valid for found in written) / len(written)} if written else {}),
    }


def _region(result: ModeResult) -> float | None:
    """Whether a reasoning in words names the right region; None where boxes say it, and without scene truth.

    In the mode grit the words stand in the rethink block, so the whole reply is looked through.
    """
    if result.mode in ("grounded", "turns") or not result.record.meta.keys() >= SCENE_TRUTH:
        return None
    from sightline.scenes.truth import right_region

    reading = result.reading
    text = reading.text if reading.think is None or result.mode == "grit" else reading.think
    named = right_region(text, result.record)
    return None if named is None else float(named)
