"""Do the boxes of a reasoning fit its words? Picked by a judge against random boxes (GRIT, arXiv 2505.15879).

A *chain* is a reasoning with its k boxes. Its picture is drawn twice, once with them and once with k random boxes of
the same sizes; the coordinates in the text are masked, the order of the two pictures is drawn, and a judge says which
picture the text is about. The correlation is the share of its picks that fall on the chain's own boxes: 1/2 is chance.
Places and order are drawn anew in every repetition, from (seed, record, repetition) alone.

    chains = chains_of(records, readings)
    correlate(chains, SceneJudge(), seed=0).describe()   # '0.912 +- 0.006 over 3 repetitions, 431 chains'
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sightline.errors import UserError
from sightline.types import Box, ImageRef, Reading, Record, Size

if TYPE_CHECKING:
    from sightline.evaluate.runner import Evaluation, EvaluationRow
    from sightline.geometry.frames import Frame

__all__ = [
    "MASK",
    "Chain",
    "Correlation",
    "Pair",
    "PairJudge",
    "chains_in",
    "chains_of",
    "correlate",
    "masked_text",
    "random_boxes",
    "with_correlation",
]

MASK = "[box]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A reasoning without its coordinates, and its valid boxes on one image, in original pixels."""

    record: Record
    text: str
    boxes: tuple[Box, ...]
    image: ImageRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What a judge sees: the text, and two sets of boxes on one image. Which set is the chain's own it must find."""

    record: Record
    text: str
    image: ImageRef
    boxes: tuple[tuple[Box, ...], tuple[Box, ...]]


class PairJudge(Protocol):
    """Says which of two pictures a text is about."""

    def picks(self, pairs: Sequence[Pair]) -> list[int | None]:
        """0 or 1 for each pair, in order; None where nothing could be had from the judge."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """The share of picks on the own boxes: its mean and standard deviation (n - 1) over repetitions.

    Attributes:
        repetitions: the share in each repetition.
        chains: chains with a valid box, the only ones that can be judged.
        without: replies that have none.
        failed: judgements that could not be had; they count in no share.
        by_record: mean over repetitions, by record id.
    """

    mean: float
    deviation: float
    repetitions: tuple[float, ...]
    chains: int
    without: int = 0
    failed: int = 0
    by_record: Mapping[str, float] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for people."""
        text = f"{self.mean:.3f} +- {self.deviation:.3f} over {len(self.repetitions)} repetitions, {self.chains} chains"
        return text + (f", {self.failed} judgements failed" if self.failed else "")

    def row(self) -> dict[str, Any]:
        """The form in which it stands in JSON files."""
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "repetitions": list(self.repetitions),
            "chains": self.chains,
            "without": self.without,
            "failed": self.failed,
        }


def chains_of(records: Sequence[Record], readings: Sequence[Reading]) -> list[Chain]:
    """The chains of replies that have a valid box; of several images, the one of the first box is taken.

    A box that is written again is drawn once: its random counterparts would show that there are two. Boxes of the
    answer do not belong to the chain.
    """
    found = []
    for record, reading in zip(records, readings, strict=True):
        end = _answer_start(reading)
        valid = [b for b in reading.boxes if b.is_valid and b.image < len(record.images) and b.span.start < end]
        if valid:
            own = tuple(dict.fromkeys(box.box for box in valid if box.image == valid[0].image))
            image = record.images[valid[0].image]
            found.append(Chain(record=record, text=masked_text(reading), boxes=own, image=image))
    return found


def chains_in(rows: Sequence[EvaluationRow], records: Sequence[Record], frame: Frame, mode: str) -> list[Chain]:
    """The chains of an evaluation table: its texts are read again, in the frame of the policy that wrote them."""
    from sightline.language.parse import read

    known = {record.id: record for record in records}
    chosen = [row for row in rows if row.mode == mode and row.record in known]
    pairs = [(known[row.record], row.text) for row in chosen]
    readings = [read(text, frame, [image.size for image in record.images]) for record, text in pairs]
    return chains_of([record for record, _ in pairs], readings)


