"""`sightline doctor RECIPE`: what would go wrong, before any GPU hour is spent."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional, Suppress

from sightline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sightline.config import Recipe
    from sightline.doctor.examine import Examination
    from sightline.doctor.finding import Finding

__all__ = ["Doctor"]

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check a recipe before it runs: every line says pass, warn or fail, what that means, and what to type.

    Exit code 0 without a fail, 1 with one, 2 for bad input. Every key of the recipe can be overridden, as for `train`.
    Nothing is written but the page.
    """

    recipe: Positional[str]
    """Name of a shipped recipe, a YAML file, or a run folder."""
    card: float | None = None
    """Memory of the card to plan for, in GB (24, 40, 80, 141); default the one that is there."""
    sample: int = 8
    """Training records that are looked at."""
    only: tuple[str, ...] = ()
    """Names of the probes to run; default all."""
    skip: tuple[str, ...] = ()
    """Names of probes to leave out."""
    arm: str = ""
    """Of a recipe with arms, the one to look at; default all of them."""
    page: Path | None = None
    """Write the report with its pictures: an .html page, or the pictures alone as .png."""
    json: bool = False
    """Print one JSON object and nothing else."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from rich.console import Console

        from sightline.config import load_recipe
        from sightline.doctor.page import check_page, write_page
        from sightline.doctor.probes import chosen

        names = chosen(self.only, self.skip)
        if self.sample < 1:
            raise UserError(f"must be at least 1, got {self.sample}", where="--sample")
        if self.card is not None and not 0 < self.card < math.inf:
            raise UserError(f"must be above 0, got {self.card:g}", where="--card", hint="GB of the card, e.g. 80")
        if self.page is not None:
            check_page(self.page)
        recipes = self._recipes(load_recipe(self.recipe, self.overrides))
        console = Console(quiet=self.json, highlight=False)
        examined = {arm: self._examined(arm, recipe, names, console) for arm, recipe in recipes.items()}
        if self.json:
            print(json.dumps(self._rows(examined), ensure_ascii=False))
        if self.page is not None:
            written = write_page(self.page, examined, f"sightline doctor {self.recipe}")
            console.print(f"page: {written.resolve()}", markup=False, soft_wrap=True)
        return int(any(one.level == "fail" for one in examined.values()))

    def _recipes(self, recipe: Recipe) -> dict[str, Recipe]:
        arms = recipe.arm_recipes()
        if self.arm and self.arm not in arms:
            raise UserError(f"no arm is called {self.arm!r}", where="--arm", hint=f"one of {', '.join(arms) or 'none'}")
        return {self.arm: arms[self.arm]} if self.arm else arms or {"": recipe}

    def _examined(self, arm: str, recipe: Recipe, names: tuple[str, ...], console: Console) -> Examination:
        from sightline.doctor.examine import examine
        from sightline.doctor.patient import Patient

        options = [*(("--arm", arm) if arm else ()), *(() if self.card is None else ("--card", f"{self.card:g}"))]
        patient = Patient(recipe, sample=self.sample, card=self.card, options=shlex.join(options),
                          name=shlex.join([self.recipe, *self.overrides]))  # fmt: skip
        title = f"{self.recipe}{f', arm {arm}' if arm else ''}: {recipe.method['name']} on {recipe.model.name}"
        found: dict[str, Finding | None] = {}
        try:
            with _followed(console, title, names, found) as (begin, end):
                examined = examine(patient, names, on_start=begin, on_done=end)
        finally:
            patient.close()
        counts = ", ".join(f"{examined.count(level)} {level}" for level in ("pass", "warn", "fail"))
        console.print(f"{counts}{f', {len(examined.not_run)} not run' if examined.not_run else ''}")
        return examined

    def _rows(self, examined: dict[str, Examination]) -> dict[str, object]:
        rows = {arm: one.row() for arm, one in examined.items()}
        return {"recipe": self.recipe, **rows[""]} if set(rows) == {""} else {"recipe": self.recipe, "arms": rows}


@contextmanager
def _followed(console: Console, title: str, names: tuple[str, ...], found: dict) -> Iterator[tuple]:
    """The table, growing line by line on a terminal; elsewhere it is printed when it is whole."""
    from rich.live import Live

    running: list[str] = []
    live = Live(console=console, auto_refresh=True, refresh_per_second=8) if console.is_terminal else None

    def begin(name: str) -> None:
        running[:] = [name]
        if live is not None:
            live.update(_table(title, found, running[0], len(names)))

    def end(name: str, finding: Finding | None) -> None:
        found[name] = finding
        if live is not None:
            live.update(_table(title, found, "", len(names)))

    if live is None:
        yield begin, end
        console.print(_table(title, found, "", len(names)))
        return
    with live:
        yield begin, end


def _table(title: str, found: dict[str, Finding | None], running: str, total: int) -> Table:
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    from sightline.doctor.probes import PROBES

    table = Table(title=Text(title), title_justify="left", show_lines=True, expand=True)
    table.add_column("", width=4)
    table.add_column("probe", min_width=12, max_width=20)
    table.add_column("what was found, what it means, what to type", ratio=1)
    for name, finding in found.items():
        label = Text(f"{name}\n") + Text(PROBES[name].title, style="dim")
        if finding is None:
            table.add_row(
                Text("–", style="dim"), label, Text("not run: what it needs could not be opened", style="dim")
            )
            continue
        said = Text(finding.what) + Text(f"\n{finding.meaning}", style="dim")
        count = len(finding.details) if finding.shows_details else 4 if finding.level != "pass" else 0
        said += Text("".join(f"\n  {line[:300]}" for line in finding.details[:count]), style="dim")
        if finding.command:
            said += Text(f"\n{'$' if finding.is_typed else '→'} {finding.command}", style="cyan")
        table.add_row(Text(finding.level, style=f"bold {COLOURS[finding.level]}"), label, said)
    if running:
        waiting = Group(Spinner("dots", text=Text(f"{len(found) + 1} of {total}", style="dim")))
        table.add_row(Text("…"), Text(running), waiting)
    return table
