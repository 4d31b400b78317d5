"""Which heads look at the evidence: every (layer, head) by its attention to the gold regions of boxed records.

A head's map over a record's images is the mean of its rows over the reply, raw attention. Per head and record:

* lift = mass on the regions / share of the cells that belong to them; 1 is even attention to the images and none to
  text, so a head that hardly looks at the images stays below it however well it aims;
* pointing = whether the strongest cell of the map lies in a region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.geometry.grid import membership
from sightline.policy.readout import MapReadout
from sightline.probes.layout import Layout, Queries

if TYPE_CHECKING:
    from sightline.policy.packing import Packed, Packer
    from sightline.types import Group

__all__ = ["HeadScore", "HeadSums", "head_scores", "ranked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScore:
    """Means over records of one head. `on_image` and `region` are masses, in [0, 1]."""

    layer: int
    head: int
    on_image: float
    region: float
    lift: float
    pointing: float


class HeadSums:
    """Attention of rows on single keys, summed over the rows, for every head of every layer. Without gradient.

    Args:
        rows: positions of the queries, -1 for unused slots.
        keys: positions of the keys, -1 for unused columns.
        layers: how many decoder layers there are; all are read.
        chunk: queries per block.
    """

    def __init__(
        self, rows: Int[Tensor, "rows queries"], keys: Int[Tensor, "rows visual"], layers: int, chunk: int = 32
    ) -> None:
        self._layers = range(layers)
        self._parts = [MapReadout(part, keys, self._layers) for part in rows.split(chunk, dim=1)]
        self.sums: dict[int, Float[Tensor, "rows heads visual"]] = {}

    @torch.no_grad()
    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Any, scaling: float, lse: Tensor | None = None
    ) -> None:
        for part in self._parts:
            part.observe(layer, query, key, rule, scaling, lse)
            found = part.maps.pop(layer).sum(2)
            self.sums[layer] = self.sums[layer] + found if layer in self.sums else found

    def complete(self, needs_grad: bool) -> None:  # noqa: ARG002
        missing = [layer for layer in self._layers if layer not in self.sums]
        if missing:
            raise ValueError(f"the forward did not compute layers {missing} that the read-out asks for")


@torch.no_grad()
def head_scores(packer: Packer, groups: Sequence[Group]) -> list[dict[tuple[int, int], HeadScore]]:
    """For every Group, of one Rollout each, the score of every (layer, head) over the rows that wrote the reply."""
    found: list[dict[tuple[int, int], HeadScore]] = [{} for _ in groups]
    for packed in packer.groups(groups):
        layout = Layout(packed, packer.policy.frame)
        queries = Queries.of(packed.batch.predictor, layout.rows, layout.width)
        sums = HeadSums(queries.rows, layout.keys(), packer.policy.model.config.text_config.num_hidden_layers)
        packer.policy.module(packed.batch, readout=sums)
        for index, part in enumerate(packed.parts):
            found[part.group] = _scores(packed, layout, index, sums.sums)
    return found


def _scores(packed: Packed, layout: Layout, index: int, sums: Mapping[int, Tensor]) -> dict[tuple[int, int], HeadScore]:
    """Scores of one reply. Rows of other trees see none of its cells, so its columns hold its own rows alone."""
    part, root = packed.parts[index], layout.root(index, 0)
    record, count = part.rollouts[0].record, int(part.rollouts[0].sampled.sum())
    region = membership(record.regions, [image.size for image in record.images], layout.frame)
    out = {}
    for layer, table in sums.items():
        maps = table[root.row, :, root.own_columns].double().cpu().numpy() / count
        for head, cells in enumerate(maps):
            mass = float(cells @ region)
            out[layer, head] = HeadScore(
                layer=layer, head=head, on_image=float(cells.sum()), region=mass, lift=mass / float(region.mean()),
                pointing=float(region[int(cells.argmax())] > 0),
            )  # fmt: skip
    return out


def ranked(scores: Sequence[Mapping[tuple[int, int], HeadScore]]) -> list[HeadScore]:
    """Means over records, best head first: by the sum of the ranks in lift and in pointing, then by lift.

    Example:
        >>> one = HeadScore(layer=0, head=0, on_image=0.5, region=0.1, lift=0.4, pointing=0.0)
        >>> two = HeadScore(layer=0, head=1, on_image=0.5, region=0.4, lift=1.6, pointing=1.0)
        >>> [(s.layer, s.head) for s in ranked([{(0, 0): one, (0, 1): two}])]
        [(0, 1), (0, 0)]
    """
    fields = ("on_image", "region", "lift", "pointing")
    means = [
        HeadScore(
            layer=layer, head=head, **{f: float(np.mean([getattr(s[layer, head], f) for s in scores])) for f in fields}
        )
        for layer, head in scores[0]
    ]
    places = [_places([getattr(m, field) for m in means]) for field in ("lift", "pointing")]
    order = sorted(range(len(means)), key=lambda i: (places[0][i] + places[1][i], -means[i].lift))
    return [means[i] for i in order]


def _places(values: Sequence[float]) -> list[float]:
    """Place of each value, the largest first; equal values share the mean of their places."""
    data = np.asarray(values)
    return [float((data > v).sum() + ((data == v).sum() - 1) / 2) for v in data]
