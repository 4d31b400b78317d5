"""What a DataStream draws from: the Records of a file, or scenes made on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from sightline.data.records import read_records
from sightline.types import Record

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

__all__ = ["SceneSource", "Source", "open_source"]

Split = Literal["train", "validation", "test"]
PREFIX = "scenes:"


class Source(Protocol):
    """Records by number.

    Attributes:
        size: number of Records; None where the numbers have no end.
        has_regions: which Records carry regions; None where that is known only after making them.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def has_regions(self) -> Bool[np.ndarray, " records"] | None: ...

    def at(self, index: int) -> Record: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSource:
    """Scenes of one level, split and seed. Splits never share a scene. Without `limit` there is no end."""

    level: str
    split: Split
    seed: int
    types: tuple[str, ...] | None = None
    limit: int | None = None

    @property
    def size(self) -> int | None:
        return self.limit

    @property
    def has_regions(self) -> None:
        return None

    def at(self, index: int) -> Record:
        from sightline.scenes.stream import record_at

        return record_at(self.level, self.split, self.seed, index, types=self.types)


def open_source(
    name: str,
    *,
    split: Split = "train",
    seed: int = 0,
    reader: str = "ours",
    image_root: str | Path | None = None,
    frame: str | None = None,
    limit: int | None = None,
    types: Sequence[str] | None = None,
) -> Source:
    """The source that a recipe's `data.train`, `data.validation` or `evaluation.data` names.

    Args:
        name: `scenes:LEVEL`, or a `.jsonl` or `.parquet` file.
        split: which scenes; a file is its own split.
        seed: which scenes; a file ignores it.
        reader, image_root, frame: how to read a file.
        limit: only the first so many records.
        types: question types of scenes, taking turns; None for mark alone.

    Raises:
        UserError: no such file, level or question type, or a bad row.
    """
    if name.startswith(PREFIX):
        level = name[len(PREFIX) :]
        chosen = None if types is None else tuple(types)
        source = SceneSource(level=level, split=split, seed=seed, types=chosen, limit=limit)
        source.at(0)  # an unknown level or question type is refused here, not in the middle of a run
        return source
    return read_records(name, reader, image_root=image_root, frame=frame, limit=limit)
