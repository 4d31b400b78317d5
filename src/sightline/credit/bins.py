"""Credit relative to scale: Rollouts are compared with those whose evidence box is about as large (SRPO).

Ground-R1 v3 (arXiv 2505.20272v3): with one baseline per group the large boxes, which are right more often, win against
the small ones and looking closely dies out. Here each Rollout first falls into a bin by the area of its box,
`a = area(box) / area(image)`, `s = 1 .. K`, and its advantage has a term within the bin and one between the bins:

    A = (r - mean_s) / (std_s + eps)  +  (b - mean(b)) / (std(b) + eps),   b = 1 if s = argmax_k mean_k else 0.

What the paper leaves open is a field of `BinConfig`, with our reading as its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sightline.credit.config import Settings
from sightline.credit.group import is_flat

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["NO_BOX", "BinConfig", "BinTerms", "bin_advantages", "bin_edges", "bins_of"]

NO_BOX = 0
"""The bin of Rollouts without a box; the others count from 1, as in the paper."""

_Share = Annotated[float, Field(gt=0, lt=1)]


class BinConfig(Settings):
    """How boxes are sorted into bins, and what happens at the edges of the definition."""

    edges: Literal["equal", "quantile", "step_quantile"] | Annotated[tuple[_Share, ...], Field(strict=False)] = Field(
        default="equal",
        description="borders of the bins as shares of the image: `equal` widths, quantiles of the areas in the group "
        "or in all groups of the step, or a rising list such as [0.1, 0.3]",
    )
    bins: int = Field(default=3, ge=1, le=64, description="number of bins (K); a list of edges has its own number")
    eps: float = Field(default=1e-4, ge=0, description="added to both deviations")
    ddof: int = Field(default=0, ge=0, le=1, description="deviations divide by n - ddof; 0: population")
    lone: Literal["zero", "group"] = Field(
        default="zero",
        description="a bin with one Rollout: its intra term is 0, or taken against mean and deviation of the group",
    )
    single: Literal["grpo", "skip"] = Field(
        default="grpo",
        description="a group whose boxes share one bin: the inter term is 0, or the group carries no loss",
    )
    ties: Literal["all", "smallest"] = Field(
        default="all", description="several bins with the best mean: all of them win, or that of the smallest boxes"
    )
    empty: Literal["excluded", "zero"] = Field(
        default="excluded", description="a bin without Rollouts: takes no part, or competes with a mean of 0"
    )
    no_box: Literal["own_bin", "whole_image"] = Field(
        default="own_bin",
        description="Rollouts without a box: a bin of their own that cannot win, or a box around the whole image",
    )
    refined: Literal["last", "first", "smallest"] = Field(
        default="last", description="which valid box counts where a Rollout asked for several"
    )
    clipped: Literal["inside", "no_box"] = Field(
        default="inside", description="a box that sticks out: the area of its part inside the image, or no box"
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("edges"), list):
            return {**values, "edges": tuple(values["edges"])}
        return values

    @model_validator(mode="after")
    def _edges_rise(self) -> BinConfig:
        if isinstance(self.edges, tuple) and list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must rise, got {list(self.edges)}")
        return self

    @property
    def count(self) -> int:
        """Number of bins (K)."""
        return len(self.edges) + 1 if isinstance(self.edges, tuple) else self.bins


@dataclass(frozen=True, slots=True, kw_only=True)
class BinTerms:
    """Both terms of one group, per Rollout; `counts` is false where the Rollout carries no loss."""

    intra: Float[np.ndarray, "rollouts"]
    inter: Float[np.ndarray, "rollouts"]
    counts: Bool[np.ndarray, "rollouts"]


def bin_edges(config: BinConfig, areas: Sequence[float]) -> tuple[float, ...]:
    """The K - 1 inner borders of the bins; quantiles are taken over `areas` (equal widths where there are none).

    Example:
        >>> bin_edges(BinConfig(edges="quantile", bins=2), [0.1, 0.2, 0.4]), bin_edges(BinConfig(bins=4), [])
        ((0.2,), (0.25, 0.5, 0.75))
    """
    if isinstance(config.edges, tuple):
        return config.edges
    shares = [k / config.bins for k in range(1, config.bins)]
    if config.edges == "equal" or not len(areas):
        return tuple(shares)
    return tuple(float(q) for q in np.quantile(np.asarray(areas, np.float64), shares))


def bins_of(areas: Sequence[float | None], edges: Sequence[float]) -> Int[np.ndarray, "rollouts"]:
    """The bin of each area, 1 .. K; 0 where there is no box. An area on a border belongs to the upper bin.

    With equal widths this is `s = min(floor(K a) + 1, K)`.

    Example:
        >>> bins_of([0.0, 0.1, 0.5, 1.0, None], [0.1, 0.5]).tolist()
        [1, 2, 3, 3, 0]
    """
    borders = np.asarray(edges, np.float64)
    found = [NO_BOX if a is None else int(np.searchsorted(borders, a, side="right")) + 1 for a in areas]
    return np.array(found, np.int64)


def bin_advantages(
    rewards: Sequence[float] | Float[np.ndarray, "rollouts"],
    bins: Sequence[int] | Int[np.ndarray, "rollouts"],
    masked: Sequence[bool] | Bool[np.ndarray, "rollouts"] | None = None,
    config: BinConfig | None = None,
) -> BinTerms:
    """The two terms of SRPO for one group; the advantage is their sum.

    Masked Rollouts leave every mean and deviation. Where all rewards are equal both terms are 0.

    Args:
        rewards: one per Rollout.
        bins: bin of each Rollout, 0 for none.
        masked: Rollouts that leave the group.
        config: K and the readings of the open cases.

    Example:
        >>> terms = bin_advantages([1.0, 0.0, 1.0, 1.0, 2.0, 1.0, 3.0, 3.0], [1, 1, 1, 1, 2, 2, 3, 3])
        >>> (terms.intra + terms.inter).round(3).tolist()
        [0.0, -2.309, 0.0, 0.0, 0.423, -1.577, 1.732, 1.732]
    """
    config = config or BinConfig()
    values, places = np.asarray(rewards, np.float64), np.asarray(bins, np.int64)
    out = np.zeros(len(values), bool) if masked is None else np.asarray(masked, bool)
    if not len(values) == len(places) == len(out):
        raise ValueError(f"{len(values)} rewards, {len(places)} bins and {len(out)} masks do not fit together")
    zero, counts = np.zeros(len(values)), ~out
    if counts.sum() < 2:
        return BinTerms(intra=zero, inter=zero.copy(), counts=np.zeros(len(values), bool))
    occupied = sorted({int(k) for k in places[counts]} - {NO_BOX})
    if len(occupied) < 2 and config.single == "skip":
        return BinTerms(intra=zero, inter=zero.copy(), counts=np.zeros(len(values), bool))
    intra, inter = zero, zero.copy()
    if not is_flat(values, out):
        intra[counts] = _intra(values[counts], places[counts], config)
        if len(occupied) >= 2:
            won = np.isin(places[counts], _winners(values[counts], places[counts], config)).astype(np.float64)
            inter[counts] = _standardised(won, won, config)
    return BinTerms(intra=intra, inter=inter, counts=counts)


def _intra(values: np.ndarray, places: np.ndarray, config: BinConfig) -> np.ndarray:
    """Each reward against those of its own bin."""
    found = np.zeros(len(values))
    for place in np.unique(places):
        own = places == place
        if own.sum() > 1:
            found[own] = _standardised(values[own], values[own], config)
        elif config.lone == "group":
            found[own] = _standardised(values[own], values, config)
    return found


def _winners(values: np.ndarray, places: np.ndarray, config: BinConfig) -> list[int]:
    """The bins with the best mean reward."""
    means = {int(k): float(values[places == k].mean()) for k in np.unique(places) if k != NO_BOX}
    if config.empty == "zero":
        means = {k: means.get(k, 0.0) for k in range(1, config.count + 1)}
    best = max(means.values())
    tied = [k for k, mean in sorted(means.items()) if best - mean <= 1e-9]
    return tied[:1] if config.ties == "smallest" else tied


def _standardised(values: np.ndarray, among: np.ndarray, config: BinConfig) -> np.ndarray:
    if len(among) <= config.ddof or np.ptp(among) <= 1e-9:  # rounding alone is no spread
        return np.zeros(len(values))
    return (values - among.mean()) / (among.std(ddof=config.ddof) + config.eps)
