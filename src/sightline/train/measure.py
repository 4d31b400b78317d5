"""What is measured about sampled Rollouts before they are scored: old log-probs, entropies, probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.probes.look import LOOK
from sightline.train.exchange import Elsewhere
from sightline.types import Group, Measurement, Record

if TYPE_CHECKING:
    from sightline.train.run import Run

__all__ = ["looked", "measure"]


def measure(run: Run, groups: Sequence[Group], records: Sequence[Record] | None = None) -> list[Group]:
    """What the method's probes and the update need; nothing where the update is strictly on-policy without probes.

    Probes and the learner's own old log-probs come from one scoring pass. Old log-probs recorded in sampling replace
    those of the pass where the recipe says so; an on-policy update needs none, whatever was measured.

    Args:
        run: the run.
        groups: this process's own.
        records: of all processes, where there are several; interventions that swap images choose among theirs.
    """
    how, optim = run.recipe.train.old_logprobs, run.recipe.optim
    probes = run.method.probes()
    if how == "auto":
        how = "none" if optim.inner_steps == optim.epochs == 1 else "learner"
    measured = list(groups)
    if probes or how == "learner":
        others = None if records is None else [image for record in records for image in record.images]
        measured = run.learner.measure(groups, probes, run.step, others=others)
    if how == "sampler":
        return [_as_sampled(group) for group in measured]
    return measured


def looked(run: Run, groups: Sequence[Group]) -> list[Group]:
    """The groups as the report shows them: those it keeps of a logged step also tell where their replies looked.

    A pass of its own over those few, before the update; what the update reads stays as it is.
    """
    train = run.recipe.train
    is_wanted = train.log_attention == "always" or (train.log_attention == "auto" and bool(run.method.probes()))
    if not (is_wanted and run.is_logged):
        return list(groups)
    shown = [group for group in groups[: train.log_groups] if not isinstance(group, Elsewhere)]
    bare = [replace(group, measurements=()) for group in shown]
    seen = iter(run.learner.measure(bare, (replace(LOOK, name="attention"),), run.step) if groups else [])
    return [
        group if i >= train.log_groups or isinstance(group, Elsewhere) else _with_maps(group, next(seen))
        for i, group in enumerate(groups)
    ]


def _with_maps(group: Group, seen: Group) -> Group:
    """The group's own measurements, and the maps of a later pass that it has none of."""
    own = group.measurements or tuple(Measurement() for _ in group.rollouts)
    pairs = zip(own, seen.measurements, strict=True)
    return replace(group, measurements=tuple(replace(m, maps={**later.maps, **m.maps}) for m, later in pairs))


def _as_sampled(group: Group) -> Group:
    """The log-probs recorded in sampling, beside whatever was measured."""
    seen = group.measurements or tuple(Measurement() for _ in group.rollouts)
    return replace(
        group, measurements=tuple(replace(m, logprobs=r.logprobs) for m, r in zip(seen, group.rollouts, strict=True))
    )
