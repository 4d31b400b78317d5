"""The scoring pass: log-probs, entropies and every probe of a batch of Groups, in as few forwards as possible.

One packed pass over the token trees reads log-probs, entropies and all attention at once; every draw of an intervention
and every `GoldLikelihood` adds one pass over trees of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch

from sightline.errors import SightlineError
from sightline.methods.probes import Contrast, FocusAttention, GoldLikelihood, RegionAttention
from sightline.policy.readout import Readouts
from sightline.probes.attention import FocusReading, RegionReading
from sightline.probes.contrast import ContrastPass
from sightline.probes.drafts import Drafts
from sightline.probes.layout import Layout
from sightline.probes.likelihood import LikelihoodPass

if TYPE_CHECKING:
    from sightline.methods.base import Probe
    from sightline.policy.packing import Packed, Packer
    from sightline.types import Group, ImageRef

__all__ = ["scoring_pass"]


@torch.no_grad()
def scoring_pass(
    packer: Packer,
    groups: Sequence[Group],
    probes: Sequence[Probe] = (),
    *,
    temperature: float = 1.0,
    key: tuple[Hashable, ...] = (),
    others: Sequence[ImageRef] | None = None,
) -> list[Group]:
    """Groups with Measurements: log-probs and entropies of every sampled token, and what the probes found.

    What the Groups were measured with before stays, unless a probe of the same name replaces it.

    Args:
        packer: lays the Groups out for the policy.
        groups: Rollouts to measure.
        probes: requests, see `methods/probes.py`.
        temperature: the sampling temperature, applied to every log-prob.
        key: decides every draw of an intervention, e.g. (seed, step).
        others: images among which a swap chooses; by default those of the groups' Records.

    Raises:
        SightlineError: two probes of one name, or a probe that nothing here measures.
        UserError: a probe does not fit the policy.
    """
    _check(probes)
    drafts = Drafts(groups)
    if others is None:
        others = [image for group in groups for image in group.record.images]
    contrasts = [ContrastPass(p, packer, key, others) for p in probes if isinstance(p, Contrast)]
    for packed in packer.groups(groups):
        readings = _readings(packed, packer, probes)
        requests = [request for reading in readings for request in reading.requests]
        outputs = packer.policy.module(
            packed.batch, temperature=temperature, entropies=True,
            readout=Readouts(requests) if requests else None,
            hidden=any(c.probe.divergence is not None for c in contrasts),
        )  # fmt: skip
        drafts.put_scores(packed, outputs.logprobs, outputs.entropies)
        for reading in readings:
            reading.store(drafts)
        for contrast in contrasts:
            contrast.store(packed, outputs.hidden, drafts, temperature)
    for probe in probes:
        if isinstance(probe, GoldLikelihood):
            LikelihoodPass(probe, packer, key, others).store(drafts, temperature)
    return drafts.measured()


def _readings(packed: Packed, packer: Packer, probes: Sequence[Probe]) -> list[RegionReading | FocusReading]:
    attention = [p for p in probes if isinstance(p, (RegionAttention, FocusAttention))]
    if not attention:
        return []
    layout = Layout(packed, packer.policy.frame)
    return [
        (RegionReading if isinstance(p, RegionAttention) else FocusReading)(p, packer.policy, layout)  # type: ignore[arg-type]
        for p in attention
    ]


def _check(probes: Sequence[Probe]) -> None:
    names = [probe.name for probe in probes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SightlineError(f"two probes are called {twice[0]!r}")
    known = (RegionAttention, FocusAttention, Contrast, GoldLikelihood)
    for probe in probes:
        if not isinstance(probe, known):
            raise SightlineError(f"{type(probe).__name__} is no probe that is measured here")
