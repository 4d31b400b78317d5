"""The replies a cold start teaches: one text per Record and format, every claim of which the scene decides.

Formats: `textual`, `grounded`, `direct`, `grit` (boxes as JSON, then a rethink block), `ground_r1` (a box, then a turn
with its crop), `deepeyes` (the same, with a call of the zoom tool in place of the box), `general` (as textual), `crops`
(the original and crops are shown; the reply is textual).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sightline.scenes.world import VIEW
from sightline.types import Box, Record

__all__ = ["FORMATS", "WriteBox", "reply"]

FORMATS = ("textual", "general", "grounded", "direct", "grit", "ground_r1", "deepeyes", "crops")

WriteBox = Callable[[Box], Sequence[int]]
"""From original pixels to the four numbers the model writes."""


def reply(record: Record, style: str, write: WriteBox) -> tuple[str, ...]:
    """The assistant's turns for one Record: two for `ground_r1` and `deepeyes`, one otherwise.

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
    numbers = ",".join(str(v) for v in write(_in_view(first, record)))
    # the label that a call may carry is left out: the thought names the object, and every token counts
    call = f'<tool_call>{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": [{numbers}]}}}}</tool_call>'
    asked = call if style == "deepeyes" else f"<box>[{numbers}]</box>"
    turn = f"<think> The {first['color']} {first['shape']}.</think>{asked}"
    return (turn, f"<think>{_finding(record) or _places(record)}</think>{answer}")


def _spaced(answer: str) -> str:
    return answer if answer.isdigit() else f" {answer}"


def _targets(record: Record) -> list[dict]:
    return [record.meta["objects"][i] for i in record.meta["targets"]]


def _in_view(thing: dict, record: Record) -> Box:
    """The box moved to whole pixels of the view: the policy knows no other numbers, finer ones would teach it noise."""
    pixel = record.meta["side"] / VIEW
    return Box(*(round(side / pixel) * pixel for side in thing["box"]))


def _name(thing: dict) -> str:
    return f" The {thing['color']} {thing['shape']}"


def _places(record: Record) -> str:
    return "".join(f"{_name(t)} is at the {' '.join(t['region'])}." for t in _targets(record))


def _boxes(record: Record, write: WriteBox) -> str:
    boxes = [",".join(str(v) for v in write(_in_view(t, record))) for t in _targets(record)]
    return "".join(f"{_name(t)}<box>[{b}]</box>." for t, b in zip(_targets(record), boxes, strict=True))


def _json_boxes(record: Record, write: WriteBox) -> str:
    boxes = [",".join(str(v) for v in write(_in_view(t, record))) for t in _targets(record)]
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
