"""Group-relative credit: one advantage per Rollout from the rewards of its (Record, stream) group.

GRPO (arXiv 2402.03300, section 4.1), Dr.GRPO (arXiv 2503.20783) and leave-one-out (arXiv 2402.14740) differ only in the
baseline and the scale. A masked Rollout takes no part: not in the baseline, not in a denominator, not in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.types import Credit, Group

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["Baseline", "credit_for", "group_advantages", "is_flat"]

Baseline = Literal["grpo", "dr_grpo", "rloo"]

# Rewards that differ by rounding only carry no signal, and dividing by their deviation would invent one.
_SPREAD = 1e-9


def group_advantages(
    rewards: Sequence[float] | Float[np.ndarray, "rollouts"],
    masked: Sequence[bool] | Bool[np.ndarray, "rollouts"] | None = None,
    how: Baseline = "grpo",
    eps: float = 1e-6,
    ddof: int = 1,
) -> Float[np.ndarray, "rollouts"]:
    """Advantages of one group.

    `grpo`: `(r - mean) / (std + eps)`; `dr_grpo`: `r - mean`; `rloo`: `r - mean of the others`.

    Args:
        rewards: one reward per Rollout.
        masked: Rollouts that leave the group; they get 0.
        how: baseline and scale.
        eps: added to the deviation (`grpo` only).
        ddof: the deviation divides by `n - ddof`; 1 is the unbiased one.

    Returns:
        One advantage per Rollout. All are 0 where fewer than two Rollouts are left, or where their rewards are equal.

    Example:
        >>> group_advantages([1.0, 0.0, 1.0, 0.0], how="dr_grpo").tolist()
        [0.5, -0.5, 0.5, -0.5]
        >>> group_advantages([1.0, 0.0, 9.0], masked=[False, False, True]).round(3).tolist()
        [0.707, -0.707, 0.0]
    """
    values = np.asarray(rewards, np.float64)
    kept = _kept(values, masked)
    advantages = np.zeros(len(values))
    count = int(kept.sum())
    if count < 2 or is_flat(values, masked):
        return advantages
    centred = values[kept] - values[kept].mean()
    if how == "grpo":
        centred = centred / (values[kept].std(ddof=ddof) + eps)
    elif how == "rloo":
        centred = centred * count / (count - 1)
    elif how != "dr_grpo":
        raise ValueError(f"unknown baseline {how!r}; choose grpo, dr_grpo or rloo")
    advantages[kept] = centred
    return advantages


def is_flat(
    rewards: Sequence[float] | Float[np.ndarray, "rollouts"],
    masked: Sequence[bool] | Bool[np.ndarray, "rollouts"] | None = None,
) -> bool:
    """The unmasked rewards are all equal: the group teaches nothing. False where fewer than two are left.

    Example:
        >>> is_flat([1.0, 1.0, 0.0], masked=[False, False, True])
        True
    """
    values = np.asarray(rewards, np.float64)
    kept = values[_kept(values, masked)]
    return len(kept) >= 2 and float(np.ptp(kept)) <= _SPREAD


def credit_for(
    group: Group,
    *,
    how: Baseline = "grpo",
    eps: float = 1e-6,
    ddof: int = 1,
    mask_flat: bool = False,
) -> tuple[Credit, ...]:
    """The plain credit: each stream of the Record is its own group, its advantage stands on every sampled token.

    Args:
        group: a scored Group.
        how: baseline and scale, see `group_advantages`.
        eps: added to the deviation.
        ddof: 1 for the unbiased deviation, 0 for the biased one.
        mask_flat: take streams with equal rewards out of the loss and its denominators (else they keep weight 1 and
            advantage 0, so that the KL term still acts on them).

    Returns:
        One Credit per Rollout: weight 1 on sampled tokens of unmasked Rollouts, 0 elsewhere; `parts` holds `advantage`,
        `baseline` (the mean reward of its group), `flat` and `masked` (0 or 1).

    Example:
        >>> credit_for(Group(record=None, rollouts=(), readings=()))
        ()
    """
    if len(group.scores) != len(group):
        raise ValueError("credit needs a scored group: one Scores per rollout")
    rewards = np.array([scores.total for scores in group.scores])
    masked = np.array([scores.is_masked for scores in group.scores], bool)
    streams = np.array([rollout.stream for rollout in group.rollouts])
    credits: list[Credit | None] = [None] * len(group)
    for stream in group.streams:
        at = np.flatnonzero(streams == stream)
        advantages = group_advantages(rewards[at], masked[at], how, eps, ddof)
        flat = is_flat(rewards[at], masked[at])
        out = np.full(len(at), True) if (~masked[at]).sum() < 2 else masked[at]
        baseline = float(rewards[at][~out].mean()) if (~out).any() else 0.0
        for index, advantage, is_out in zip(at, advantages, out, strict=True):
            weight = 0.0 if is_out or (flat and mask_flat) else 1.0
            parts = {"advantage": float(advantage), "baseline": baseline, "flat": float(flat), "masked": float(is_out)}
            sampled = group.rollouts[index].sampled.astype(np.float64)
            credits[index] = Credit(advantage=sampled * advantage, weight=sampled * weight, parts=parts)
    return tuple(credit for credit in credits if credit is not None)


def _kept(
    values: Float[np.ndarray, "rollouts"], masked: Sequence[bool] | Bool[np.ndarray, "rollouts"] | None
) -> Bool[np.ndarray, "rollouts"]:
    kept = np.full(len(values), True) if masked is None else ~np.asarray(masked, bool)
    if len(kept) != len(values):
        raise ValueError(f"{len(values)} rewards but {len(kept)} masks")
    return kept
