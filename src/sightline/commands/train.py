"""`sightline train RECIPE`: one run, or one process per arm."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional, Suppress

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.train.distributed import World

__all__ = ["Train", "open_folder"]

# A run may be resumed with other values of these: they change what is shown or how far it goes, not what was computed.
HARMLESS = (
    "summary", "train.steps", "train.checkpoint_every", "train.keep", "train.log_", "train.parallel", "train.timeout",
    "track.", "alarms.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe and write a run folder with a page to look at.

    `torchrun --nproc-per-node N -m sightline train RECIPE` trains it on N accelerators, or processes, of one machine.
    Every key of the recipe can be overridden after its name: `sightline train demo --optim.lr 1e-4 --train.steps 20`.
    The same command on a folder that holds the run resumes it. `sightline recipe show RECIPE --explain` lists the keys.
    """

    recipe: Positional[str]
    """Name of a shipped recipe, a YAML file, or a run folder (which is then resumed)."""
    out: Path | None = None
    """Run folder; default runs/RECIPE-METHOD."""
    fresh: bool = False
    """Start over in a new, numbered folder; the old one stays."""
    dry_run: bool = False
    """Resolve the recipe, count tokens and memory, write nothing."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from sightline.train.distributed import ends_together, is_launched

        return ends_together(self._run) if is_launched() else self._run()

    def _run(self) -> int:
        from sightline.config import load_recipe
        from sightline.train.distributed import joined

        recipe = load_recipe(self.recipe, self.overrides)
        with joined(recipe.model.device, recipe.train.timeout) as world:
            opened = (
                open_folder(self._wanted(recipe), recipe, is_fresh=self.fresh, name=self.recipe)
                if world.is_main
                else Path()
            )
            folder = world.broadcast(opened)
            if not self.dry_run:
                self._train(recipe, folder, world)
            elif world.is_main:
                from sightline.commands.estimate import describe

                print(describe(recipe, folder))
        return 0

    def _train(self, recipe: Recipe, folder: Path, world: World) -> None:
        arms = recipe.arm_recipes()
        if world.is_main and not any(r.evaluation.data or r.data.validation for r in (recipe, *arms.values())):
            print("no evaluation: neither data.validation nor evaluation.data names records")
        if not arms:
            train_one(recipe, folder, world)
        elif world.size > 1:
            from sightline.commands.arms import train_arms_in_turn

            train_arms_in_turn(recipe, folder, world)
        else:
            from sightline.commands.arms import train_arms

            train_arms(recipe, folder)

    def resume(self) -> str:
        """The command that goes on where an interrupted run stopped."""
        from sightline.config import load_recipe

        words = ["sightline", "train", self.recipe, *self.overrides]
        wanted = self._wanted(load_recipe(self.recipe, self.overrides))
        folder = _newest(wanted) if self.fresh else wanted
        return shlex.join([*words, "--out", str(folder)] if self.fresh or self.out else words)

    def _wanted(self, recipe: Recipe) -> Path:
        if self.out is not None:
            return self.out
        path = Path(self.recipe)
        if path.is_dir():
            return path
        method = re.sub(r"[^\w.-]+", "-", recipe.method["name"])  # one's own is called package.module:Class
        return Path("runs") / f"{path.stem}-{method}"


class Silence:
    """The reporter of processes other than the main one."""

    def start(self, manifest: Any, **_: Any) -> None: ...
    def step(self, stats: Any, groups: Any) -> None: ...
    def evaluation(self, row: Any) -> None: ...
    def finish(self) -> None: ...


def train_one(recipe: Recipe, folder: Path, world: World | None = None) -> None:
    """Trains one recipe without arms; the console, the trackers and the page follow it in the main process."""
    if world is not None and not world.is_main:
        from sightline.train.loop import train

        train(recipe, folder, Silence(), world)
        return
    from sightline.report.console import RunConsole
    from sightline.report.reporter import Reporter
    from sightline.report.trackers import build_sink
    from sightline.train.loop import train

    keep_recipe(recipe, folder)
    is_arm = folder.resolve().parent.name == "arms"
    console = RunConsole()
    trackers = [build_sink(kind, folder, project=recipe.track.project) for kind in recipe.track.sinks]
    reporter = Reporter(
        folder,
        sinks=[console, *trackers],
        log_every=recipe.train.log_groups_every,
        groups_per_step=recipe.train.log_groups,
        writes_page=not is_arm,
    )
    try:
        train(recipe, folder, reporter, world)
    finally:
        console.finish()  # gives the terminal back after an interrupt; the second time it prints nothing
    if not is_arm:
        print(f"page: {(folder / 'report.html').resolve()}")


def keep_recipe(recipe: Recipe, folder: Path) -> None:
    """Writes the resolved recipe before anything else, so that a run killed at any moment is known as what it is."""
    from sightline.config import resolved_yaml

    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "recipe.yaml.draft"
    draft.write_text(resolved_yaml(recipe), encoding="utf-8")
    draft.replace(folder / "recipe.yaml")


def open_folder(wanted: Path, recipe: Recipe, *, is_fresh: bool = False, name: str = "RECIPE") -> Path:
    """The folder a run may use: a new one, or the one that holds the same run.

    Raises:
        UserError: the folder holds something else, or a run of another recipe.
    """
    if is_fresh:
        return _numbered(wanted)
    if not wanted.exists() or (wanted.is_dir() and not any(wanted.iterdir())):
        return wanted
    hint = f"sightline train {name} --fresh starts a new folder"
    if not wanted.is_dir():
        raise UserError("this is a file, not a run folder", where=str(wanted), hint=hint)
    stored = wanted / "recipe.yaml"
    if not stored.is_file():
        raise UserError("this folder holds files but no run", where=str(wanted), hint=hint)
    from sightline.config import diff, load_recipe

    changed = [
        f"{d.key} {d.a!r} -> {d.b!r}"
        for d in diff(load_recipe(stored), recipe)
        if not re.sub(r"^arms\.[^.]+\.", "", d.key).startswith(HARMLESS)
    ]
    if changed:
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise UserError(f"this folder holds a run of another recipe: {shown}", where=str(wanted), hint=hint)
    return wanted


def _numbered(wanted: Path) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ...: the first that does not exist yet."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _newest(wanted: Path) -> Path:
    """The folder that `_numbered` handed out last."""
    path, number = wanted, 1
    while (following := wanted.with_name(f"{wanted.name}-{number + 1}")).exists():
        path, number = following, number + 1
    return path
