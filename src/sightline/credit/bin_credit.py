"""SRPO credit of a Group: which box of a Rollout decides its bin, and both terms (`credit/bins.py`) on its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sightline.credit.bins import NO_BOX, BinConfig, bin_advantages, bin_edges, bins_of
from sightline.credit.group import is_flat
from sightline.geometry.boxes import clamp
from sightline.tools.syntax import BoxSyntax, Call
from sightline.types import Credit, Group, ReadBox, Reading, Record

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["Asks", "bin_credit", "box_area", "evidence_box", "with_bins"]

Asks = Callable[[Reading], Sequence[Call]]
"""The requests for regions that one turn holds, e.g. `BoxSyntax().asks`."""


def evidence_box(reading: Reading, config: BinConfig | None = None, asks: Asks | None = None) -> ReadBox | None:
    """The box of a Rollout that decides its bin: a valid one on image 0, from a turn that asks instead of answering.

    Args:
        reading: of the whole conversation.
        config: which box counts where there are several, and whether one that sticks out does.
        asks: the requests of a turn; by default a box behind the reasoning.

    Example:
        >>> from sightline.types import Box, Span
        >>> box = ReadBox(box=Box(0, 0, 8, 8), written=(0, 0, 8, 8), span=Span(0, 1))
        >>> asks, answers = Reading(text="", boxes=(box,)), Reading(text="", answer="red")
        >>> evidence_box(Reading(text="", answer="red", turns=(asks, answers))) == box, evidence_box(answers)
        (True, None)
    """
    config, asks = config or BinConfig(), asks or BoxSyntax().asks
    asking = [turn for turn in (reading.turns or (reading,)) if turn.answer is None]
    asked = [call.box for turn in asking for call in asks(turn)]
    found = [box for box in asked if box is not None and box.is_valid and box.image == 0]
    if config.clipped == "no_box":
        found = [box for box in found if not {"negative", "outside"} & set(box.problems)]
    if config.refined == "smallest":
        return min(found, key=lambda box: box.box.area, default=None)
    return found[-1 if config.refined == "last" else 0] if found else None


def box_area(
    reading: Reading, record: Record, config: BinConfig | None = None, asks: Asks | None = None
) -> float | None:
    """Area of the evidence box as a share of image 0, the part inside the image; None without a box or an image.

    Example:
        >>> from sightline.types import Box, ImageRef, Size, Span
        >>> half = ReadBox(box=Box(0, 0, 50, 100), written=(0, 0, 50, 100), span=Span(0, 1))
        >>> record = Record(id="a", question="?", answer="x", images=(ImageRef(size=Size(100, 100), digest=""),))
        >>> box_area(Reading(text="", boxes=(half,)), record)
        0.5
    """
    found = evidence_box(reading, config, asks)
    if found is None or not record.images:
        return None
    size = record.images[0].size
    return min(clamp(found.box, size).area / (size.width * size.height), 1.0)


def bin_credit(group: Group, config: BinConfig | None = None, asks: Asks | None = None) -> tuple[Credit, ...]:
    """SRPO: each stream of the Record by itself, the sum of both terms on every sampled token.

    Args:
        group: a scored Group; `edges: step_quantile` also reads its `peers`.
        config: K, edges and the readings of the open cases.
        asks: the requests of a turn; by default a box behind the reasoning.

    Returns:
        One Credit per Rollout: weight 1 on sampled tokens, 0 where the Rollout is masked or its group skipped. `parts`
        holds `advantage`, `intra`, `inter`, `bin` (0 without a box), `box_area` (where there is a box), `baseline` (the
        mean reward of the bin), `flat`, `masked`, and for the means over Rollouts `bin_K_share` of every bin (0 or 1)
        and `bin_K_reward` of its own.

    Example:
        >>> bin_credit(Group(record=None, rollouts=(), readings=()))
        ()
    """
    config = config or BinConfig()
    if len(group.scores) != len(group):
        raise ValueError("credit needs a scored group: one Scores per rollout")
    found: dict[int, Credit] = {}
    for stream in group.streams:
        at = [i for i, rollout in enumerate(group.rollouts) if rollout.stream == stream]
        found |= dict(zip(at, _stream_credit(group.at(at), config, asks), strict=True))
    return tuple(found[i] for i in range(len(group)))


def with_bins(
    group: Group, credits: Sequence[Credit], config: BinConfig | None = None, asks: Asks | None = None
) -> tuple[Credit, ...]:
    """The same credit, with the bin of every Rollout among its parts: what a baseline without bins does to each.

    Example:
        >>> with_bins(Group(record=None, rollouts=(), readings=()), ())
        ()
    """
    config, found = config or BinConfig(), list(credits)
    for stream in group.streams:
        at = [i for i, rollout in enumerate(group.rollouts) if rollout.stream == stream]
        for i, parts in zip(at, _sorted(group.at(at), config, asks).parts, strict=True):
            found[i] = replace(found[i], parts={**found[i].parts, **parts})
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sorted:
    """The Rollouts of one stream in their bins, and what the report shows of each."""

    places: Int[np.ndarray, "rollouts"]
    rewards: Float[np.ndarray, "rollouts"]
    masked: Bool[np.ndarray, "rollouts"]
    parts: list[dict[str, float]]


def _sorted(group: Group, config: BinConfig, asks: Asks | None) -> _Sorted:
    measured = _areas(group, config, asks)
    areas = [1.0 if a is None and config.no_box == "whole_image" else a for a in measured]
    known = areas
    if config.edges == "step_quantile":
        known = [a for peer in group.peers or (group,) for a in _areas(peer.of(*group.streams), config, asks)]
    places = bins_of(areas, bin_edges(config, [a for a in known if a is not None]))
    rewards = np.array([scores.total for scores in group.scores], np.float64)
    masked = np.array([scores.is_masked for scores in group.scores], bool)
    shown = [None if is_out else float(reward) for reward, is_out in zip(rewards, masked, strict=True)]
    parts = [_bin_parts(int(k), a, r, config) for k, a, r in zip(places, measured, shown, strict=True)]
    return _Sorted(places=places, rewards=rewards, masked=masked, parts=parts)


def _stream_credit(group: Group, config: BinConfig, asks: Asks | None) -> list[Credit]:
    found = _sorted(group, config, asks)
    terms = bin_advantages(found.rewards, found.places, found.masked, config)
    flat = float(is_flat(found.rewards, found.masked))
    credits = []
    for i, rollout in enumerate(group.rollouts):
        own = found.rewards[(found.places == found.places[i]) & ~found.masked]
        parts = {
            "advantage": float(terms.intra[i] + terms.inter[i]),
            "intra": float(terms.intra[i]),
            "inter": float(terms.inter[i]),
            "baseline": float(own.mean()) if len(own) else 0.0,
            "flat": flat,
            "masked": float(not terms.counts[i]),
            **found.parts[i],
        }
        sampled = rollout.sampled.astype(np.float64)
        credits.append(
            Credit(advantage=sampled * parts["advantage"], weight=sampled * float(terms.counts[i]), parts=parts)
        )
    return credits


def _bin_parts(place: int, area: float | None, reward: float | None, config: BinConfig) -> dict[str, float]:
    """What the report shows of one Rollout's bin; averaged over Rollouts, occupancy and mean reward of every bin."""
    names = {NO_BOX: "no_box", **{k: f"bin_{k}" for k in range(1, config.count + 1)}}
    parts = {"bin": float(place), **{f"{name}_share": float(k == place) for k, name in names.items()}}
    if area is not None:
        parts["box_area"] = area
    if reward is not None:
        parts[f"{names[place]}_reward"] = reward
    return parts


def _areas(group: Group, config: BinConfig, asks: Asks | None) -> list[float | None]:
    return [box_area(reading, group.record, config, asks) for reading in group.readings]
