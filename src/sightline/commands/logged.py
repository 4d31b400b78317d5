"""Logged rollouts, read back as groups: flat rows, one per rollout, or the `rollouts.jsonl` of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.jsonl import read_rows
from sightline.types import AnswerKind, Box, Group, ImageRef, Prompt, Record, Region, Rollout, Size, Span, Turn

__all__ = ["LoggedGroup", "LoggedRow", "read_groups"]

Quad = tuple[float, float, float, float]


class LoggedTurn(BaseModel):
    """One turn of a logged conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["assistant", "user"]
    action: str = ""
    """What a run's page says it does; the text decides."""
    text: str = ""
    images: tuple[int, ...] = ()
    """The images it added."""
    boxes: tuple[Quad, ...] = ()
    """Where they were cut out, pixels of the first image."""
    span: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    """Its tokens; those of the user count in no length."""
    finish: Literal["stop", "length"] = "stop"


class LoggedRow(BaseModel):
    """One logged rollout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: str | int
    """Id of the record; consecutive rows with the same id and step form a group."""
    question: str = ""
    answer: str | int | float = ""
    """The reference answer."""
    answer_kind: AnswerKind = "text"
    options: tuple[str, ...] = ()
    stream: str
    """The stream that sampled it, e.g. grounded or textual."""
    step: int = Field(default=0, ge=0)
    text: str
    """The reply, as it was written; of a conversation, all replies."""
    turns: tuple[LoggedTurn, ...] = ()
    """A conversation, turn by turn; default: `text` is a single reply."""
    branch: tuple[int, ...] = ()
    """Place in the sampling tree; default: by order."""
    finish: Literal["stop", "length"] = "stop"
    sizes: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = ()
    """Width and height of each image, before any resize."""
    boxes: tuple[Quad | None, ...] = ()
    """Gold boxes of the first image, pixels of the original; null entries are dropped."""
    frame: dict[str, Any] | None = None
    """Fields of a Frame; default the one the command names."""
    tokens: int = Field(default=1, ge=1)
    """Length of the reply in tokens, where credit depends on it."""
    pieces: tuple[str, ...] = ()
    """What each token adds to the reply, where a reward looks for repeated tokens; default: no token repeats."""
    meta: dict[str, Any] = Field(default_factory=dict)
    """What rewards go by row by row: `dataset`, `type`, `aliases` of the record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedGroup:
    """The rollouts of one record at one step, read in the frame they were written in."""

    group: Group
    frame: Frame
    step: int


def read_groups(path: Path, frame: Frame, *, limit: int | None = None) -> Iterator[LoggedGroup]:
    """The groups of a file, in its order.

    Args:
        path: JSONL.
        frame: for rows without a frame of their own.
        limit: only the first so many groups.

    Raises:
        UserError: names file and line of the first bad row.
    """
    rows = _rows(path)
    groups = groupby(rows, key=lambda entry: (str(entry[1].record), entry[1].step))
    for number, ((_, step), entries) in enumerate(groups):
        if limit is not None and number >= limit:
            return
        members = list(entries)
        where = f"{path}:{members[0][0]}"
        own = members[0][1].frame
        spoken = frame if own is None else _frame(own, where)
        yield LoggedGroup(group=_group([row for _, row in members], spoken), frame=spoken, step=step)


def _rows(path: Path) -> Iterator[tuple[int, LoggedRow]]:
    for number, values in read_rows(path):
        where = f"{path}:{number}"
        try:
            for row in _flat(values) if "rollouts" in values else [values]:
                yield number, LoggedRow.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{first['msg'][0].lower()}{first['msg'][1:]}", where=f"{where}: {key}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a logged group: {error!r}", where=where) from error


def _flat(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line of a run's `rollouts.jsonl` as flat rows."""
    record = values["record"]
    for rollout in values["rollouts"]:
        yield {
            "record": record["id"],
            "question": record["question"],
            "answer": record["answer"],
            "answer_kind": record["answer_kind"],
            "options": record.get("options") or (),
            "stream": rollout["stream"],
            "step": values["step"],
            "text": rollout["text"],
            "turns": rollout.get("turns") or (),
            "branch": rollout.get("branch") or (),
            "finish": rollout["finish"],
            "sizes": [(image["width"], image["height"]) for image in record["images"]],
            "boxes": [region["box"] for region in record["regions"] if not region.get("image")],
            "frame": values.get("frame"),
            "tokens": max(1, len(rollout.get("tokens") or ())),
            "pieces": [token["text"] for token in rollout.get("tokens") or ()],
            "meta": record.get("meta") or {},
        }


def _frame(values: dict[str, Any], where: str) -> Frame:
    try:
        return Frame(**values)
    except (TypeError, UserError) as error:
        raise UserError(f"not a frame: {error}", where=f"{where}: frame") from error


def _group(rows: Sequence[LoggedRow], frame: Frame) -> Group:
    from sightline.language.parse import read_turns

    first = rows[0]
    sizes = [Size(*size) for size in first.sizes]
    record = Record(
        id=str(first.record),
        question=first.question,
        answer=str(first.answer),
        answer_kind=first.answer_kind,
        options=first.options,
        meta=first.meta,
        images=tuple(ImageRef(size=size, digest=f"{first.record}/{i}") for i, size in enumerate(sizes)),
        regions=tuple(Region(box=Box(*box)) for box in first.boxes if box is not None),
    )
    branches: Counter[str] = Counter()
    rollouts = []
    for row in rows:
        rollouts.append(_rollout(row, record, branches[row.stream]))
        branches[row.stream] += 1
    readings = tuple(read_turns(_replies(row), frame, sizes, finish=row.finish) for row in rows)
    return Group(record=record, rollouts=tuple(rollouts), readings=readings)


def _replies(row: LoggedRow) -> list[str]:
    """What the policy said, turn by turn."""
    said = [turn.text for turn in row.turns if turn.role == "assistant"]
    return said if len(said) > 1 else [row.text]


def _turn(turn: LoggedTurn) -> Turn:
    boxes = tuple(Box(*box) for box in turn.boxes)
    return Turn(
        role=turn.role, span=Span(*turn.span), text=turn.text, images=turn.images, boxes=boxes, finish=turn.finish
    )


def _rollout(row: LoggedRow, record: Record, branch: int) -> Rollout:
    """The rollout as far as a log tells: its log-probs are not in it, and equal pieces stand for equal ids."""
    prompt = Prompt(record=record, stream=row.stream, messages=(), images=record.images)
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(row.pieces))}
    ids = [numbers[piece] for piece in row.pieces] if row.pieces else range(row.tokens)
    sampled = np.ones(len(ids), dtype=bool)
    for turn in row.turns:
        if turn.role == "user":
            sampled[slice(*turn.span)] = False
    return Rollout(
        prompt=prompt,
        branch=row.branch or (branch,),
        prompt_ids=np.zeros(0, dtype=np.int64),
        ids=np.array(ids, dtype=np.int64),
        sampled=sampled,
        logprobs=np.zeros(len(ids), dtype=np.float32),
        text=row.text,
        finish=row.finish,
        turns=tuple(_turn(turn) for turn in row.turns),
    )
