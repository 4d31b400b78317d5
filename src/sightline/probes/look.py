"""Where a reply looked: attention of its tokens over the visual tokens of its prompt, for pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sightline.methods.probes import Align, Heads, Layers, RegionAttention
from sightline.policy.packing import Packer
from sightline.probes.scoring import scoring_pass
from sightline.types import Group

if TYPE_CHECKING:
    from jaxtyping import Float

    from sightline.policy.load import Policy
    from sightline.types import Rollout

__all__ = ["LOOK", "look"]

LOOK = RegionAttention(name="look", layers="last_third", keeps_maps=True, reads_top=False)
"""The request behind the pictures of a run."""


def look(
    policy: Policy,
    rollout: Rollout,
    layers: Layers = (-1,),
    heads: Heads | None = None,
    *,
    align: Align = "producer",
) -> Float[np.ndarray, "tokens visual"]:
    """Attention of every sampled token of a reply to every visual token of the Prompt's images, in order.

    Raw attention, the mean over layers and heads: what is missing to one lies on text. Rows of tokens that were not
    sampled are 0.

    Args:
        policy: reads.
        rollout: a reply.
        layers: see `methods/probes.py`.
        heads: single (layer, head) pairs, in place of `layers`.
        align: the row that predicted the token, or the row in which it is the query.
    """
    probe = replace(LOOK, layers=layers, heads=heads, align=align)
    group = Group(record=rollout.record, rollouts=(rollout,), readings=())
    measured = scoring_pass(Packer(policy), [group], (probe,))
    return measured[0].measurements[0].maps[probe.name]
