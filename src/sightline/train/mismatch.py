"""The correction of `objectives/importance.py`, put on a Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sightline.objectives.importance import mismatch, truncated_importance
from sightline.types import Group

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from sightline.policy.batch import Batch

__all__ = ["corrected"]


def corrected(
    batch: Batch, groups: Sequence[Group], logprobs: Float[Tensor, "scored"], cap: float | None
) -> tuple[Batch, dict[str, float]]:
    """A Batch whose advantages are weighted by `min(pi_old / pi_sampler, C)`, and what to log.

    Surrogates are linear in the advantage, so this weighs each token's surrogate; KL terms and denominators, which read
    the loss weight, stay as they are. Without old log-probs the update is on-policy and `logprobs` are the old ones:
    no pass of its own is needed.

    Args:
        batch: with credit.
        groups: the Groups of the batch in the order of its trees; their Rollouts hold what the sampler recorded.
        logprobs: the learner's, of this forward pass.
        cap: C; None leaves the batch as it is.
    """
    if cap is None or batch.credit is None or batch.paths is None:
        return batch, {}
    sampled = batch.gather([[rollout.logprobs for rollout in group.rollouts] for group in groups])
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    weight = truncated_importance(old, sampled, cap)
    found = mismatch(old, sampled, cap, batch.credit.weight)
    credit = replace(batch.credit, positive=batch.credit.positive * weight, negative=batch.credit.negative * weight)
    paths = replace(batch.paths, advantage=batch.paths.advantage * weight[batch.paths.token])
    terms = {
        "policy/engine_weight": float(found.weight),
        "policy/engine_capped": float(found.capped),
        "policy/engine_shift": float(found.shift),
    }
    return replace(batch, credit=credit, paths=paths), terms
