"""Attention read once more in the update, with gradient, for losses that shape it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sightline.methods.probes import FocusAttention, RegionAttention
from sightline.policy.readout import MapReadout, Readouts
from sightline.probes.attention import focus_id, focus_rows, focus_stretches, row_positions
from sightline.probes.heads import choose_heads
from sightline.probes.layout import Layout, Queries, Root, region_of

if TYPE_CHECKING:
    from sightline.methods.base import Probe
    from sightline.policy.load import Policy
    from sightline.policy.packing import Packed

__all__ = ["RegionMap", "UpdateReadings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMap:
    """Rows of attention with gradient and the region they should look at; see `objectives.AttentionMap`."""

    values: Float[Tensor, "heads queries visual"]
    region: Float[Tensor, "queries visual"]
    is_visual: Bool[Tensor, "queries visual"]
    weight: Float[Tensor, "queries"]


class UpdateReadings:
    """The requests of all probes with `in_update` for one micro-batch of the update, and the maps they gave.

    Args:
        probes: of the method; others are ignored.
        policy: reads.
        packed: the micro-batch.
        records: Records of the whole minibatch that have regions.
    """

    def __init__(self, probes: Sequence[Probe], policy: Policy, packed: Packed, records: int) -> None:
        self._read: list[tuple[RegionAttention | FocusAttention, MapReadout, Queries, list[Root]]] = []
        wanted = [p for p in probes if isinstance(p, (RegionAttention, FocusAttention)) and p.in_update]
        if not wanted:
            return
        self._records = records
        self._layout = Layout(packed, policy.frame)
        for probe in wanted:
            flat, roots = self._rows(probe, policy)
            if len(roots) and self._layout.columns:
                chosen = choose_heads(policy, probe.layers, probe.heads, probe.heads_file)
                queries = Queries.of(flat, self._layout.rows, self._layout.width)
                readout = MapReadout(queries.rows, self._layout.keys(), chosen.layers, chosen.heads)
                self._read.append((probe, readout, queries, roots))

    @property
    def readout(self) -> Readouts | None:
        """What the forward has to read; None for nothing."""
        return Readouts([readout for _, readout, _, _ in self._read]) if self._read else None

    def maps(self) -> dict[str, RegionMap]:
        """The maps by the name of their probe, after the forward. A probe without any row gives none."""
        return {probe.name: self._map(probe, readout, queries, roots) for probe, readout, queries, roots in self._read}

    def _rows(self, probe: RegionAttention | FocusAttention, policy: Policy) -> tuple[Tensor, list[Root]]:
        """Flat positions of the probe's rows, each once, and the prompt head of each, or of each stretch of them."""
        layout, device = self._layout, self._layout.packed.batch.ids.device
        if isinstance(probe, RegionAttention):
            roots: list[Root | None] = [None] * len(layout.packed.batch.at)
            for root, slots in layout.scored_roots():
                for slot in slots:
                    roots[slot] = root
            return row_positions(layout, probe.align), [root for root in roots if root is not None]
        at = focus_rows(layout, focus_id(policy, probe.token), policy.image_token)
        distinct = dict(at.values())
        return focus_stretches(list(distinct), probe.count, device), list(distinct.values())

    def _map(
        self, probe: RegionAttention | FocusAttention, readout: MapReadout, queries: Queries, roots: list[Root]
    ) -> RegionMap:
        """Rows of all prompts side by side, each with the columns of its own Record's images."""
        layout, device = self._layout, queries.row.device
        width = max(len(root.own) for root in roots)
        columns, region = np.zeros((2, len(roots), width))
        is_visual, weight = np.zeros((len(roots), width), bool), np.zeros(len(roots))
        shares = np.bincount([root.part for root in roots])
        for number, root in enumerate(roots):
            count = len(root.own)
            record = layout.packed.parts[root.part].rollouts[0].record
            columns[number, :count] = root.own_columns.start + np.arange(count)
            region[number, :count] = region_of(record, probe, layout.frame)[:count]
            is_visual[number, :count] = True
            if record.regions and count:
                weight[number] = 1 / (self._records * shares[root.part])
        picked = torch.cat([found[queries.row, :, queries.slot] for found in readout.maps.values()], dim=1)
        picked = picked.unflatten(0, (len(roots), -1)).mean(1)  # several focus tokens in a row are read as one
        index = torch.from_numpy(columns).long().to(device)[:, None].expand(-1, picked.shape[1], -1)
        seen = torch.from_numpy(is_visual).to(device)
        return RegionMap(
            values=(picked.gather(2, index) * seen[:, None]).transpose(0, 1),
            region=torch.from_numpy(region).float().to(device),
            is_visual=seen,
            weight=torch.from_numpy(weight).float().to(device),
        )
