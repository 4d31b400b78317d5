"""Two evaluations of the same records, pair by pair: which of two policies, or of two modes, is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.errors import UserError
from sightline.evaluate.metrics import METRICS, SHARES
from sightline.evaluate.runner import EvaluationRow
from sightline.evaluate.statistics import Estimate, mcnemar, paired_difference

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric in both tables: its two means over the pairs, and the mean difference with its paired interval.

    `p` is McNemar's exact p-value for metrics that are right or wrong per record, None for the others.
    """

    before: float
    after: float
    difference: Estimate
    p: float | None = None

    @property
    def is_off_zero(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Per pair of modes, every metric both tables hold. `unpaired` counts records that stand in one table only."""

    differences: Mapping[str, Mapping[str, Difference]]
    unpaired: int = 0


def compare(
    before: Sequence[EvaluationRow],
    after: Sequence[EvaluationRow],
    *,
    modes: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Pairs the rows of two tables by record id and compares every metric.

    Args:
        before: rows of the first table.
        after: rows of the second.
        modes: which mode of `after` meets which mode of `before`; default: each mode both hold meets itself.
        seed: of the bootstrap.

    Raises:
        UserError: if the tables share no record in the chosen modes.
    """
    first, second = _by_mode(before), _by_mode(after)
    chosen = modes if modes is not None else {mode: mode for mode in first if mode in second}
    differences: dict[str, dict[str, Difference]] = {}
    unpaired = 0
    for mode, other in chosen.items():
        left, right = first.get(mode, {}), second.get(other, {})
        shared = [record for record in left if record in right]
        unpaired += len(left) + len(right) - 2 * len(shared)
        if shared:
            name = mode if mode == other else f"{mode} -> {other}"
            differences[name] = _metrics([(left[record], right[record]) for record in shared], seed)
    if not differences:
        held = f"the first holds {', '.join(first) or 'nothing'}, the second {', '.join(second) or 'nothing'}"
        raise UserError(f"the two tables share no record in the chosen modes; {held}")
    return Comparison(differences=differences, unpaired=unpaired)


def _by_mode(rows: Sequence[EvaluationRow]) -> dict[str, dict[str, EvaluationRow]]:
    tables: dict[str, dict[str, EvaluationRow]] = {}
    for row in rows:
        tables.setdefault(row.mode, {})[row.record] = row
    return tables


def _metrics(pairs: Sequence[tuple[EvaluationRow, EvaluationRow]], seed: int) -> dict[str, Difference]:
    found: dict[str, Difference] = {}
    for name in dict.fromkeys([*METRICS, *(name for row, _ in pairs for name in row.metrics)]):
        both = [(a.metrics[name], b.metrics[name]) for a, b in pairs if name in a.metrics and name in b.metrics]
        if not both:
            continue
        before, after = [a for a, _ in both], [b for _, b in both]
        is_binary = name in SHARES and all(value in (0.0, 1.0) for value in (*before, *after))
        found[name] = Difference(
            before=sum(before) / len(both),
            after=sum(after) / len(both),
            difference=paired_difference(before, after, seed=seed),
            p=mcnemar(before, after) if is_binary else None,
        )
    return found
