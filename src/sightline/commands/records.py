"""Records for commands: from a file, or from the scenes."""

from __future__ import annotations

from sightline.types import Record

__all__ = ["held_out"]


def held_out(name: str, count: int, seed: int = 0, *, reader: str = "ours") -> list[Record]:
    """Up to `count` records of a file in its order, or `count` scenes of the test split.

    Args:
        name: a .jsonl or .parquet file, or `scenes:LEVEL`.
        count: number of records.
        seed: which scenes; a file ignores it.
        reader: how to read a file.
    """
    from sightline.data import open_source

    source = open_source(name, split="test", seed=seed, reader=reader, limit=count)
    return [source.at(i) for i in range(count if source.size is None else min(count, source.size))]
