"""Scenes as an endless, randomly accessible sequence of Records, and as files in the library's own format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.errors import UserError
from sightline.scenes.questions import TYPES, QuestionType, ask
from sightline.scenes.world import Split, level_of, scene_at
from sightline.types import Record

__all__ = ["record_at", "stream", "write_scenes"]


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


def write_scenes(
    out: str | Path, n: int, seed: int, level: str, split: Split = "train", types: Sequence[str] | None = None
) -> Path:
    """Write `n` records as PNG files and one JSONL, image paths relative to it; returns the path of the JSONL."""
    from PIL import Image
    from rich.progress import track

    folder = Path(out)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index in track(range(n), description=f"{level} scenes", disable=n < 500):
            record = record_at(level, split, seed, index, types)
            name = f"images/{level}-{split}-{seed}-{index:06d}.png"
            assert record.images[0].pixels is not None
            Image.fromarray(record.images[0].pixels).save(folder / name)
            file.write(json.dumps(_row(record, name)) + "\n")
    return path


def _checked(types: Sequence[str] | None) -> Sequence[QuestionType]:
    for kind in types or ():
        if kind not in TYPES:
            raise UserError(f"unknown question type {kind!r}", where="scenes", hint=f"one of {', '.join(TYPES)}")
    return tuple(types) if types else ("mark",)  # type: ignore[return-value]


def _row(record: Record, image: str) -> dict[str, object]:
    return {
        "id": record.id,
        "question": record.question,
        "answer": record.answer,
        "answer_kind": record.answer_kind,
        "images": [image],
        "regions": [{"box": list(r.box), "label": r.label, "role": r.role} for r in record.regions],
        "meta": dict(record.meta),
    }
