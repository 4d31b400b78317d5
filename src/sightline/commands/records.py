"""Records for commands: from a file, or from the scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sightline.types import Record

__all__ = ["held_out"]


def held_out(
    name: str, count: int, seed: int = 0, *, types: Sequence[str] = (), reader: str = "ours",
    image_root: Path | None = None,
) -> list[Record]:  # fmt: skip
    """Up to `count` records of a file in its order, or `count` scenes of the test split.

    Args:
        name: a .jsonl or .parquet file, or `scenes:LEVEL`.
        count: number of records.
        seed: which scenes; a file ignores it.
        types: question types of scenes; default mark.
        reader: how to read a file.
        image_root: folder of relative image paths; default that of the file.
    """
    from sightline.data import open_source

    source = open_source(
        name, split="test", seed=seed, types=types or None, reader=reader, image_root=image_root, limit=count
    )
    return [source.at(i) for i in range(count if source.size is None else min(count, source.size))]
