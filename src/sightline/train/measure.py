"""What is measured about sampled Rollouts before they are scored: old log-probs, entropies, probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.types import Group, Measurement

if TYPE_CHECKING:
    from sightline.train.run import Run

__all__ = ["measure"]


def measure(run: Run, groups: Sequence[Group]) -> list[Group]:
    """What the method's probes and the update need; nothing where the update is strictly on-policy without probes.

    Probes and the learner's own old log-probs come from one scoring pass. Old log-probs recorded in sampling replace
    those of the pass where the recipe says so; an on-policy update needs none, whatever was measured.
    """
    how, optim = run.recipe.train.old_logprobs, run.recipe.optim
    probes = run.method.probes()
    if how == "auto":
        how = "none" if optim.inner_steps == optim.epochs == 1 else "learner"
    measured = list(groups)
    if probes or how == "learner":
        measured = run.learner.measure(groups, probes, run.step)
    if how == "sampler":
        return [_as_sampled(group) for group in measured]
    return measured


def _as_sampled(group: Group) -> Group:
    """The log-probs recorded in sampling, beside whatever was measured."""
    seen = group.measurements or tuple(Measurement() for _ in group.rollouts)
    return replace(
        group, measurements=tuple(replace(m, logprobs=r.logprobs) for m, r in zip(seen, group.rollouts, strict=True))
    )
