"""What is measured about sampled Rollouts before they are scored: old log-probs, entropies, probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.types import Group, Measurement

if TYPE_CHECKING:
    from sightline.train.run import Run

__all__ = ["measure"]


def measure(run: Run, groups: Sequence[Group]) -> list[Group]:
    """Old log-probs, where the update is not strictly on-policy: the learner's own, or those recorded in sampling.

    Raises:
        SightlineError: the method asks for probes, which no pass here measures.
    """
    if run.method.probes():
        raise SightlineError(f"{type(run.method).__name__} asks for probes, which this learner does not measure")
    how, optim = run.recipe.train.old_logprobs, run.recipe.optim
    if how == "auto":
        how = "none" if optim.inner_steps == optim.epochs == 1 else "learner"
    if how == "learner":
        return run.learner.measure(groups)
    if how == "sampler":
        return [replace(g, measurements=tuple(Measurement(logprobs=r.logprobs) for r in g.rollouts)) for g in groups]
    return list(groups)
