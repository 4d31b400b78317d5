"""The training loop. Every name on this page is one jump away.

Records become prompts, prompts become Rollouts, Rollouts are read, measured, scored and credited, the learner executes
the credit, and the reporter shows it. What is particular to a paper stands in `methods/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sightline.train.anchoring import anchor
from sightline.train.distributed import World
from sightline.train.exchange import brought
from sightline.train.health import alarms, group_metrics
from sightline.train.held_out import evaluate
from sightline.train.measure import looked, measure
from sightline.train.rounds import Rounds
from sightline.train.run import Run, gather, look_ahead, open_run, sample
from sightline.train.saving import save
from sightline.train.scoring import credit, score
from sightline.train.supervised import imitate
from sightline.train.timing import Phases
from sightline.types import Group, StepStats

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.geometry.frames import Frame
    from sightline.train.learner import Update

__all__ = ["Reporter", "train"]


class Reporter(Protocol):
    """Shows and stores what happens; implemented in `report/reporter.py`."""

    def start(
        self, manifest: Mapping[str, Any], *, resume_step: int, decode_piece: Any, frame: Frame | None
    ) -> None: ...
    def step(self, stats: StepStats, groups: Sequence[Group]) -> None: ...
    def evaluation(self, row: Mapping[str, Any]) -> None: ...
    def finish(self) -> None: ...


def train(recipe: Recipe, folder: Path, reporter: Reporter, world: World | None = None) -> None:
    """Trains, or continues exactly the run that stands in `folder`.

    Args:
        recipe: the resolved recipe, without arms.
        folder: the run folder; its newest checkpoint is where a resumed run starts.
        reporter: receives every step, logged group and evaluation.
        world: the processes of the run; each calls this, with a reporter of its own.
    """
    with open_run(recipe, folder, world) as run:
        reporter.start(run.manifest(), resume_step=run.step, decode_piece=run.policy.piece, frame=run.policy.frame)
        if run.step == 0:
            evaluate(run, reporter, "start")
        between = Phases(run.policy.device)
        while run.step < run.steps:
            run.enter_stage()
            groups, stats = learn(run)
            run.step += 1
            reporter.step(replace(stats, seconds={**stats.seconds, **between.seconds()}), groups)
            between = Phases(run.policy.device)
            if run.is_due(recipe.train.evaluate_every) and run.step < run.steps:
                evaluate(run, reporter, f"step {run.step}")
            if (run.is_due(recipe.train.checkpoint_every) or run.is_best) and run.step < run.steps:
                with between.timed("checkpoint"):  # stands in the line of the next step
                    save(run)
        if not run.is_finished:
            evaluate(run, reporter, "end")
            save(run, is_finished=True)
        reporter.finish()


def learn(run: Run) -> tuple[list[Group], StepStats]:
    """One step of the stage that runs now."""
    if run.stage.kind == "reinforcement":
        return reinforce(run)
    return imitate(run) if run.stage.anchor is None else anchor(run)


def reinforce(run: Run) -> tuple[list[Group], StepStats]:
    """One step of reinforcement learning."""
    recipe, method = run.recipe, run.method
    rounds = Rounds(recipe.data.records_per_step, recipe.train.dynamic_sampling.max_rounds, run.policy.device)
    while rounds.missing:  # one round, or more where dynamic sampling replaces groups without signal
        with rounds.timed("wait"):
            records = run.data.next(rounds.missing)
        own = run.world.part(records)
        with rounds.timed("sample"):
            run.follow()
            groups = gather(own, sample(run, own), run.policy.frame)
        with rounds.timed("measure"):
            groups = measure(run, groups, records)
        with rounds.timed("score"):
            groups = score(method, groups, run.context(), world=run.world)
        rounds.add(credit(method, groups, mask_truncated=recipe.train.mask_truncated, world=run.world))
    with rounds.timed("measure"):
        shown = looked(run, rounds.groups)
        shown = brought(run.world, shown, recipe.train.log_groups) if run.is_logged else shown
    look_ahead(run)
    update = run.learner.step(rounds.groups, method, run.step)
    return shown, step_stats(run, rounds, update)


def step_stats(run: Run, rounds: Rounds, update: Update) -> StepStats:
    """One event line: rewards, replies, update, cost, and the alarms that ring."""
    metrics = {**group_metrics(rounds.groups), **rounds.metrics(), **update.metrics, **run.scoring_metrics()}
    run.history.append(metrics)
    return StepStats(
        step=run.step,
        metrics=metrics,
        seconds={**rounds.seconds, **update.seconds},
        alarms=(*alarms(run.history, run.recipe.alarms), *run.sampler.alarms()),
    )
