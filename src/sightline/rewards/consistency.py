"""Does reasoning in words agree with reasoning that pointed? (iVGR, arXiv 2605.31096: R_consistency)"""

from __future__ import annotations

from collections.abc import Sequence

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.geometry.frames import Frame
from sightline.types import Reading, Record, Reference, Score

__all__ = ["consistency", "consistency_requests"]


def consistency_requests(
    readings: Sequence[Reading], record: Record, reference: Reference | None, frame: Frame | None = None
) -> list[JudgeRequest | None]:
    """What to ask a judge about each reply; None where there is nothing to ask (no reference, no think block).

    Args:
        readings: replies of the textual stream.
        record: their record; its first image gives the size that boxes refer to.
        reference: reasoning of the best grounded rollout, boxes as the model wrote them.
        frame: the coordinate frame of the model.

    Example:
        >>> record = Record(id="a", question="Color?", answer="red")
        >>> reference = Reference(key="k", text="a red cup", boxes=(), rank=(1.0,))
        >>> [r and r.candidate for r in consistency_requests([Reading(text="", think="a cup"), Reading(text="")],
        ...                                                  record, reference)]
        ['a cup', None]
    """
    if reference is None:
        return [None] * len(readings)
    size = record.images[0].size if record.images else None
    return [
        None
        if reading.think is None or not reading.think.strip()
        else JudgeRequest(
            kind="consistency",
            question=record.question,
            reference=reference.text,
            candidate=reading.think,
            frame=frame,
            size=size,
            record_id=record.id,
        )
        for reading in readings
    ]


def consistency(verdicts: Sequence[Verdict | None], reference: Reference | None) -> list[Score]:
    """Verdicts as scores in [0, 1]: 0 without reference or reasoning, masked where the judge failed.

    Args:
        verdicts: one per reply, None where nothing was asked (see `consistency_requests`).
        reference: what the verdicts compare with; None makes every score 0.

    Example:
        >>> reference = Reference(key="k", text="a red cup", boxes=(), rank=(1.0,), step=3)
        >>> consistency([Verdict(value=0.7, why="missing: place"), None], reference)
        [Score(value=0.7, why='missing: place', masked=False), Score(value=0.0, why='no reasoning', masked=False)]
    """
    if reference is None:
        return [Score(0.0, "no reference yet")] * len(verdicts)
    return [_score(verdict) for verdict in verdicts]


def _score(verdict: Verdict | None) -> Score:
    if verdict is None:
        return Score(0.0, "no reasoning")
    if verdict.failed or verdict.value is None:
        return Score(0.0, f"judge failed: {verdict.why}", masked=True)
    return Score(verdict.value, verdict.why)