def masked_text(reading: Reading) -> str:
    """The reasoning up to the answer, every box replaced by `MASK`, tags taken out.

    Example:
        >>> from sightline.geometry.frames import Frame
        >>> from sightline.language.parse import read
        >>> text = "<think> the cup <box>[1,2,3,4]</box> is red </think><answer> red </answer>"
        >>> masked_text(read(text, Frame("relative_1000", 32, 1024, 65536), [Size(64, 64)]))
        'the cup [box] is red'
    """
    end = _answer_start(reading)
    parts, start = [], 0
    for box in reading.boxes:
        if start <= box.span.start and box.span.end <= end:
            parts += [reading.text[start : box.span.start], MASK]
            start = box.span.end
    text = "".join(parts) + reading.text[start:end]
    return " ".join(re.sub(r"</?[A-Za-z_]+>", " ", text).split())


def random_boxes(boxes: Sequence[Box], size: Size, random: np.random.Generator) -> tuple[Box, ...]:
    """One box of the same width and height for each given one, anywhere in the image with equal chance.

    So area and aspect are matched box by box; only the places differ. Boxes are expected inside the image.
    """
    moved = []
    for box in boxes:
        left = float(random.uniform(0, max(size.width - box.width, 0)))
        top = float(random.uniform(0, max(size.height - box.height, 0)))
        moved.append(Box(left, top, left + box.width, top + box.height))
    return tuple(moved)


def correlate(
    chains: Sequence[Chain], judge: PairJudge, *, repetitions: int = 3, seed: int = 0, without: int = 0
) -> Correlation:
    """The cross-modal correlation of chains.

    Args:
        chains: reasonings with their boxes.
        judge: picks a picture for each text.
        repetitions: how often places and order are drawn.
        seed: of the draws; the same seed gives the same pairs whatever other chains there are.
        without: replies without a valid box, for the record.

    Raises:
        UserError: no chain, or nothing could be judged.
    """
    if not chains:
        raise UserError("no reply has a valid box, so there is nothing to correlate")
    shares, failed = [], 0
    hits: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        own_at, pairs = [], []
        for chain in chains:
            random = _random(seed, chain.record.id, repetition)
            other = random_boxes(chain.boxes, chain.image.size, random)
            at = int(random.integers(2))
            boxes = (other, chain.boxes) if at else (chain.boxes, other)
            own_at.append(at)
            pairs.append(Pair(record=chain.record, text=chain.text, image=chain.image, boxes=boxes))
        picks = judge.picks(pairs)
        right = [None if pick is None else float(pick == at) for pick, at in zip(picks, own_at, strict=True)]
        for chain, hit in zip(chains, right, strict=True):
            if hit is not None:
                hits.setdefault(chain.record.id, []).append(hit)
        judged = [hit for hit in right if hit is not None]
        failed += len(right) - len(judged)
        shares += [float(np.mean(judged))] if judged else []
    if not shares:
        raise UserError("the judge gave no reply that names a picture", hint="check its address and model")
    return Correlation(
        mean=float(np.mean(shares)),
        deviation=float(np.std(shares, ddof=1)) if len(shares) > 1 else 0.0,
        repetitions=tuple(shares),
        chains=len(chains),
        without=without,
        failed=failed,
        by_record={record: float(np.mean(values)) for record, values in hits.items()},
    )


def with_correlation(evaluation: Evaluation, found: Mapping[str, Correlation]) -> Evaluation:
    """The evaluation with the metric `correlation` in the rows that were judged, and its mean, mode by mode.

    So tables can be compared record by record in it, as in every other metric.
    """
    from sightline.evaluate.metrics import METRICS
    from sightline.evaluate.statistics import mean_interval

    rows = []
    for row in evaluation.rows:
        value = found[row.mode].by_record.get(row.record) if row.mode in found else None
        rows.append(row if value is None else replace(row, metrics={**row.metrics, "correlation": value}))
    estimates = dict(evaluation.estimates)
    for mode, one in found.items():
        both = {**estimates[mode], "correlation": mean_interval(list(one.by_record.values()))}
        estimates[mode] = {name: both[name] for name in METRICS if name in both}
    return replace(evaluation, rows=tuple(rows), estimates=estimates)


def _answer_start(reading: Reading) -> int:
    at = reading.text.find("<answer>")
    return len(reading.text) if at < 0 else at


def _random(seed: int, record: str, repetition: int) -> np.random.Generator:
    key = hashlib.sha256(f"correlation {seed} {record} {repetition}".encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "big"))
