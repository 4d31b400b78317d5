"""`sightline eval --faithfulness`: whether the replies use the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError
from sightline.types import Record

if TYPE_CHECKING:
    from rich.table import Table

    from sightline.evaluate.faithfulness import Faithfulness
    from sightline.evaluate.statistics import Estimate
    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler, SamplingSettings
    from sightline.sampling.modes import ModeConfig

__all__ = ["FaithfulnessOptions", "curve_line", "faithfulness_table"]

_ROWS = (
    ("accuracy %", "accuracy", "original", 100),
    ("accuracy, regions filled %", "accuracy", "region_mask", 100),
    ("accuracy, as much elsewhere %", "accuracy", "random_region", 100),
    ("drop, regions filled %", "drops", "region_mask", 100),
    ("drop, as much elsewhere %", "drops", "random_region", 100),
    ("difference of the drops %", "drops", "difference", 100),
    ("attention on the regions %", "attention", "region_mass", 100),
    ("attention on the images %", "attention", "image_mass", 100),
    ("regions' share of it %", "attention", "region_share", 100),
    ("regions' share of the area %", "attention", "area_share", 100),
    ("pointing accuracy %", "attention", "pointing", 100),
    ("strongest cell's share %", "attention", "top1_share", 100),
)


@dataclass(frozen=True, kw_only=True)
class FaithfulnessOptions:
    """Faithfulness: accuracy with the regions filled against as much elsewhere, dependence on the image over the
    reply, attention on the regions. Records need boxes."""

    faithfulness: bool = False
    """Also measure whether the replies use the evidence, in every mode; every record is answered three times more."""
    heads: Path | None = None
    """With --faithfulness, read these heads: a list that `sightline attention calibrate` wrote."""

    def check(self) -> None:
        """What does not fit is told before anything is loaded."""
        if self.heads is None:
            return
        if not self.faithfulness:
            raise UserError("heads are read for --faithfulness only", where="--heads", hint="add --faithfulness")
        from sightline.probes.heads import read_heads

        read_heads(str(self.heads))

    def run(
        self,
        policy: Policy,
        records: Sequence[Record],
        modes: Sequence[str],
        *,
        settings: SamplingSettings,
        config: ModeConfig,
        seed: int,
        batch: int,
        sampler: Sampler | None = None,
    ) -> dict[str, Faithfulness]:
        """Faithfulness by mode; nothing unless asked."""
        from sightline.evaluate.faithfulness import Reader, faithfulness

        if not self.faithfulness:
            return {}
        reader = Reader(heads_file=None if self.heads is None else str(self.heads))
        return {
            mode: faithfulness(
                policy,
                records,
                mode,
                settings=settings,
                config=config,
                reader=reader,
                seed=seed,
                batch=batch,
                sampler=sampler,
            )
            for mode in dict.fromkeys(modes)
        }


def faithfulness_table(found: dict[str, Faithfulness]) -> Table:
    """Figures down, modes across."""
    from rich.table import Table

    n = next(iter(found.values())).n
    table = Table(title=f"faithfulness, n = {n} records with regions", title_justify="left")
    table.add_column("figure", no_wrap=True)
    for mode in found:
        table.add_column(mode, justify="right")
    for label, group, name, scale in _ROWS:
        values: list[Estimate] = [getattr(own, group)[name] for own in found.values()]
        table.add_row(label, *(value.describe(scale, 1) for value in values))
    return table


def curve_line(mode: str, found: Faithfulness) -> str:
    """How much the image matters along the reply, as one line: a bar per tenth, and the largest mean.

    Example:
        >>> from sightline.evaluate.faithfulness import Faithfulness
        >>> from sightline.evaluate.statistics import Estimate
        >>> curve = (Estimate(0.0, 0.0, 0.0, 3), None, Estimate(2.0, 1.0, 3.0, 3))
        >>> seen = Faithfulness(mode="m", n=3, skipped=0, accuracy={}, drops={}, attention={}, curve=curve)
        >>> curve_line("textual", seen)
        'image dependence over the reply, textual: ▁·█ (largest 2.00 nats per token, part 3 of 3)'
    """
    means = [None if value is None else value.mean for value in found.curve]
    known = [mean for mean in means if mean is not None]
    top = max(known)
    bars = "".join(_bars(means, max(top, 1e-12)))
    place = f"part {means.index(top) + 1} of {len(means)}"
    return f"image dependence over the reply, {mode}: {bars} (largest {top:.2f} nats per token, {place})"


def _bars(means: Sequence[float | None], top: float) -> Iterator[str]:
    for mean in means:
        yield "·" if mean is None else "▁▂▃▄▅▆▇█"[min(max(int(mean / top * 8), 0), 7)]
