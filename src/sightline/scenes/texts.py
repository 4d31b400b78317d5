"""The replies a cold start teaches: one text per Record and format, every claim of which the scene decides.

Formats: `textual`, `grounded`, `direct`, `grit` (boxes as JSON, then a rethink block), `ground_r1` (a box, then a turn
with its crop), `general` (as textual), `crops` (the original and crops are shown; the reply is textual).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sightline.types import Box, Record

__all__ = ["FORMATS", "WriteBox", "reply"]

FORMATS = ("textual", "general", "grounded", "direct", "grit", "ground_r1", "crops")

WriteBox = Callable[[Box], Sequence[int]]
"""From original pixels to the four numbers the model writes."""


def reply(record: Record, style: str, write: WriteBox) -> tuple[str, ...]:
    """The assistant's turns for one Record: two for `ground_r1`, one otherwise.

    Args:
        record: a Record made by `sightline.scenes.questions.ask`.
        style: one of `FORMATS`.
        write: turns a box in original pixels into the numbers of the policy's frame.
    """
    answer = f"<answer>{_spaced(record.answer)}</answer>"
    if style == "direct":
        return (answer,)
    if style in ("textual", "general", "crops"):
        return (f"<think>{_places(record)}{_finding(record)}</think>{answer}",)
    if style == "grounded":
        return (f"<think>{_boxes(record, write)}{_finding(record)}</think>{answer}",)
    if style == "grit":
        thought = f"<think>{_json_boxes(record, write)}</think><rethink>{_places(record)}{_finding(record)}</rethink>"
        return (f"{thought}{answer}",)
    first, *_ = _targets(record)
    numbers = ",".join(str(v) for v in write(Box(*first["box"])))
    turn = f"<think> The {first['color']} {first['shape']}.</think><box>[{numbers}]</box>"
    return (turn, f"<think>{_finding(record) or _places(record)}</think>{answer}")


def _spaced(answer: str) -> str:
    return answer if answer.isdigit() else f" {answer}"


def _targets(record: Record) -> list[dict]:
    return [record.meta["objects"][i] for i in record.meta["targets"]]


def _name(thing: dict) -> str:
    return f" The {thing['color']} {thing['shape']}"


def _places(record: Record) -> str:
    return "".join(f"{_name(t)} is at the {' '.join(t['region'])}." for t in _targets(record))


def _boxes(record: Record, write: WriteBox) -> str:
    boxes = [",".join(str(v) for v in write(Box(*t["box"]))) for t in _targets(record)]
    return "".join(f"{_name(t)}<box>[{b}]</box>." for t, b in zip(_targets(record), boxes, strict=True))


def _json_boxes(record: Record, write: WriteBox) -> str:
    boxes = [",".join(str(v) for v in write(Box(*t["box"]))) for t in _targets(record)]
    if not boxes:
        return " None."
    return "".join(f'{_name(t)} {{"bbox_2d": [{b}]}}.' for t, b in zip(_targets(record), boxes, strict=True))


def _finding(record: Record) -> str:
    kind = record.meta["type"]
    if kind == "mark":
        return f" The mark on it is {record.answer}."
    if kind == "count":
        return f" The count is {record.answer}."
    return ""
