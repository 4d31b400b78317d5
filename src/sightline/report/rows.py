"""Group -> the JSON row that the run page shows: texts, boxes, tokens with their credit, reward terms with a reason."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sightline.geometry.boxes import iou
from sightline.report.measured import image_row, measured_row, target_row
from sightline.rewards.turn_format import action, turns_of
from sightline.types import Credit, Group, Measurement, ReadBox, Reading, Record, Reference, Rollout, Scores, Turn

if TYPE_CHECKING:
    from sightline.geometry.frames import Frame

__all__ = ["DecodePiece", "file_stem", "group_row", "pieces"]

DecodePiece = Callable[[int], "str | bytes"]


def file_stem(digest: str) -> str:
    """The name under which a run folder keeps the thumbnail of an image.

    Example:
        >>> file_stem("0123456789abcdef0123")
        '0123456789abcdef'
        >>> file_stem("../x")
        'x'
    """
    return "".join(c for c in digest if c.isascii() and c.isalnum())[:16] or "none"


def pieces(ids: Sequence[int], decode_piece: DecodePiece) -> list[str]:
    """The text each token adds. A character whose bytes are spread over several tokens stands on the last of them.

    Bytes that are no character, at the end too, are marked by U+FFFD, as in the text of the whole.

    Example:
        >>> pieces([0, 1, 2, 1], [b"a", b"\\xc3", b"\\xa9"].__getitem__)
        ['a', '', 'é', '\ufffd']
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = []
    for token in ids:
        piece = decode_piece(int(token))
        texts.append(decoder.decode(piece) if isinstance(piece, bytes) else piece)
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def group_row(step: int, group: Group, *, decode_piece: DecodePiece | None = None, frame: Frame | None = None) -> dict:
    """One line of `rollouts.jsonl`: a Group as plain data.

    Args:
        step: the step in which the group was sampled.
        group: with measurements, scores and credits, as far as they are there.
        decode_piece: text (or bytes) of one token id; without it the token strip shows ids.
        frame: the coordinate frame of the policy; without it no map of attention is kept.
    """
    name_token = decode_piece or (lambda token: f"{token} ")
    readings = group.readings or tuple(Reading(text=r.text) for r in group.rollouts)
    measurements = group.measurements or (None,) * len(group)
    scores = group.scores or (None,) * len(group)
    credits = group.credits or (None,) * len(group)
    return {
        "step": step,
        "record": _record(group.record),
        "reference": _reference(group.reference),
        "frame": _frame(frame),
        "target": target_row(group.rollouts, group.measurements, frame),
        "rollouts": [
            _rollout(group.record, rollout, reading, measured, scored, credited, name_token)
            | measured_row(rollout, measured, frame)
            for rollout, reading, measured, scored, credited in zip(
                group.rollouts, readings, measurements, scores, credits, strict=True
            )
        ],
    }


def _record(record: Record) -> dict:
    return {
        "id": record.id,
        "question": record.question,
        "answer": record.answer,
        "answer_kind": record.answer_kind,
        "options": list(record.options),
        "regions": [{"box": list(r.box), "label": r.label, "role": r.role, "image": r.image} for r in record.regions],
        "images": [image_row(image) for image in record.images],
        "meta": {key: record.meta[key] for key in ("dataset", "type", "aliases") if key in record.meta},
    }


def _reference(reference: Reference | None) -> dict | None:
    if reference is None:
        return None
    boxes = [list(box) for box in reference.boxes]
    return {"text": reference.text, "boxes": boxes, "step": reference.step, "scores": dict(reference.scores)}


def _frame(frame: Frame | None) -> dict | None:
    if frame is None:
        return None
    return {name: getattr(frame, name, None) for name in ("convention", "factor", "min_pixels", "max_pixels")}


def _rollout(
    record: Record,
    rollout: Rollout,
    reading: Reading,
    measurement: Measurement | None,
    scores: Scores | None,
    credit: Credit | None,
    decode_piece: DecodePiece,
) -> dict[str, Any]:
    think = reading.sections.get("think")
    added = (*rollout.prompt.images[len(record.images) :], *rollout.images)
    return {
        "stream": rollout.stream,
        "branch": list(rollout.branch),
        "forks": list(rollout.forks),
        "text": rollout.text,
        "finish": rollout.finish,
        "think_span": list(think) if think else None,
        "answer": reading.answer,
        "problems": list(reading.problems),
        "boxes": [_box(box, record) for box in reading.boxes],
        "tokens": _tokens(rollout, measurement, credit, decode_piece),
        "turns": _turns(rollout, reading),
        "images": [image_row(image) for image in added],
        "terms": _terms(scores),
        "total": None if scores is None else scores.total,
        "is_masked": scores is not None and scores.is_masked,
        "advantage": _advantage(rollout, credit),
        "parts": {} if credit is None else {name: float(value) for name, value in credit.parts.items()},
    }


def _turns(rollout: Rollout, reading: Reading) -> list[dict]:
    """The turns of a conversation, each with what the policy does in it."""
    said = iter(turns_of(reading))
    actions = ["" if turn.role == "user" else action(next(said, Reading(text=turn.text))) for turn in rollout.turns]
    return [_turn(turn, does) for turn, does in zip(rollout.turns, actions, strict=True)]


def _turn(turn: Turn, does: str) -> dict:
    return {
        "role": turn.role,
        "action": does,
        "span": list(turn.span),
        "text": turn.text,
        "images": list(turn.images),
        "boxes": [[round(float(side), 2) for side in box] for box in turn.boxes],
        "finish": turn.finish,
    }


def _box(box: ReadBox, record: Record) -> dict:
    gold = [region.box for region in record.regions if region.image == box.image]
    best = max((iou(box.box, other) for other in gold), default=None) if box.is_valid else None
    return {
        "box": [round(float(v), 2) for v in box.box],
        "iou": None if best is None else round(float(best), 4),
        "is_valid": box.is_valid,
        "problems": list(box.problems),
        "span": list(box.span),
        "image": box.image,
    }


def _tokens(
    rollout: Rollout, measurement: Measurement | None, credit: Credit | None, decode_piece: DecodePiece
) -> list[dict]:
    texts = pieces([int(i) for i in rollout.ids], decode_piece)
    entropies = None if measurement is None else measurement.entropies
    rows = []
    for i, (text, sampled, logprob) in enumerate(zip(texts, rollout.sampled, rollout.logprobs, strict=True)):
        row = {"text": text, "sampled": bool(sampled), "advantage": None, "logprob": None}
        if credit is not None:
            row["advantage"] = round(float(credit.advantage[i]), 4)
        if sampled:
            row["logprob"] = round(float(logprob), 4)
        if sampled and entropies is not None:
            row["entropy"] = round(float(entropies[i]), 4)
        rows.append(row)
    return rows


def _terms(scores: Scores | None) -> dict[str, dict]:
    if scores is None:
        return {}
    return {
        name: {"value": s.value, "weight": scores.weight(name), "why": s.why, "masked": s.masked}
        for name, s in scores.terms.items()
    }


def _advantage(rollout: Rollout, credit: Credit | None) -> float | None:
    if credit is None:
        return None
    if "advantage" in credit.parts:
        return float(credit.parts["advantage"])
    values = [float(a) for a, sampled in zip(credit.advantage, rollout.sampled, strict=True) if sampled]
    return sum(values) / len(values) if values else 0.0
