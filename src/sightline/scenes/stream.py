"""Scenes as an endless, randomly accessible sequence of Records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sightline.errors import UserError
from sightline.scenes.questions import TYPES, QuestionType, ask
from sightline.scenes.world import Split, level_of, scene_at
from sightline.types import Record

__all__ = ["record_at", "stream"]


def record_at(level: str, split: Split, seed: int, index: int, types: Sequence[str] | None = None) -> Record:
    """Record number `index`, without making those before it; question types take turns.

    Args:
        level: `easy`, `hard` or `zoom`; with `-gradient` behind it, the background tells positions in colour.
        split: `train`, `validation` or `test`; no two share a scene.
        seed: which sequence.
        index: place in it, from 0.
        types: question types, `mark` alone by default.

    Example:
        >>> record_at("easy", "test", 0, 3).question
        'What color is the mark on the purple triangle?'
    """
    chosen = _checked(types)
    name, _, background = level.partition("-")
    level_of(name)
    if background not in ("", "gradient"):
        hint = f"{name} or {name}-gradient"
        raise UserError(f"unknown background {background!r}", where=f"scenes:{level}", hint=hint)
    scene = scene_at(name, split, seed, index, "gradient" if background else "plain")
    return ask(scene, chosen[index % len(chosen)])


def stream(level: str, split: Split, seed: int, types: Sequence[str] | None = None, start: int = 0) -> Iterator[Record]:
    """The endless sequence from `start` on. Its position is all the state there is."""
    index = start
    while True:
        yield record_at(level, split, seed, index, types)
        index += 1


def _checked(types: Sequence[str] | None) -> Sequence[QuestionType]:
    for kind in types or ():
        if kind not in TYPES:
            raise UserError(f"unknown question type {kind!r}", where="scenes", hint=f"one of {', '.join(TYPES)}")
    return tuple(types) if types else ("mark",)  # type: ignore[return-value]
