"""Measuring: alternating pairs of process CPU time, peak memory in a process of its own, tables, the JSON line."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = [
    "Pairs",
    "alternating_pairs",
    "child_json",
    "measures_memory",
    "peak_mib",
    "print_json",
    "print_table",
    "settle",
    "timed",
]

T = TypeVar("T")


def settle() -> None:
    """One thread, and no progress bars or advice between the lines."""
    import warnings

    import torch
    import transformers

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Pairs:
    """CPU seconds of two sides, measured in turns: `ours[i]` and `theirs[i]` stand next to each other in time."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over pairs of theirs / ours: above 1, ours needs less."""
        return statistics.median(b / a for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """Least and largest ratio of a pair."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)

    def row(self) -> list[str]:
        """Cells of a table: both medians in CPU seconds, the median ratio, its range."""
        low, high = self.spread
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return [f"{theirs:.3f}", f"{ours:.3f}", f"{self.ratio:.2f}x", f"{low:.2f}-{high:.2f}"]


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of this process, and the result. With one thread, what else the machine does hardly enters."""
    gc.collect()
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def alternating_pairs(ours: Callable[[], object], theirs: Callable[[], object], pairs: int, warmup: int = 1) -> Pairs:
    """Runs both sides in turns; the order within a pair alternates, so that neither always follows the other."""
    for _ in range(warmup):
        ours()
        theirs()
    a, b = [], []
    for i in range(pairs):
        sides = [(ours, a), (theirs, b)]
        for run, seconds in sides if i % 2 == 0 else reversed(sides):
            seconds.append(timed(run)[0])
    return Pairs(tuple(a), tuple(b))


def measures_memory() -> bool:
    """Whether this system tells the peak size of a process and lets it be set back (Linux)."""
    return Path("/proc/self/clear_refs").exists()


def peak_mib(run: Callable[[], object]) -> float:
    """Peak resident memory of `run` above what the process held before, MiB. Meant for a fresh process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # freed memory that the allocator keeps would hide part of the peak
        trim(0)
    # writing 5 sets the high-water mark back to the present size
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def child_json(script: str, *arguments: str) -> dict[str, float]:
    """Runs a script with the same interpreter and reads the JSON object in its last line."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """First column to the left, the others to the right."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths], *rows]:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    print()


def print_json(values: dict[str, float]) -> None:
    """The figures as one line, the last one a benchmark prints."""
    print(json.dumps({k: float(f"{v:.4g}") for k, v in values.items()}))
