"""Attention of sampled tokens and of forced tokens, read in a pass that computes log-probs anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import UserError
from sightline.methods.probes import FocusAttention, RegionAttention
from sightline.policy.readout import MapReadout, MassReadout
from sightline.policy.tree import image_boundary
from sightline.probes.heads import choose_heads
from sightline.probes.layout import Layout, Queries, Root

if TYPE_CHECKING:
    from sightline.policy.attention import Readout
    from sightline.policy.load import Policy
    from sightline.probes.drafts import Drafts

__all__ = ["FocusReading", "MeanMaps", "RegionReading", "focus_id", "focus_rows", "focus_stretches", "row_positions"]


class MeanMaps:
    """Attention of many rows on single keys, mean over layers and heads, without gradient.

    Reads a few rows at a time and keeps the mean alone: memory is rows x keys, whatever the number of heads.

    Args:
        rows: positions of the queries, -1 for unused slots.
        keys: positions of the keys, -1 for unused columns.
        layers: decoder layers, 0 is the first.
        heads: chosen heads per layer; a layer that is not named is read with all heads.
        chunk: queries per block.
    """

    def __init__(
        self,
        rows: Int[Tensor, "rows queries"],
        keys: Int[Tensor, "rows visual"],
        layers: Sequence[int],
        heads: Mapping[int, Sequence[int]] | None = None,
        chunk: int = 128,
    ) -> None:
        self._parts = [MapReadout(part, keys, layers, heads) for part in rows.split(chunk, dim=1)]
        self._sums: list[Tensor] = []
        self._pairs: dict[int, int] = {}
        self._layers = tuple(layers)

    @torch.no_grad()
    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Any, scaling: float, lse: Tensor | None = None
    ) -> None:
        if layer not in self._layers or layer in self._pairs:
            return
        found = []
        for part in self._parts:
            part.observe(layer, query, key, rule, scaling, lse)
            maps = part.maps.pop(layer)
            self._pairs[layer] = maps.shape[1]
            found.append(maps.sum(1))
        self._sums = [a + b for a, b in zip(self._sums, found, strict=True)] if self._sums else found

    def complete(self, needs_grad: bool) -> None:  # noqa: ARG002
        missing = [layer for layer in self._layers if layer not in self._pairs]
        if missing:
            raise ValueError(f"the forward did not compute layers {missing} that the read-out asks for")

    def mean(self) -> Float[Tensor, "rows queries visual"]:
        """Mean over all chosen pairs of layer and head."""
        return torch.cat(self._sums, dim=1) / sum(self._pairs.values())


def row_positions(layout: Layout, align: str) -> Int[Tensor, "scored"]:
    """Flat position of the row that belongs to each scored token: its predictor's, or its own."""
    batch = layout.packed.batch
    return batch.predictor if align == "producer" else batch.at


class RegionReading:
    """One `RegionAttention` in one packed batch: its requests, and what they found."""

    def __init__(self, probe: RegionAttention, policy: Policy, layout: Layout) -> None:
        self.probe, self.layout = probe, layout
        self._queries = Queries.of(row_positions(layout, probe.align), layout.rows, layout.width)
        chosen = choose_heads(policy, probe.layers, probe.heads, probe.heads_file)
        rows = self._queries.rows
        self._masses = MassReadout(rows, layout.segments(probe), chosen.layers, chosen.heads)
        self._maps = None
        if (probe.reads_top or probe.keeps_maps) and layout.columns:
            self._maps = MeanMaps(rows, layout.keys(), chosen.layers, chosen.heads)

    @property
    def requests(self) -> list[Readout]:
        return [self._masses] if self._maps is None else [self._masses, self._maps]

    def store(self, drafts: Drafts) -> None:
        """Adds masses, the largest single mass and maps to the drafts, after the forward."""
        probe, packed = self.probe, self.layout.packed
        drafts.put(packed, probe.name, self._queries.pick(self._masses.mean()))
        maps = packed.batch.ids.new_zeros((len(packed.batch.at), 0), dtype=torch.float32)
        if self._maps is not None:
            maps = self._queries.pick(self._maps.mean())
        if probe.reads_top:
            top = maps.amax(-1) if maps.shape[1] else maps.sum(-1)
            drafts.put(packed, f"{probe.name}/top1", top)
        if probe.keeps_maps:
            for index, (part, own) in enumerate(zip(packed.parts, packed.batch.scatter(maps), strict=True)):
                for path, place in enumerate(part.places):
                    columns = self.layout.root(index, path).columns
                    drafts.rows[part.group][place].maps[probe.name] = own[path][:, columns]


class FocusReading:
    """One `FocusAttention` in one packed batch."""

    def __init__(self, probe: FocusAttention, policy: Policy, layout: Layout) -> None:
        self.probe, self.layout = probe, layout
        self._at = focus_rows(layout, focus_id(policy, probe.token), policy.image_token)
        self._readout: MapReadout | None = None
        if self._at and layout.columns:
            device = layout.packed.batch.ids.device
            flat = focus_stretches([row for row, _ in self._at.values()], probe.count, device)
            self._queries = Queries.of(flat, layout.rows, layout.width)
            chosen = choose_heads(policy, probe.layers, probe.heads, probe.heads_file)
            self._readout = MapReadout(self._queries.rows, layout.keys(), chosen.layers, chosen.heads)

    @property
    def requests(self) -> list[Readout]:
        return [] if self._readout is None else [self._readout]

    def store(self, drafts: Drafts) -> None:
        """Adds the maps to the drafts, after the forward."""
        if self._readout is None:
            return
        rows = self._queries.pick(self._readout.mean()).detach().float()
        values = rows.unflatten(0, (-1, self.probe.count)).mean(1).cpu().numpy()
        for ((index, path), (_, root)), row in zip(self._at.items(), values, strict=True):
            part = self.layout.packed.parts[index]
            drafts.rows[part.group][part.places[path]].maps[self.probe.name] = row[None, root.columns]


def focus_id(policy: Policy, token: str) -> int:
    """The id of a token that stands in the vocabulary as one piece.

    Raises:
        UserError: it does not.
    """
    ids = policy.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(
            f"{token!r} is {len(ids)} tokens of this policy, not one", where="focus token",
            hint="add it to the vocabulary, or name a special token that is there",
        )  # fmt: skip
    return int(ids[0])


def focus_stretches(last: Sequence[int], count: int, device: torch.device) -> Int[Tensor, "rows"]:
    """Flat positions of the `count` tokens that end at each of these, one stretch behind the other."""
    ends = torch.tensor(last, dtype=torch.long, device=device)
    return (ends[:, None] + torch.arange(1 - count, 1, device=device)).reshape(-1)


def focus_rows(layout: Layout, token: int, image_token: int) -> dict[tuple[int, int], tuple[int, Root]]:
    """Flat position of the last occurrence of a token behind the images of each prompt, by (tree, path).

    Paths whose prompt lacks it are left out. Rollouts of one prompt share one position.
    """
    found = {}
    for index, (part, row, offset) in enumerate(
        zip(layout.packed.parts, layout.packed.rows, layout.packed.offsets, strict=True)
    ):
        for path, rollout in enumerate(part.rollouts):
            where = np.flatnonzero(rollout.prompt_ids == token)
            if len(where) and where[-1] >= image_boundary(rollout.prompt_ids, image_token):
                last = int(part.tree.previous[part.tree.where[path][0]])  # the prompt ends here, in one stretch
                position = last - (len(rollout.prompt_ids) - 1 - int(where[-1]))
                found[index, path] = (row * layout.width + offset + position, layout.root(index, path))
    return found
