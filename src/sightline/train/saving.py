"""What a checkpoint keeps of a run, and how a run, of as many processes as there are now, continues from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sightline.errors import UserError
from sightline.train.checkpoint import REMEDY, Saved
from sightline.train.sharding import full_state

if TYPE_CHECKING:
    from sightline.train.run import Run

__all__ = ["restore", "save"]


def save(run: Run, *, is_finished: bool = False) -> None:
    """Writes a checkpoint: a loadable model, optimiser, data position, archive, history."""
    import torch

    patience = run.recipe.alarms.patience
    state = {
        "is_finished": is_finished,
        "data": run.data.state(),
        "archive": run.archive.state(),
        "history": [dict(m) for m in run.history[-patience:]],
        "best": run.best if run.best > float("-inf") else None,
    }
    dtype = getattr(torch, run.recipe.model.dtype)
    tensors = {**run.learner.state(is_rounded=dtype != torch.float32), "rng": torch.get_rng_state()}
    is_sharded = run.learner.lockstep.is_sharded
    weights = full_state(run.policy, run.world, dtype=dtype) if is_sharded else None
    run.checkpoints.save(run.step, run.policy, state, tensors, is_best=run.is_best, world=run.world, weights=weights)
    run.is_best = False


def restore(run: Run, saved: Saved) -> None:
    """Continues where `saved` was written.

    Raises:
        UserError: it lacks a part, or its tensors do not fit the model.
    """
    try:
        _restore(run, saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the checkpoint does not fit this run: {error!r}", where=str(saved.folder), hint=REMEDY
        ) from error


def _restore(run: Run, saved: Saved) -> None:
    import torch

    state, tensors = saved.state, saved.tensors(run.learner.like, run.world)
    run.step = saved.step
    # more steps than the finished run had: it goes on
    run.is_finished = bool(state["is_finished"]) and saved.step >= run.steps
    run.data.load_state(state["data"])
    run.archive.load_state(state["archive"], where=str(saved.folder / "state.json"))
    run.history = list(state["history"])
    run.best = state["best"] if state["best"] is not None else float("-inf")
    torch.set_rng_state(tensors.pop("rng"))
    run.learner.load_state(tensors)
