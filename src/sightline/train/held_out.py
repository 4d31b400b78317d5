"""Evaluation while training: held-out records over all processes, one table and one line per mode."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sightline.train.exchange import share_verdicts
from sightline.train.sharding import whole

if TYPE_CHECKING:
    from sightline.evaluate.runner import Evaluation
    from sightline.train.loop import Reporter
    from sightline.train.run import Run

__all__ = ["evaluate"]


def evaluate(run: Run, reporter: Reporter, label: str) -> None:
    """Held-out metrics of every mode of the recipe, greedy unless it says otherwise. Notes the best checkpoint."""
    from sightline.evaluate.faithfulness import faithfulness
    from sightline.evaluate.runner import write_table

    wanted = run.recipe.evaluation
    if not run.evaluation_records:
        return
    run.follow()
    is_local = run.recipe.sampling.server is None
    # servers answer without our weights, which may then be too large to be held whole
    with whole(run.policy) if is_local or wanted.faithfulness else nullcontext():
        result = _answers(run, label)
        if run.world.is_main:
            write_table(result, run.folder / "evaluations" / f"step-{run.step:06d}.jsonl")
        for row in result.events():
            if wanted.faithfulness:
                # its draws are compared record by record, in one place
                with run.world.agreeing():
                    if run.world.is_main:
                        found = faithfulness(run.policy, run.evaluation_records, row["mode"], **_asked(run))
                        row["faithfulness"] = found.row()
            reporter.evaluation(row)
    accuracy = result.estimates[wanted.modes[0]].get("accuracy")
    run.is_best = run.step > 0 and accuracy is not None and accuracy.mean > run.best
    if accuracy is not None:
        run.best = max(run.best, accuracy.mean)


def _answers(run: Run, label: str) -> Evaluation:
    """Each process answers its share of the records; all of them know all rows."""
    from sightline.evaluate.runner import Evaluation, evaluate, merged

    wanted, world, records = run.recipe.evaluation, run.world, run.evaluation_records
    given: dict[str, Any] = {"step": run.step, "label": label, **_asked(run)}
    if world.size == 1:
        return evaluate(run.policy, records, wanted.modes, **given)
    own = world.part(records)
    with world.agreeing():
        found = evaluate(run.policy, own, wanted.modes, draws=2, **given) if own else Evaluation(rows=(), estimates={})
    share_verdicts(world, run.judge)
    return merged(world.gather(found), records, wanted.modes, seed=wanted.seed)


def _asked(run: Run) -> dict[str, Any]:
    from sightline.sampling.base import SamplingSettings

    wanted = run.recipe.evaluation
    return {
        "sampler": run.sampler, "judge": run.judge, "config": wanted.crops, "seed": wanted.seed,
        "is_shown": run.world.is_main and sys.stderr.isatty(),
        "settings": SamplingSettings(
            temperature=wanted.temperature,
            max_new_tokens=wanted.max_new_tokens or run.recipe.sampling.max_new_tokens,
        ),
    }  # fmt: skip
