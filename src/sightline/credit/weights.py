"""Loss normalisation as data: per-token weights that turn the loss of a minibatch into a plain sum.

`loss = sum over tokens of weight * term`. The weights of a minibatch add up to one, so micro-batches and processes only
add: whoever splits a minibatch computes `Totals` of the whole first (parts of it add up) and passes them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.types import Group

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Normalisation", "Totals", "normalised_weights", "totals_of"]

Normalisation = Literal["token", "sequence", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Per stream, what the denominators need. `a + b` are the totals of both parts.

    Attributes:
        tokens: sum of the credit weights of all tokens.
        sequences: Rollouts with at least one token of non-zero weight.

    Example:
        >>> (Totals(tokens={"a": 3.0}, sequences={"a": 1.0}) + Totals(tokens={"b": 2.0}, sequences={"b": 1.0})).tokens
        {'a': 3.0, 'b': 2.0}
    """

    tokens: Mapping[str, float] = field(default_factory=dict)
    sequences: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Totals) -> Totals:
        return Totals(tokens=_sum(self.tokens, other.tokens), sequences=_sum(self.sequences, other.sequences))


def totals_of(groups: Iterable[Group]) -> Totals:
    """Counts the loss-carrying tokens and sequences of groups with credit, by stream.

    Example:
        >>> totals_of([])
        Totals(tokens={}, sequences={})
    """
    tokens: dict[str, float] = {}
    sequences: dict[str, float] = {}
    for group in groups:
        for rollout, weight in zip(group.rollouts, _weights(group), strict=True):
            total = float(weight.sum())
            tokens[rollout.stream] = tokens.get(rollout.stream, 0.0) + total
            sequences[rollout.stream] = sequences.get(rollout.stream, 0.0) + (total > 0)
    return Totals(tokens=tokens, sequences=sequences)


def normalised_weights(
    groups: Sequence[Group],
    how: Normalisation = "token",
    stream_weights: Mapping[str, float] | None = None,
    totals: Totals | None = None,
) -> tuple[tuple[Float[np.ndarray, "tokens"], ...], ...]:
    """Weights `c` with `loss = sum c * term`, from the credit weights `w` and the stream weights `s`.

    * `token`: `c = s w / sum(s w)`, the mean over all tokens of the minibatch;
    * `sequence`: `c = s w / sum_i(w) / sum(s over sequences)`, the mean over Rollouts of each one's token mean;
    * `stream`: `c = s w / sum_stream(w) / sum(s over streams)`, the mean over streams of each one's token mean.

    Args:
        groups: groups with credit.
        how: which mean.
        stream_weights: weight of each stream (1 where it is not named).
        totals: totals of the whole minibatch where `groups` is only a part of it.

    Returns:
        For each group, one array per Rollout over its `ids`.

    Example:
        >>> normalised_weights([])
        ()
    """
    if how not in ("token", "sequence", "stream"):
        raise ValueError(f"unknown normalisation {how!r}; choose token, sequence or stream")
    given = stream_weights or {}
    totals = totals_of(groups) if totals is None else totals
    scale = _scales(how, given, totals)
    rows = []
    for group in groups:
        row = []
        for rollout, weight in zip(group.rollouts, _weights(group), strict=True):
            own = float(weight.sum()) if how == "sequence" else 1.0
            row.append(weight * (scale.get(rollout.stream, 0.0) / own) if own > 0 else weight * 0.0)
        rows.append(tuple(row))
    return tuple(rows)


def _scales(how: Normalisation, given: Mapping[str, float], totals: Totals) -> dict[str, float]:
    """The factor of each stream; 0 where nothing of it carries loss."""
    counts = totals.sequences if how == "sequence" else totals.tokens
    alive = {stream: given.get(stream, 1.0) for stream, count in counts.items() if count > 0}
    if how == "stream":
        whole = sum(alive.values())
        return {stream: s / counts[stream] / whole for stream, s in alive.items() if whole > 0}
    whole = sum(s * counts[stream] for stream, s in alive.items())
    return {stream: s / whole for stream, s in alive.items() if whole > 0}


def _weights(group: Group) -> list[Float[np.ndarray, "tokens"]]:
    if len(group.credits) != len(group):
        raise ValueError("loss weights need a group with credit: one Credit per rollout")
    return [np.asarray(credit.weight, np.float64) for credit in group.credits]


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {stream: a.get(stream, 0.0) + b.get(stream, 0.0) for stream in dict.fromkeys([*a, *b])}
