"""`sightline eval` and `sightline eval compare`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from sightline.commands.correlation import CorrelationOptions
from sightline.commands.faithfulness import FaithfulnessOptions, curve_line, faithfulness_table
from sightline.commands.judge import JudgeOptions
from sightline.commands.model import DEFAULT
from sightline.errors import UserError
from sightline.sampling.modes import Mode, ModeConfig

if TYPE_CHECKING:
    from rich.table import Table

    from sightline.evaluate.compare import Comparison
    from sightline.evaluate.correlation import Correlation
    from sightline.evaluate.faithfulness import Faithfulness
    from sightline.evaluate.runner import Evaluation

__all__ = ["Compare", "Evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Answer held-out records and print accuracy, IoU, region and format by mode, with 95 % bootstrap intervals.

    Writes one table (JSONL, a row per record and mode, for `sightline eval compare`) and, beside it, the figures as
    JSON with everything that was decided: model, data, seed, settings.
    """

    model: str = DEFAULT
    """`embedded:FAMILY`, a model folder, a Hub name, or a run folder (its newest checkpoint)."""
    data: str = "scenes:hard"
    """Records: a .jsonl or .parquet file, or `scenes:LEVEL` (their test split)."""
    types: tuple[str, ...] = ()
    """Question types of scenes: mark, count, relation, region; default mark."""
    reader: str = "ours"
    """How to read a file: a name of the readers table, or `package.module:function`."""
    image_root: Path | None = None
    """Folder that relative image paths start from; default that of the file."""
    modes: tuple[Mode, ...] = ("textual", "grounded")
    """How the questions are put."""
    limit: int = 500
    """Number of records."""
    seed: int = 0
    """Chooses the scenes, draws the intervals."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    max_new_tokens: int | None = None
    """Longest reply; default 64 for the embedded policy, 1024 for others."""
    crops: Annotated[ModeConfig, arg(name="")] = field(default_factory=ModeConfig)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    correlation: CorrelationOptions = field(default_factory=CorrelationOptions)
    faithful: Annotated[FaithfulnessOptions, arg(name="")] = field(default_factory=FaithfulnessOptions)
    batch: int = 64
    """Records answered side by side."""
    servers: Annotated[tuple[str, ...], arg(name="sampling.server.urls")] = ()
    """vLLM servers that answer in place of this process; they are given the model's weights. See serve-help."""
    device: str = "cpu"
    """cpu, cuda, cuda:N or mps."""
    dtype: str = "float32"
    """Number format of the weights."""
    out: Path | None = None
    """Table to write; default evaluations/MODEL-DATA.jsonl, numbered if it exists."""
    json: bool = False
    """Print the figures as one JSON object in place of the table."""

    def run(self) -> int:
        if self.out is not None and self.out.exists():
            raise UserError("exists already", where=str(self.out), hint="choose another name for --out")
        if self.out is not None and self.out.suffix == ".json":
            raise UserError("the table is JSONL; its figures are written beside it as .json", where=f"--out {self.out}")
        from sightline.commands.model import check_options, open_policy, source, token_limit
        from sightline.commands.records import held_out
        from sightline.commands.serving import opened_servers
        from sightline.evaluate.correlation import with_correlation
        from sightline.evaluate.runner import evaluate, write_table
        from sightline.sampling.base import SamplingSettings

        check_options(
            temperature=self.temperature, max_new_tokens=self.max_new_tokens,
            limit=self.limit, seed=self.seed, batch=self.batch,
        )  # fmt: skip
        self.judge.config()
        self.correlation.check(self.modes)
        self.faithful.check()
        source(self.model)  # a mistake in the name is told before the records are made
        records = held_out(
            self.data, self.limit, self.seed, types=self.types, reader=self.reader, image_root=self.image_root
        )
        policy = open_policy(self.model, device=self.device, dtype=self.dtype)
        path = self.out or self._default_path()
        path.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before the work
        limit = token_limit(policy, self.max_new_tokens)
        settings = SamplingSettings(temperature=self.temperature, max_new_tokens=limit)
        verdicts = path.with_suffix(".verdicts")
        with self.judge.opened(verdicts) as judge, opened_servers(self.servers, policy) as sampler:
            evaluation = evaluate(
                policy, records, self.modes, settings=settings, config=self.crops, judge=judge,
                seed=self.seed, label=self.data, batch=self.batch, sampler=sampler,
            )  # fmt: skip
            faithful = self.faithful.run(
                policy, records, self.modes, settings=settings, config=self.crops, seed=self.seed, batch=self.batch,
                sampler=sampler,
            )  # fmt: skip
        picked = self.correlation.run(
            evaluation, records, policy.frame, seed=self.seed, cache=path.with_suffix(".picks")
        )
        evaluation = with_correlation(evaluation, picked)
        write_table(evaluation, path)
        figures = self._figures(evaluation, str(path), limit, policy.frame.describe())
        figures |= {"correlation": {mode: found.row() for mode, found in picked.items()}} if picked else {}
        figures |= {"faithfulness": {mode: found.row() for mode, found in faithful.items()}} if faithful else {}
        path.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if self.json:
            print(json.dumps(figures))
            return 0
        self._show(evaluation, len(records), picked, faithful)
        print(f"frame: {policy.frame.describe()}\ntable: {path}")
        return 0

    def _show(
        self, evaluation: Evaluation, n: int, picked: dict[str, Correlation], faithful: dict[str, Faithfulness]
    ) -> None:
        """The tables, as people read them."""
        from rich.console import Console

        console = Console()
        console.print(estimate_table(evaluation, f"{self.model} on {self.data}, n = {n}"))
        for table in set_tables(evaluation):
            console.print(table)
        for mode, found in picked.items():
            print(f"correlation, {mode}: {found.describe()}")
        if faithful:
            console.print(faithfulness_table(faithful))
        for mode, found in faithful.items():
            print(curve_line(mode, found))

    def _default_path(self) -> Path:
        name = re.sub(r"[^\w.-]+", "-", f"{self.model}-{Path(self.data).stem}").strip("-")
        path, number = Path("evaluations") / f"{name}.jsonl", 1
        while path.exists():
            number += 1
            path = path.with_name(f"{name}-{number}.jsonl")
        return path

    def _figures(self, evaluation: Evaluation, table: str, limit: int, frame: str) -> dict[str, Any]:
        return {
            "model": self.model,
            "data": self.data,
            "types": list(self.types),
            "reader": self.reader,
            "judge": asdict(self.judge),
            "seed": self.seed,
            "temperature": self.temperature,
            "max_new_tokens": limit,
            "crops": self.crops.model_dump(),
            "frame": frame,
            "table": table,
            "evaluations": list(evaluation.events()),
        }


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two evaluation tables record by record: mean difference with its paired 95 % interval, exact McNemar."""

    before: Positional[Path]
    """A table that `sightline eval` wrote."""
    after: Positional[Path]
    """Another table over the same records, or the same one with --mode and --against."""
    mode: Mode | None = None
    """Compare this mode only."""
    against: Mode | None = None
    """Mode of the second table that meets --mode; default the same."""
    seed: int = 0
    """Draws the intervals."""
    json: bool = False
    """Print one JSON object in place of the table."""

    def run(self) -> int:
        from sightline.evaluate.compare import compare
        from sightline.evaluate.runner import read_table

        if self.against is not None and self.mode is None:
            raise UserError("--against needs --mode", hint="sightline eval compare A.jsonl B.jsonl --mode textual ...")
        modes = None if self.mode is None else {self.mode: self.against or self.mode}
        comparison = compare(read_table(self.before), read_table(self.after), modes=modes, seed=self.seed)
        if self.json:
            print(json.dumps(asdict(comparison)))
            return 0
        from rich.console import Console

        for table in difference_tables(comparison):
            Console().print(table)
        if comparison.unpaired:
            print(f"{comparison.unpaired} rows stand in one table only and were left out")
        return 0


def estimate_table(evaluation: Evaluation, title: str) -> Table:
    """Metrics down, modes across; shares in per cent."""
    from rich.table import Table

    from sightline.evaluate.metrics import METRICS

    table = Table(title=title, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for mode in evaluation.estimates:
        table.add_column(mode, justify="right")  # in a narrow terminal the interval moves below the mean
    for name in METRICS:
        scale, digits = _scale(name)
        cells = [
            estimates[name].describe(scale, digits) if name in estimates else "-"
            for estimates in evaluation.estimates.values()
        ]
        if any(cell != "-" for cell in cells):
            table.add_row(f"{name} %" if scale == 100 else name, *cells)
    table.add_row("seconds", *(f"{evaluation.seconds.get(mode, 0):.1f}" for mode in evaluation.estimates))
    return table


def set_tables(evaluation: Evaluation) -> list[Table]:
    """Per mode the means of every data set, and both of their sums; nothing where there is one set only."""
    from rich.table import Table

    from sightline.evaluate.sets import set_means

    tables = []
    for mode in evaluation.estimates:
        means = set_means(evaluation.rows, mode)
        if len(means.counts) < 2:
            continue
        table = Table(title=f"{mode}, by data set", title_justify="left")
        table.add_column("metric", no_wrap=True)
        for name, count in means.counts.items():
            table.add_column(f"{name or 'other'} ({count})", justify="right")
        table.add_column("all records", justify="right")
        table.add_column("mean of sets", justify="right")
        for metric, by_set in means.sets.items():
            scale, digits = _scale(metric)
            values = [*(by_set.get(name) for name in means.counts), means.weighted[metric], means.plain[metric]]
            cells = ("-" if value is None else f"{scale * value:.{digits}f}" for value in values)
            table.add_row(f"{metric} %" if scale == 100 else metric, *cells)
        tables.append(table)
    return tables


def difference_tables(comparison: Comparison) -> list[Table]:
    """One table per pair of modes; a difference off zero is marked with a star."""
    from rich.table import Table

    tables = []
    for mode, differences in comparison.differences.items():
        table = Table(title=f"{mode} (* = interval off zero)", title_justify="left")
        for column in ("metric", "n", "before", "after", "difference", "p (McNemar)"):
            table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=column != "difference")
        for name, found in differences.items():
            scale, digits = _scale(name)
            table.add_row(
                f"{name} %" if scale == 100 else name,
                str(found.difference.n),
                f"{scale * found.before:.{digits}f}",
                f"{scale * found.after:.{digits}f}",
                ("* " if found.is_off_zero else "") + found.difference.describe(scale, digits),
                "" if found.p is None else f"{found.p:.2g}",
            )
        tables.append(table)
    return tables


def _scale(name: str) -> tuple[float, int]:
    from sightline.evaluate.metrics import SHARES

    return (100, 1) if name in SHARES else (1, 3)
