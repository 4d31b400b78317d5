"""Measurements in the making: what a pass has found so far about each Rollout of each Group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sightline.types import Group, ImageRef, Measurement

if TYPE_CHECKING:
    from sightline.policy.packing import Packed

__all__ = ["Draft", "Drafts"]


@dataclass(slots=True)
class Draft:
    """The fields of one Measurement, still open."""

    logprobs: np.ndarray | None = None
    entropies: np.ndarray | None = None
    probes: dict[str, np.ndarray] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, tuple[ImageRef, ...]] = field(default_factory=dict)


class Drafts:
    """One Draft per Rollout, begun from what the Groups have been measured with before."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self.rows = [
            [_begun(m) for m in group.measurements] if group.measurements else [Draft() for _ in group.rollouts]
            for group in groups
        ]

    def put(self, packed: Packed, name: str, values: Float[Tensor, "scored ..."]) -> None:
        """Stores one probe of a micro-batch, given per scored token, as values per token of each Rollout."""
        for part, own in zip(packed.parts, packed.batch.scatter(values), strict=True):
            for place, found in zip(part.places, own, strict=True):
                self.rows[part.group][place].probes[name] = found

    def put_scores(
        self, packed: Packed, logprobs: Float[Tensor, "scored"], entropies: Float[Tensor, "scored"] | None
    ) -> None:
        """Stores log-probs and entropies of a micro-batch."""
        columns = [packed.batch.scatter(v) if v is not None else None for v in (logprobs, entropies)]
        for index, part in enumerate(packed.parts):
            for path, place in enumerate(part.places):
                draft = self.rows[part.group][place]
                draft.logprobs, draft.entropies = (None if c is None else c[index][path] for c in columns)

    def measured(self) -> list[Group]:
        """The Groups with their Measurements."""
        return [
            replace(
                group,
                measurements=tuple(
                    Measurement(
                        logprobs=d.logprobs, entropies=d.entropies, probes=d.probes, maps=d.maps, images=d.images
                    )
                    for d in rows
                ),
            )
            for group, rows in zip(self.groups, self.rows, strict=True)
        ]


def _begun(seen: Measurement) -> Draft:
    return Draft(seen.logprobs, seen.entropies, dict(seen.probes), dict(seen.maps), dict(seen.images))
