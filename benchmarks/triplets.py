"""Image-question-answer triplets for GRIT: marks and counts take turns, and the counts cover 0 to 3 evenly.

Left to chance, most counts of a scene are 1, so that always saying one would be right most of the time. The paper
balances its counts for the same reason (arXiv 2505.15879, appendix B).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from sightline.data.write import write_records
from sightline.scenes.questions import ask
from sightline.scenes.world import Split, scene_at
from sightline.types import ImageRef, Record, Size

__all__ = ["COUNTS", "triplets", "write_triplets"]

COUNTS = (1, 2, 0, 3)
_QUESTIONS = 10  # words a scene can be asked to count
_UNDRAWN = ImageRef(size=Size(1, 1), digest="")


def triplets(level: str, split: Split, seed: int) -> Iterator[Record]:
    """Endless: a mark, a count, a mark, ...; every question about a scene of its own."""
    wanted = 0
    scenes = count()
    while True:
        yield ask(scene_at(level, split, seed, next(scenes)), "mark")
        answer = str(COUNTS[wanted % len(COUNTS)])
        yield next(found for index in scenes if (found := _counting(level, split, seed, index, answer)))
        wanted += 1


def _counting(level: str, split: Split, seed: int, index: int, answer: str) -> Record | None:
    scene = scene_at(level, split, seed, index)
    # the picture is drawn for the question that is taken, not for each that is looked at
    asked = (ask(scene, "count", number, _UNDRAWN) for number in range(_QUESTIONS))
    chosen = next((number for number, record in enumerate(asked) if record.answer == answer), None)
    return None if chosen is None else ask(scene, "count", chosen)


def write_triplets(folder: Path, level: str, split: Split, seed: int, n: int) -> Path:
    """The first `n` triplets as a data file; an existing one is kept."""
    path = folder / "records.jsonl"
    return path if path.exists() else write_records(islice(triplets(level, split, seed), n), folder)
