"""Attention as a reward: what masses of chosen rows say, as numbers. Read without gradient, in a scoring pass.

A *row* is the attention of one token of a reply over everything it may see; it sums to one. `region` is its mass on
the cells of the gold regions, `image` its mass on the other cells of the images. Two questions are asked of them:

* SAYO (arXiv 2602.08241): does the policy look at the region more than at the average cell? `region_ratio`,
  `ratio_score`.
* Faithful-MR1 (arXiv 2605.22072, in our reading): does it look where the image changes what it says? `concentration`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = [
    "Concentration",
    "Denominator",
    "Pooling",
    "RatioForm",
    "concentration",
    "focus_overlap",
    "length_factor",
    "ratio_score",
    "region_ratio",
    "sinks",
    "top_rows",
]

Pooling = Literal["ratio_of_means", "mean_of_ratios"]
Denominator = Literal["image_mean", "outside_mean", "image_mean_no_sink", "image_mass"]
RatioForm = Literal["tanh_log", "half_shifted", "log", "share"]
Concentration = Literal["ratio_tanh", "share", "weighted_mean", "rank_corr"]


def region_ratio(
    region: Float[np.ndarray, "rows"],
    image: Float[np.ndarray, "rows"],
    cells: float,
    visual: int,
    *,
    pooling: Pooling = "ratio_of_means",
    denominator: Denominator = "image_mean",
    sink: Float[np.ndarray, "rows"] | None = None,
    sink_cells: int = 0,
    eps: float = 1e-8,
) -> float:
    """`x = (a + eps) / (v + eps)`: attention per cell of the region over attention per cell of the image.

    `a = region / cells`. `v` by denominator: `image_mean` = (region + image) / visual, `outside_mean` = image /
    (visual - cells), `image_mean_no_sink` = (region + image - sink) / (visual - sink_cells); `image_mass` compares
    masses, a = region and v = region + image. The mean over rows is taken of a and v, or of their ratio. At most
    `visual / cells`; exactly 1 where the region is the whole image.

    Args:
        region: mass on the region's cells, per selected row.
        image: mass on the other cells of the images.
        cells: size of the region in cells (the sum of the coverages where cells count by coverage).
        visual: cells of all images.
        sink: mass on cells that collect attention whatever is asked, outside the region; `image_mean_no_sink` only.
        sink_cells: how many they are.

    Example:
        >>> round(region_ratio(np.array([0.2, 0.4]), np.array([0.1, 0.1]), cells=4, visual=16), 3)
        3.0
    """
    region, image = np.asarray(region, np.float64), np.asarray(image, np.float64)
    if denominator == "image_mass":
        a, v = region, region + image
    elif denominator == "outside_mean":
        # a region that covers everything leaves nothing outside: compared with itself
        a = region / cells
        v = image / (visual - cells) if visual > cells else a
    elif denominator == "image_mean_no_sink":
        lost = 0.0 if sink is None else np.asarray(sink, np.float64)
        a, v = region / cells, (region + image - lost) / max(visual - sink_cells, 1)
    else:
        a, v = region / cells, (region + image) / visual
    if pooling == "mean_of_ratios":
        return float(np.mean((a + eps) / (v + eps)))
    return float((a.mean() + eps) / (v.mean() + eps))


def ratio_score(ratio: float, form: RatioForm = "tanh_log", *, share: float = 0.0) -> float:
    """The reward for a ratio `x`.

    `tanh_log`: tanh(log x) = (x^2 - 1) / (x^2 + 1), in (-1, 1), the released code; `half_shifted`: x^2 / (x^2 + 1), in
    (0, 1), the paper; `log`: log x, unbounded; `share`: the region's share of the attention on the image, in [0, 1].

    Args:
        ratio: x > 0.
        share: region / (region + image), read by `share` only.

    Example:
        >>> [round(ratio_score(x), 2) for x in (0.25, 0.5, 1, 2, 4, 10)]
        [-0.88, -0.6, 0.0, 0.6, 0.88, 0.98]
    """
    if form == "share":
        return share
    if form == "log":
        return math.log(ratio)
    square = ratio * ratio
    return square / (square + 1) if form == "half_shifted" else (square - 1) / (square + 1)


def length_factor(tokens: int, shortest: int = 60, longest: int = 100) -> float:
    """SAYO's length window: 1 inside, `0.6 longest / n` above it, `0.6 n / shortest` below; range [0, 1].

    Example:
        >>> [round(length_factor(n), 2) for n in (30, 60, 100, 200)]
        [0.3, 1.0, 1.0, 0.3]
    """
    over = 1.0 if tokens <= longest else 0.6 * longest / tokens
    under = 1.0 if tokens >= shortest else 0.6 * tokens / shortest
    return over * under


def top_rows(
    values: Float[np.ndarray, "tokens"], valid: Bool[np.ndarray, "tokens"], share: float
) -> Bool[np.ndarray, "tokens"]:
    """The `max(1, floor(share n))` valid tokens with the largest values; of equal ones the earlier. None if none is.

    Example:
        >>> top_rows(np.array([0.1, 0.9, 0.5, 7.0]), np.array([True, True, True, False]), 0.67).tolist()
        [False, True, True, False]
    """
    chosen = np.zeros(len(values), bool)
    at = np.flatnonzero(valid)
    count = min(len(at), max(1, math.floor(share * len(at) + 1e-9)))
    chosen[at[np.argsort(-np.asarray(values, np.float64)[at], kind="stable")[:count]]] = True
    return chosen


def sinks(
    attention: Float[np.ndarray, "rows visual"], region: Bool[np.ndarray, "visual"], deviations: float = 3.0
) -> Bool[np.ndarray, "visual"]:
    """Cells whose mean attention over all rows exceeds mean + `deviations` sd of all cells, unless in the region.

    Example:
        >>> sinks(np.array([[0.5] + [0.01] * 20]), np.zeros(21, bool)).nonzero()[0].tolist()
        [0]
    """
    column = np.asarray(attention, np.float64).mean(axis=0)
    return (column > column.mean() + deviations * column.std()) & ~region


def focus_overlap(
    attention: Float[np.ndarray, "rows visual"], focus: Float[np.ndarray, "visual"]
) -> Float[np.ndarray, "rows"]:
    """`sum_j F_j A_tj`: attention of each row weighted by the map F of the `<Focus>` row, which is renormalised.

    Example:
        >>> focus_overlap(np.array([[0.3, 0.1], [0.1, 0.3]]), np.array([0.5, 0.0])).tolist()
        [0.3, 0.1]
    """
    total = float(focus.sum())
    weights = focus / total if total > 0 else np.full(len(focus), 1 / max(len(focus), 1))
    return np.asarray(attention, np.float64) @ np.asarray(weights, np.float64)


def concentration(
    attention: Float[np.ndarray, "tokens"],
    effect: Float[np.ndarray, "tokens"],
    *,
    form: Concentration = "ratio_tanh",
    weights: Literal["topk", "soft"] = "topk",
    share: float = 0.4,
    least: int = 4,
    eps: float = 1e-8,
) -> float:
    """How far attention `a_t` stands where the image matters, `c_t`; range [0, 1], one half where it does not care.

    With the weights `w` (equal on the `ceil(share n)` tokens of the largest effect, or `c_t / sum c`):
    `ratio_tanh`: r = sum w a / mean a, r^2 / (1 + r^2), free of the level of a; `share`: sum over those tokens of a /
    sum a; `weighted_mean`: sum w a; `rank_corr`: (1 + Spearman(c, a)) / 2. A reply of fewer than `least` tokens gets
    what constant attention would.

    Args:
        attention: mass per counted token.
        effect: causal effect per counted token, not negative.

    Example:
        >>> a, c = np.array([0.4, 0.1, 0.1, 0.1, 0.1]), np.array([2.0, 0, 0, 0, 0])
        >>> round(concentration(a, c, share=0.2), 3), concentration(np.full(5, 0.2), c)
        (0.862, 0.5)
    """
    a, c = np.asarray(attention, np.float64), np.asarray(effect, np.float64)
    if len(a) < max(least, 1):
        a = np.full(len(a), a.mean() if len(a) else 0.0)
    if form == "rank_corr":
        return 0.5 * (1 + _spearman(c, a))
    chosen = _largest(c, share)
    if form == "share":
        # the quotient of constant attention is the share of the tokens themselves
        return float((a[chosen].sum() + eps * chosen.sum()) / (a.sum() + eps * len(a))) if len(a) else share
    focused = _weighted(a, c, chosen if weights == "topk" else None)
    if form == "weighted_mean":
        return focused
    ratio = (focused + eps) / ((float(a.mean()) if len(a) else 0.0) + eps)
    return ratio * ratio / (1 + ratio * ratio)


def _largest(values: np.ndarray, share: float) -> np.ndarray:
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[: math.ceil(share * len(values) - 1e-9)]] = True
    return chosen


def _weighted(a: np.ndarray, c: np.ndarray, chosen: np.ndarray | None) -> float:
    if not len(a):
        return 0.0
    if chosen is not None:
        return float(a[chosen].mean())
    total = float(c.sum())
    # without any effect no token is preferred
    return float(c @ a / total) if total > 0 else float(a.mean())


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of the ranks, ties ranked by their mean; 0 where either is constant."""
    if len(x) < 2:
        return 0.0
    ranks = [_ranks(v) - (len(v) - 1) / 2 for v in (x, y)]
    norm = math.sqrt(float(ranks[0] @ ranks[0]) * float(ranks[1] @ ranks[1]))
    return float(ranks[0] @ ranks[1]) / norm if norm > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[inverse]
