"""`sightline data scenes | check | preview`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from sightline.commands.frames import FrameName, frame_named
from sightline.errors import UserError

__all__ = ["Check", "Preview", "Scenes"]


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Write scenes of the embedded world to disk: records.jsonl and images/, read back like anybody's data."""

    out: Path
    """Folder to write; must not hold records yet."""
    n: int = 1000
    """Number of records."""
    seed: int = 0
    """Which scenes; splits never share one."""
    level: str = "hard"
    """easy, hard, or zoom (readable only in a crop of the original)."""
    split: Literal["train", "validation", "test"] = "train"
    """Which of the disjoint sets."""
    types: tuple[Literal["mark", "count", "relation", "region"], ...] = ()
    """Question types, which take turns; default mark."""

    def run(self) -> int:
        from sightline.data import SceneSource, write_records
        from sightline.progress import track

        if self.n < 1:
            raise UserError("at least one record", where="--n")
        source = SceneSource(level=self.level, split=self.split, seed=self.seed, types=self.types or None, limit=self.n)
        records = track(map(source.at, range(self.n)), "drawing", self.n)
        path = write_records(records, self.out)
        print(f"{self.n} records: {path}\nlook at them: sightline data preview {path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """Check every row of a data file before a model sees it; exit code 2 if there are errors."""

    file: Positional[Path]
    """A .jsonl or .parquet file."""
    reader: str = "ours"
    """Name of a reader, or `package.module:function`."""
    image_root: Path | None = None
    """Folder that relative image paths start from; default the folder of the file."""
    frame: str | None = None
    """Coordinate frame of boxes whose rows declare none."""
    limit: int | None = None
    """Check only the first so many rows."""
    model_frame: FrameName | None = None
    """Count visual tokens as this family does."""
    token_budget: int | None = None
    """Most visual tokens per row; needs --model-frame."""

    def run(self) -> int:
        from rich.console import Console

        from sightline.data.check import check
        from sightline.progress import track

        if self.token_budget is not None and self.model_frame is None:
            raise UserError("needs --model-frame", where="--token-budget", hint="e.g. --model-frame qwen2_5_vl")
        report = check(
            self.file,
            self.reader,
            image_root=self.image_root,
            frame=self.frame,
            limit=self.limit,
            model_frame=None if self.model_frame is None else frame_named(self.model_frame),
            token_budget=self.token_budget,
            progress=lambda rows: track(rows, "checking", None),
        )
        report.show(Console())
        return report.exit_status


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Write one HTML page that shows records with their boxes drawn on the pictures."""

    data: Positional[str]
    """A .jsonl or .parquet file, or `scenes:LEVEL`."""
    limit: int = 24
    """Number of records."""
    out: Path = Path("preview.html")
    """The page."""
    reader: str = "ours"
    """Name of a reader, or `package.module:function`."""
    seed: int = 0
    """Which scenes."""

    def run(self) -> int:
        from sightline.commands.records import held_out
        from sightline.data.preview import write_preview

        records = held_out(self.data, self.limit, self.seed, reader=self.reader)
        print(f"page: {write_preview(records, self.out, title=self.data).resolve()}")
        return 0
