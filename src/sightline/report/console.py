"""The run in the terminal: progress, current metrics with their course, alarms, and the table of evaluations.

In a terminal the view is live; elsewhere (a file, a pipe, a continuous-integration log) it becomes plain lines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.report.compare import Comparison, compare, interval
from sightline.report.events import RunFolder, stats_of
from sightline.report.figures import alarm_kind, change_text, clock, interval_text, number, sparkline
from sightline.report.lines import Tail
from sightline.report.metrics import measure
from sightline.types import StepStats

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table

__all__ = ["RunConsole", "evaluation_table", "watch"]

_HEADLINES = (
    "reward/*/total",
    "reward/*/accuracy",
    "rollout/*/iou",
    "policy/kl",
    "policy/entropy",
    "update/grad_norm",
)
_ROWS = 14


@dataclass
class _Arm:
    """What the console knows of one run or arm."""

    name: str
    total: int = 0
    steps: dict[int, StepStats] = field(default_factory=dict)
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> StepStats | None:
        return self.steps[max(self.steps)] if self.steps else None

    def course(self, name: str) -> list[float]:
        return [stats.metrics.get(name, math.nan) for _, stats in sorted(self.steps.items())]

    def seconds(self) -> float:
        """Mean seconds of the last twenty steps."""
        recent = [sum(stats.seconds.values()) for _, stats in sorted(self.steps.items())[-20:]]
        return sum(recent) / len(recent) if recent else 0.0


SHOWN = ("accuracy", "iou", "region", "format")


class RunConsole:
    """A sink that shows one run, or several arms side by side.

    Args:
        console: where to print; standard output by default.
        arms: names of the arms; one run has the single name `""`.
        every: without a terminal, one line is printed on every step that this divides.
    """

    def __init__(self, console: Console | None = None, *, arms: Sequence[str] = ("",), every: int = 10) -> None:
        from rich.console import Console

        self.console = console or Console()
        self._arms = {name: _Arm(name) for name in arms}
        self._every = every
        self._live: Live | None = None
        self._is_table_due = True

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(self._arms)

    def start(self, manifest: Mapping[str, Any], resume_step: int | None = None, *, arm: str = "") -> None:
        """Announce a run; `manifest["steps"]` sets the length of its bar."""
        self._arms[arm].total = int(manifest.get("steps") or 0)
        words = [str(manifest[key]) for key in ("method", "model", "frame") if manifest.get(key)]
        if resume_step:
            words.append(f"resumed at step {resume_step}")
        self._print(f"{arm + ': ' if arm else ''}{' · '.join(words)}")
        if self.console.is_terminal and self._live is None:
            from rich.live import Live

            self._live = Live(self._view(), console=self.console, refresh_per_second=4)
            self._live.start()

    def step(self, stats: StepStats, *, arm: str = "") -> None:
        """Show one step; an alarm is printed when it begins to ring and stays above the live view."""
        state = self._arms[arm]
        if state.steps.get(stats.step) == stats:
            return  # a resumed run's file is read again from its start
        ringing = {alarm_kind(alarm) for alarm in state.last.alarms} if state.last else set()
        state.steps[stats.step] = stats
        for alarm in stats.alarms:
            if alarm_kind(alarm) not in ringing:
                self._print(f"{_prefix(arm)}step {stats.step}: {alarm}", style="yellow")
        if self._live:
            self._live.update(self._view())
        elif stats.step % self._every == 0 or stats.step == state.total - 1:
            self._print(_line(state, stats))

    def evaluation(self, row: Mapping[str, Any], *, arm: str = "") -> None:
        self._arms[arm].evaluations.append(row)
        if self._live:
            self._live.update(self._view())
        else:
            self._print(f"{_prefix(arm)}{_evaluation_line(row)}")

    def finish(self) -> None:
        """Close the live view and print the table of evaluations once."""
        if self._live:
            self._live.update(self._view())
            self._live.stop()
            self._live = None
        rows = {name: compare(arm.evaluations) for name, arm in self._arms.items()}
        if any(rows.values()) and self._is_table_due:
            self._is_table_due = False
            self.console.print(evaluation_table(rows))

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        from rich.console import Group

        return Group(self._bars(), self._metrics())

    def _bars(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, arm in self._arms.items():
            done = max(arm.steps) + 1 if arm.steps else 0
            rest = f"{clock((arm.total - done) * arm.seconds())} left" if arm.total and arm.steps else ""
            bar = ProgressBar(total=arm.total or None, completed=done, width=36)
            table.add_row(
                Text(name or "steps", style="bold"), bar, Text(f"{done}/{arm.total or '?'}"), Text(rest, "dim"),
                Text(_spent(arm.last) if arm.last else "", "dim"),
            )  # fmt: skip
        return table

    def _metrics(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        arms = list(self._arms.values())
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("metric", style="dim")
        for arm in arms:
            table.add_column(arm.name or "now", justify="right")
            table.add_column("")
        for name in _shown(arms):
            cells = []
            for arm in arms:
                course = arm.course(name)
                cells += [Text(number(course[-1] if course else math.nan)), Text(sparkline(course, 24), "cyan")]
            table.add_row(Text(name), *cells)
        return table


def evaluation_table(
    rows: Mapping[str, Iterable[Comparison]], title: str = "Held-out evaluation, 95 % intervals"
) -> Table:
    """First against last evaluation, per arm; a lone evaluation fills the last column only.

    Only the measures a person asks for first; the page holds all.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_arms = len(rows) > 1 or any(rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    if has_arms:
        table.add_column("arm")
    for name in ("n", "before", "after", "change"):
        table.add_column(name, justify="right")
    by_measure: dict[str, list[tuple[str, Comparison]]] = {}
    for arm, comparisons in rows.items():
        for comparison in (c for c in comparisons if c.measure.name in SHOWN):
            by_measure.setdefault(comparison.title, []).append((arm, comparison))
    for title_, entries in by_measure.items():
        for i, (arm, comparison) in enumerate(entries):
            head = [Text(title_ if i == 0 else "")] + ([Text(arm)] if has_arms else [])
            table.add_row(*head, *(Text(cell) for cell in _comparison_cells(comparison)))
    return table


def watch(folder: str | Path, console: RunConsole, is_running: Callable[[], bool], *, pause: float = 0.5) -> None:
    """Follow runs that other processes write, until none of them lives; what they wrote before is shown as well.

    Args:
        folder: the run folder; an arm named `""` stands for the folder itself.
        console: made with the arms' names.
        is_running: whether any of the processes still lives.
        pause: seconds between two looks.
    """
    followed = [_Followed(name, Path(folder) / "arms" / name if name else Path(folder)) for name in console.arms]
    is_last = False
    while not is_last:
        is_last = not is_running()  # asked before reading, so that the last lines are not missed
        for run in followed:
            run.show(console)
        if not is_last:
            time.sleep(pause)
    console.finish()


class _Followed:
    """A run folder that another process writes."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.is_started = name, folder, False
        self.events, self.evaluations = Tail(folder / "events.jsonl"), Tail(folder / "evaluations.jsonl")

    def show(self, console: RunConsole) -> None:
        if not self.is_started and (self.folder / "run.json").exists():
            console.start(RunFolder(self.folder).manifest, arm=self.name)
            self.is_started = True
        for row in self.evaluations.read():
            console.evaluation(row, arm=self.name)
        for row in self.events.read():
            console.step(stats_of(row), arm=self.name)


def _prefix(arm: str) -> str:
    return f"{arm}: " if arm else ""


def _shown(arms: Iterable[_Arm]) -> list[str]:
    """The metrics worth a row: the headlines in their order, then as many of the others as there is room for."""
    names = list(dict.fromkeys(name for arm in arms if arm.last for name in arm.last.metrics))
    first = [name for pattern in _HEADLINES for name in names if fnmatch(name, pattern)]
    return [*first, *(name for name in names if name not in first)][:_ROWS]


def _line(arm: _Arm, stats: StepStats) -> str:
    names = [name for pattern in _HEADLINES for name in stats.metrics if fnmatch(name, pattern)][:6]
    values = "  ".join(f"{name} {number(stats.metrics[name])}" for name in names or list(stats.metrics)[:6])
    spent = _spent(stats)
    return f"{_prefix(arm.name)}step {stats.step}/{arm.total or '?'}  {values}" + (f"  {spent}" if spent else "")


def _spent(stats: StepStats) -> str:
    """Seconds of a step, of its phases, and the share of the card's arithmetic that the update used.

    Phases that round to nothing are left out.
    """
    total = sum(stats.seconds.values())
    if not total:
        return ""
    parts = ", ".join(f"{name} {value:.1f}" for name, value in stats.seconds.items() if value >= 0.05)
    mfu = stats.metrics.get("update/mfu")
    return f"{total:.1f} s" + (f" ({parts})" if parts else "") + (f"  MFU {mfu:.0%}" if mfu is not None else "")


def _evaluation_line(row: Mapping[str, Any]) -> str:
    parts = []
    for name, value in (row.get("metrics") or {}).items():
        if found := interval(value):
            parts.append(f"{name} {interval_text(found, measure(name))}")
    return f"evaluation at step {row.get('step', 0)}, {row.get('mode', '')}, n={row.get('n', 0)}: {', '.join(parts)}"


def _comparison_cells(comparison: Comparison) -> list[str]:
    after = interval_text(comparison.after, comparison.measure)
    if comparison.is_single:
        return [str(comparison.n), "", after, ""]
    before = interval_text(comparison.before, comparison.measure)
    return [str(comparison.n), before, after, change_text(comparison.change, comparison.measure)]
