"""The arms of a recipe, side by side: one process per arm, as many at once as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.train.distributed import World

__all__ = ["ArmProcesses", "train_arms", "train_arms_in_turn"]


def train_arms(recipe: Recipe, folder: Path) -> Path:
    """Trains every arm as an ordinary run in `folder/arms/NAME` and writes one page for all.

    Raises:
        UserError: an arm failed; the others have finished by then and the page is written.
    """
    from sightline.commands.train import keep_recipe
    from sightline.report.console import RunConsole, watch
    from sightline.report.events import RunWriter
    from sightline.report.page import write_page

    arms = recipe.arm_recipes()
    keep_recipe(recipe, folder)
    RunWriter(folder).manifest({"arms": list(arms), "recipe": recipe.summary, "seed": recipe.train.seed})
    for name, arm in arms.items():
        keep_recipe(arm, folder / "arms" / name)
    threads = max(arm.model.threads for arm in arms.values())
    processes = ArmProcesses(
        {name: arm_command(folder / "arms" / name) for name in arms},
        {name: folder / "arms" / name / "console.log" for name in arms},
        at_once=max(1, cores() // threads),
        threads=threads,
    )
    print(f"{len(arms)} arms, {min(processes.at_once, len(arms))} at a time, {threads} thread(s) each: {folder}")
    console = RunConsole(arms=list(arms))
    try:
        watch(folder, console, processes.is_running)
    finally:
        processes.stop()
        console.finish()  # gives the terminal back after an interrupt; the second time it prints nothing
    page = write_page(folder)
    print(f"page: {Path(page).resolve()}")
    processes.check()
    return Path(page)


def train_arms_in_turn(recipe: Recipe, folder: Path, world: World) -> None:
    """Trains one arm after the other, each on all processes of the run, and writes one page for all."""
    from sightline.commands.train import keep_recipe, train_one
    from sightline.report.events import RunWriter
    from sightline.report.page import write_page

    arms = recipe.arm_recipes()
    if world.is_main:
        keep_recipe(recipe, folder)
        RunWriter(folder).manifest({"arms": list(arms), "recipe": recipe.summary, "seed": recipe.train.seed})
    for name, arm in arms.items():
        train_one(arm, folder / "arms" / name, world)
    if world.is_main:
        print(f"page: {Path(write_page(folder)).resolve()}")


def arm_command(home: Path) -> list[str]:
    """The words that train, or resume, the arm whose recipe lies in `home`."""
    return [sys.executable, "-m", "sightline", "train", str(home)]


class ArmProcesses:
    """A queue of processes.

    Args:
        commands: words of each arm's command.
        logs: where each arm's output goes.
        at_once: how many run side by side.
        threads: threads each may use.
    """

    def __init__(
        self, commands: Mapping[str, Sequence[str]], logs: Mapping[str, Path], *, at_once: int, threads: int = 1
    ) -> None:
        self.at_once = at_once
        self._logs, self._waiting = dict(logs), dict(commands)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.codes: dict[str, int] = {}
        count = str(threads)
        self._environment = os.environ | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}

    def is_running(self) -> bool:
        """Collects ended arms, starts waiting ones; false once all have ended."""
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                self.codes[name] = code
                del self._running[name]
        while self._waiting and len(self._running) < self.at_once:
            name = next(iter(self._waiting))
            command = self._waiting.pop(name)
            with self._logs[name].open("ab") as log:
                self._running[name] = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
                )
        return bool(self._running)

    def stop(self) -> None:
        """Ends what still runs. A run resumes from its last checkpoint, so nothing but the last steps is lost."""
        self._waiting.clear()
        for process in self._running.values():
            process.terminate()
        for name, process in self._running.items():
            try:
                self.codes[name] = process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                self.codes[name] = process.wait()
        self._running.clear()

    def check(self) -> None:
        """Raises the first failure, with the last line its arm wrote."""
        for name, code in self.codes.items():
            if code:
                raise UserError(
                    f"arm '{name}' ended with exit code {code}: {last_line(self._logs[name])}",
                    where=str(self._logs[name]),
                    hint="the same command again resumes every arm",
                )


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
