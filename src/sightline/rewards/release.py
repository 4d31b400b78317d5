"""The reward terms of the released iVGR code, to the letter, oddities included (arXiv 2605.31096, preset `release`).

Everything works on a `StrictReading` and in model coordinates. The differences from the paper, and from the tolerant
terms of this package, are listed in docs/methods/ivgr.md. The weights are the preset's (`methods/ivgr.py`); how the
judge's replies are read is the judge's (`reading: release`).
"""

from __future__ import annotations

from collections.abc import Sequence

from sightline.answers.judge import JudgeRequest, Verdict
from sightline.answers.match import MAX_ANSWER_CHARACTERS
from sightline.geometry.boxes import iou
from sightline.geometry.frames import Frame
from sightline.language.strict import StrictReading
from sightline.types import Box, Record, Score, Size

__all__ = [
    "release_accuracy",
    "release_answer_request",
    "release_consistency",
    "release_consistency_request",
    "release_dual_iou",
    "release_format",
    "release_gold",
    "release_validity",
]

_DUPLICATE_IOU = 0.9


def release_format(strict: StrictReading) -> Score:
    """1 if the glued text is a think block, anything, an answer block. Empty and repeated blocks pass.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> release_format(strict_read("<think></think> junk <answer></answer>")).value
        1.0
    """
    good = strict.is_formatted
    return Score(float(good), "think block first, answer block last" if good else "not think ... answer")


def release_gold(record: Record, frame: Frame) -> tuple[Box, ...]:
    """Gold boxes in model coordinates, rounded. Of several images the first gives the new size, the last the old one.

    Example:
        >>> from sightline.types import ImageRef, Region
        >>> record = Record(id="a", question="?", answer="x", images=(ImageRef(size=Size(100, 100), digest=""),),
        ...                 regions=(Region(box=Box(10, 10, 51, 51)),))
        >>> release_gold(record, Frame("absolute", 28, 3136, 3211264))
        (Box(x1=11, y1=11, x2=57, y2=57),)
    """
    if not record.images:
        return tuple(Box(*(round(v) for v in r.box)) for r in record.regions)
    first, last = record.images[0].size, record.images[-1].size
    new = frame.resized(first) if frame.convention == "absolute" else Size(1000, 1000)
    across, down = new.width / last.width, new.height / last.height
    return tuple(
        Box(round(b.x1 * across), round(b.y1 * down), round(b.x2 * across), round(b.y2 * down))
        for b in (r.box for r in record.regions)
    )


def release_dual_iou(strict: StrictReading, gold: Sequence[Box | None]) -> Score:
    """Dual IoU of the valid boxes with the gold boxes, model coordinates; in [0, 1].

    No gold boxes or no valid prediction give 0; gold boxes that are all None give 1 if there is any prediction.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> two = strict_read("<box>[1,2,30,40],[50,50,60,60]</box>")
        >>> release_dual_iou(two, [Box(1, 2, 30, 40), Box(50, 50, 60, 60)]).value
        0.75
    """
    predicted = [Box(*b) for b in strict.valid_boxes]
    known = [b for b in gold if b is not None]
    if not gold:
        return Score(0.0, "no gold boxes")
    if not known:
        return Score(float(bool(predicted)), "gold boxes unknown: any prediction counts")
    if not predicted:
        return Score(0.0, "no valid box")
    recall = sum(max(iou(b, p) for p in predicted) for b in known) / len(known)
    precision = sum(max(iou(p, b) for b in known) for p in predicted) / len(predicted)
    value = (recall + precision) / 2
    return Score(value, f"dual IoU {value:.2f}: recall {recall:.2f}, precision {precision:.2f}")


def release_validity(strict: StrictReading, gold: Sequence[Box | None] = (None,)) -> Score:
    """Share of the box tags that hold a valid box; 0 if a box of the first half is repeated anywhere. In [0, 1].

    Duplicates entirely in the second half of the tags escape. Without gold boxes the release gives 0.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> release_validity(strict_read("<box>[1,2,3,4]</box><box>[1, 2,3,4]</box>")).value
        0.5
    """
    if not gold or not strict.tags:
        return Score(0.0, "no gold boxes" if not gold else "no box tag")
    boxes = [Box(*b) for b in strict.boxes]
    for i in range(min(strict.tags // 2, len(boxes))):
        if any(j != i and iou(boxes[i], other) > _DUPLICATE_IOU for j, other in enumerate(boxes)):
            return Score(0.0, "a box of the first half is repeated")
    return Score(strict.valid / strict.tags, f"{strict.valid} of {strict.tags} tags hold a valid box")


def release_answer_request(strict: StrictReading, record: Record) -> JudgeRequest | None:
    """What the release asks its judge about the answer; None where it scores 0 without asking.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> record = Record(id="a", question="Color?", answer="red")
        >>> release_answer_request(strict_read("<answer> Red </answer>"), record).candidate
        'Red'
        >>> release_answer_request(strict_read("red"), record) is None
        True
    """
    if strict.answer is None or len(strict.answer) > MAX_ANSWER_CHARACTERS:
        return None
    return JudgeRequest(
        kind="answer",
        question=record.question,
        reference=record.answer,
        candidate=strict.answer,
        record_id=record.id,
        answer_kind=record.answer_kind,
        options=record.options,
    )


def release_accuracy(strict: StrictReading, verdict: Verdict | None) -> Score:
    """The judge's number, unclamped; 0 without an answer tag or beyond 1,000 characters.

    A failed judge is masked here; the release gives every rollout of the record 0 then, which is the method's to do.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> release_accuracy(strict_read("no tag"), None)
        Score(value=0.0, why='no answer tag', masked=False)
    """
    if strict.answer is None:
        return Score(0.0, "no answer tag")
    if len(strict.answer) > MAX_ANSWER_CHARACTERS:
        return Score(0.0, f"answer longer than {MAX_ANSWER_CHARACTERS} characters")
    if verdict is None or verdict.failed or verdict.value is None:
        return Score(0.0, f"judge failed: {verdict.why if verdict else 'not asked'}", masked=True)
    return Score(verdict.value, verdict.why)


def release_consistency_request(
    strict: StrictReading, record: Record, reference: str | None, frame: Frame | None = None
) -> JudgeRequest | None:
    """What the release asks about the reasoning: glued texts, boxes left in; None without reference or think block.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> record = Record(id="a", question="Color?", answer="red")
        >>> release_consistency_request(strict_read("<think> a / b </think>"), record, "a cup").candidate
        'a/b'
    """
    if reference is None or strict.think is None:
        return None
    return JudgeRequest(
        kind="consistency",
        question=record.question,
        reference=reference,
        candidate=strict.think,
        frame=frame,
        size=record.images[0].size if record.images else None,
        record_id=record.id,
    )


def release_consistency(strict: StrictReading, reference: str | None, verdict: Verdict | None) -> Score:
    """The mean rubric level; 0 without reference, without think block, and where the judge failed.

    Example:
        >>> from sightline.language.strict import strict_read
        >>> release_consistency(strict_read("<think>a</think>"), None, None).why
        'no reference'
    """
    if reference is None:
        return Score(0.0, "no reference")
    if strict.think is None:
        return Score(0.0, "no think block")
    if verdict is None or verdict.failed or verdict.value is None:
        return Score(0.0, f"judge failed: {verdict.why if verdict else 'not asked'}")
    return Score(verdict.value, verdict.why)
