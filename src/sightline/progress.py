"""A progress bar that appears only when the work takes longer than two seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["is_first_process", "track"]

Item = TypeVar("Item")
PATIENCE = 2.0  # seconds without a bar


def is_first_process() -> bool:
    """Whether this process talks to people: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def track(items: Iterable[Item], label: str, total: int | None, *, is_shown: bool = True) -> Iterator[Item]:
    """Yields `items`; on a terminal, a bar on stderr counts them from the moment the work has lasted two seconds.

    Without a `total` the bar only counts.
    """
    if not is_shown or not sys.stderr.isatty() or not is_first_process():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=total)
    started, is_running = time.perf_counter(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not is_running and time.perf_counter() - started > PATIENCE:
                bar.start()
                is_running = True
    finally:
        if is_running:
            bar.stop()
