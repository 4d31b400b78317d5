"""`sightline attention calibrate`: which heads look at the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from sightline.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from sightline.policy.load import Policy
    from sightline.probes.calibration import HeadScore
    from sightline.types import Record

__all__ = ["Calibrate"]

LARGEST = 0.6  # regions that cover more of the image than this say nothing about aim


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Rank every (layer, head) of a policy by how well it looks at the gold boxes while the policy answers.

    Prints the best ones and writes all of them as JSON; its list of `heads` is what probes take as `heads_file` and
    `ask --attention` and `eval --faithfulness` as `--heads`.
    """

    model: Positional[str]
    """`embedded:FAMILY`, a model folder, a Hub name, or a run folder (its newest checkpoint)."""
    data: Positional[str]
    """Records with boxes: a .jsonl or .parquet file, or `scenes:LEVEL`."""
    n: int = 200
    """Records to look at; those without boxes, or whose boxes cover most of the image, are left out."""
    mode: Literal["textual", "grounded"] = "textual"
    """How the questions are put."""
    keep: int = 8
    """Heads in the list."""
    by: Literal["both", "lift", "pointing"] = "both"
    """lift: mass on the boxes over their share of the area; pointing: strongest cell inside; both: sum of the ranks."""
    seed: int = 0
    """Chooses the scenes."""
    max_new_tokens: int | None = None
    """Longest reply; default 64 for the embedded policy, 1024 for others."""
    batch: int = 32
    """Records answered side by side."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or mps."""
    dtype: str = "float32"
    """Number format of the weights."""
    out: Path = Path("heads.json")
    """File to write."""
    json: bool = False
    """Print the JSON in place of the table."""

    def run(self) -> int:
        from sightline.commands.model import check_options, open_policy, source
        from sightline.commands.records import held_out
        from sightline.probes.calibration import ranked

        if self.out.exists():
            raise UserError("exists already", where=str(self.out), hint="choose another name with --out")
        for name, value in (("n", self.n), ("keep", self.keep)):
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", where=f"--{name}")
        check_options(temperature=0.0, max_new_tokens=self.max_new_tokens, limit=None, seed=self.seed, batch=self.batch)
        source(self.model)  # a mistake in the name is told before the records are made
        records = held_out(self.data, self.n, self.seed)
        policy = open_policy(self.model, device=self.device, dtype=self.dtype)
        boxed = [record for record in records if _says_where(record, policy)]
        if not boxed:
            raise UserError("no record has boxes that say where to look", where=self.data)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        scores = [score for part in self._parts(policy, boxed) for score in part]
        best = self._ordered(ranked(scores))
        figures = {
            "model": self.model, "data": self.data, "mode": self.mode, "by": self.by, "n": len(boxed),
            "skipped": len(records) - len(boxed), "heads": [[s.layer, s.head] for s in best[: self.keep]],
            "scores": [asdict(s) for s in best],
        }  # fmt: skip
        self.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
        if self.json:
            print(json.dumps(figures))
            return 0
        from rich.console import Console

        Console().print(_table(best[: max(self.keep, 10)], self.keep, f"{self.model} on {self.data}, n = {len(boxed)}"))
        print(f"{len(best[: self.keep])} heads of {len(best)}, marked with *: {self.out}")
        return 0

    def _parts(self, policy: Policy, records: Sequence[Record]) -> Iterator[list[dict[tuple[int, int], HeadScore]]]:
        """Scores of a batch of records at a time, with a progress bar."""
        from sightline.commands.model import token_limit
        from sightline.policy.packing import Packer
        from sightline.probes.calibration import head_scores
        from sightline.progress import track
        from sightline.sampling.base import SamplingSettings
        from sightline.sampling.local import LocalSampler
        from sightline.sampling.modes import answer
        from sightline.types import Group

        sampler, packer = LocalSampler(policy), Packer(policy)
        settings = SamplingSettings(temperature=0.0, max_new_tokens=token_limit(policy, self.max_new_tokens))
        starts = range(0, len(records), self.batch)
        for start in track(starts, "calibrating", len(starts)):
            part = records[start : start + self.batch]
            results = answer(sampler, part, self.mode, speaker=policy, settings=settings)
            groups = [Group(record=r.record, rollouts=(r.rollouts[0],), readings=()) for r in results]
            yield head_scores(packer, groups)

    def _ordered(self, best: list[HeadScore]) -> list[HeadScore]:
        if self.by == "both":
            return best
        return sorted(best, key=lambda score: -getattr(score, self.by))


def _says_where(record: Record, policy: Policy) -> bool:
    """It has boxes, and they leave enough of the images outside."""
    from sightline.geometry.grid import membership

    if not (record.images and record.regions):
        return False
    region = membership(record.regions, [image.size for image in record.images], policy.frame, "coverage")
    return 0 < float(region.mean()) <= LARGEST


def _table(scores: Sequence[HeadScore], keep: int, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("", "layer", "head", "on image %", "on boxes %", "lift", "pointing %"):
        table.add_column(column, justify="right")
    for place, s in enumerate(scores):
        mark = "*" if place < keep else ""
        figures = (f"{100 * s.on_image:.1f}", f"{100 * s.region:.1f}", f"{s.lift:.2f}", f"{100 * s.pointing:.1f}")
        table.add_row(mark, str(s.layer), str(s.head), *figures)
    return table
