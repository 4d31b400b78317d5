"""Intervals and paired tests for evaluation figures; numpy only, every draw seeded.

Example:
    >>> mean_interval([1.0, 0.0, 1.0, 1.0], seed=0)
    Estimate(mean=0.75, low=0.25, high=1.0, n=4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["DRAWS", "Estimate", "mcnemar", "mean_interval", "mean_intervals", "paired_difference", "wilson"]

DRAWS = 2000
_CHUNK = 4_000_000  # resampled values held at once: bounds the memory of a large evaluation


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` values with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def row(self) -> dict[str, float]:
        """The form in which it stands in JSON files."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}

    def describe(self, scale: float = 1.0, digits: int = 3) -> str:
        """`0.750 [0.250, 1.000]`.

        Example:
            >>> Estimate(0.75, 0.25, 1.0, 4).describe(scale=100, digits=1)
            '75.0 [25.0, 100.0]'
        """
        mean, low, high = (f"{scale * value:.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def mean_interval(values: Sequence[float], *, seed: int = 0, draws: int = DRAWS, level: float = 0.95) -> Estimate:
    """Mean with its percentile bootstrap interval: `draws` resamples of size n, with replacement.

    Args:
        values: at least one finite number.
        seed: the same seed and values give the same interval.
        draws: number of resamples.
        level: coverage.

    Raises:
        ValueError: if `values` is empty or holds a number that is not finite.

    Source: Efron, Bootstrap methods (1979), the percentile interval.
    """
    return mean_intervals([values], seed=seed, draws=draws, level=level)[0]


def mean_intervals(
    columns: Sequence[Sequence[float]], *, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> list[Estimate]:
    """`mean_interval` of each of several equally long columns, which share their resamples and so most of the cost.

    Example:
        >>> both = mean_intervals([[1.0, 0.0, 1.0, 1.0], [0.2, 0.4, 0.4, 0.1]])
        >>> both[0] == mean_interval([1.0, 0.0, 1.0, 1.0])
        True
    """
    data = np.asarray(columns, dtype=np.float64)
    if data.ndim != 2 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError("an interval needs at least one value, all of them finite")
    n = data.shape[1]
    means = np.empty((draws, len(data)))
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        picked = random.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(picked.ravel(), minlength=count * n).reshape(count, n)
        means[start : start + count] = times @ data.T / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [Estimate(float(d.mean()), float(lo), float(hi), n) for d, lo, hi in zip(data, low, high, strict=True)]


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, draws: int = DRAWS, level: float = 0.95
) -> Estimate:
    """Mean of `after - before` over pairs, with the bootstrap interval over pairs.

    Example:
        >>> paired_difference([0, 0, 1, 0], [1, 1, 1, 1]).mean
        0.75

    Raises:
        ValueError: if the two do not run in parallel or hold no pair.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values must run in parallel, got {first.size} and {second.size}")
    return mean_interval((second - first).tolist(), seed=seed, draws=draws, level=level)


def mcnemar(before: Sequence[bool | float], after: Sequence[bool | float]) -> float:
    """Exact two-sided McNemar p-value of two parallel right/wrong columns.

    With `n` pairs that disagree, `k` of them in the rarer direction: `p = min(1, 2 * P[Binomial(n, 1/2) <= k])`.

    Example:
        >>> mcnemar([0] * 6 + [1], [1] * 6 + [1])
        0.03125

    Raises:
        ValueError: if the two do not run in parallel.
    """
    if len(before) != len(after):
        raise ValueError(f"paired values must run in parallel, got {len(before)} and {len(after)}")
    gained = sum(1 for a, b in zip(before, after, strict=True) if not a and b)
    lost = sum(1 for a, b in zip(before, after, strict=True) if a and not b)
    n, k = gained + lost, min(gained, lost)
    return float(min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def wilson(successes: float, n: int, *, z: float = 1.959963984540054) -> Estimate:
    """Wilson score interval of a share, which stays inside [0, 1] and is honest for few records.

    `center = (p + z^2 / 2n) / (1 + z^2 / n)`, half-width `z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)`.

    Example:
        >>> wilson(10, 10).describe()
        '1.000 [0.722, 1.000]'

    Raises:
        ValueError: if `n` is not positive.

    Source: Wilson, Probable inference (1927).
    """
    if n <= 0:
        raise ValueError("a share needs at least one trial")
    share = successes / n
    scale = 1 + z * z / n
    center = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(0.0, center - half), min(1.0, center + half), n)
