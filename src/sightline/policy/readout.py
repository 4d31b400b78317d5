"""Reading attention during an ordinary forward: requests that travel as a keyword of the model call.

`MassReadout` reads how much attention rows give to segments of keys (for rewards and pictures, without gradient);
`MapReadout` reads the attention of few rows on single keys, with gradient (for losses). Both name rows and keys by
their position in the layout of a `Batch`; a row at position s is token s as the query, which predicts token s + 1.

A request serves one forward. Its classes are plain on purpose: sharding wrappers rebuild dataclass arguments, and only
the first layer would write into the caller's object. Activation checkpointing computes a layer again in the backward
pass; what was written first stays. Only non-reentrant checkpointing keeps a map's gradient, which `complete` checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sightline.errors import UserError
from sightline.policy.attention import Readout
from sightline.policy.attention_rows import (
    Block,
    MapRows,
    Rule,
    head_groups,
    map_blocks,
    mass_blocks,
    mass_rows,
    rows_of,
)

__all__ = ["MapReadout", "MassReadout", "Readouts", "resolve_layers"]

CHUNK = 128
"""Queries of a block on CPU, whose logits then stay in its caches."""

LARGEST = 2**28
"""Numbers of a block of logits on CUDA, where many small blocks would cost more than they compute."""


def resolve_layers(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Layer numbers of a model with `count` decoder layers; negative ones count from the last, -1.

    Raises:
        UserError: a layer that the model does not have.
    """
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(
                f"layer {layer} of a model with {count} layers", where="layers", hint=f"{-count} to {count - 1}"
            )
    return tuple(dict.fromkeys(layer % count for layer in layers))


class _Request:
    """Rows, layers and heads of a request, and the work that is the same for every layer."""

    def __init__(
        self, rows: Int[Tensor, "rows queries"], layers: Sequence[int], heads: Mapping[int, Sequence[int]] | None
    ) -> None:
        if any(layer < 0 for layer in layers):
            raise ValueError("negative layers are resolved by resolve_layers before a request is made")
        self.rows, self.layers, self.heads = rows, tuple(layers), dict(heads or {})
        self.found: dict[int, Tensor] = {}
        self._planned: tuple[Rule, bool] | None = None
        self._blocks: list[Block] = []

    def _blocks_for(self, rule: Rule, has_lse: bool, key: Tensor) -> list[Block]:
        """The work, made once per forward: it asks the device for sizes, which the layers should not wait for."""
        if self._planned is None or self._planned[0] is not rule or self._planned[1] != has_lse:
            self._to(key.device)
            if bool((self.rows >= key.shape[2]).any()):
                raise ValueError(f"the request names a position beyond the {key.shape[2]} tokens of a row")
            self._blocks = self._plan(rule, has_lse, key.shape[2])
            self._planned = (rule, has_lse)
        return self._blocks

    def _to(self, device: torch.device) -> None:
        self.rows = self.rows.to(device)

    def _plan(self, rule: Rule, has_lse: bool, tokens: int) -> list[Block]:
        raise NotImplementedError

    def _queries(self, chunk: int, tokens: int) -> int:
        """Queries of a block, counting eight query heads to a key head."""
        return max(chunk, LARGEST // (8 * tokens)) if self.rows.is_cuda else chunk

    def _heads(self, layer: int, count: int) -> Sequence[int]:
        return self.heads.get(layer, range(count))

    def _is_recomputed(self, layer: int) -> bool:
        """Whether a layer that has been read is being computed again for the backward pass."""
        if layer not in self.found:
            return False
        if torch._C._current_graph_task_id() == -1:
            raise ValueError("a read-out request serves one forward: make a new one for the next")
        return True

    def _check(self, query: Tensor, key: Tensor) -> None:
        if query.shape[2] != key.shape[2]:
            raise ValueError("a read-out needs the whole sequence in one forward, not a cache of earlier keys")
        if len(self.rows) != len(query):
            raise ValueError(f"the request has {len(self.rows)} rows, the batch {len(query)}")

    def complete(self, needs_grad: bool) -> None:  # noqa: ARG002
        """Raises unless every layer was read.

        Raises:
            ValueError: a layer was not computed.
        """
        missing = [layer for layer in self.layers if layer not in self.found]
        if missing:
            raise ValueError(f"the forward did not compute layers {missing} that the read-out asks for")

    def mean(self) -> Float[Tensor, "rows queries _"]:
        """Mean over all chosen pairs of layer and head."""
        return torch.cat([self.found[layer] for layer in self.layers], dim=1).mean(1)


class MassReadout(_Request):
    """Attention mass of rows on segments of keys: mass_s = sum_k P_k segments[s, k]. Without gradient.

    Args:
        rows: positions of the queries, -1 for unused slots, whose masses are 0.
        segments: weight of every token of the row in every segment. Keys that a query does not see add nothing.
        layers: decoder layers, 0 is the first.
        heads: chosen query heads per layer; a layer that is not named is read with all heads.
        chunk: queries per block.

    Attributes:
        masses: layer -> (rows, heads, queries, segments), fp32, once the forward is done.
    """

    def __init__(
        self,
        rows: Int[Tensor, "rows queries"],
        segments: Float[Tensor, "rows segments tokens"],
        layers: Sequence[int],
        heads: Mapping[int, Sequence[int]] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__(rows, layers, heads)
        self.segments, self.chunk = segments, chunk

    @property
    def masses(self) -> dict[int, Float[Tensor, "rows heads queries segments"]]:
        return self.found

    @torch.no_grad()
    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Rule, scaling: float, lse: Tensor | None = None
    ) -> None:
        if layer not in self.layers or self._is_recomputed(layer):
            return
        self._check(query, key)
        blocks = self._blocks_for(rule, lse is not None, key)
        heads = self._heads(layer, query.shape[1])
        self.found[layer] = mass_rows(
            rows_of(query, self.rows, heads), key, None if lse is None else rows_of(lse, self.rows, heads), blocks,
            head_groups(heads, query.shape[1] // key.shape[1], query.device), scaling, self.segments.shape[1],
        )  # fmt: skip

    def _to(self, device: torch.device) -> None:
        super()._to(device)
        self.segments = self.segments.to(device)

    def _plan(self, rule: Rule, has_lse: bool, tokens: int) -> list[Block]:
        if self.segments.shape[2] != tokens:
            raise ValueError(f"the segments weigh {self.segments.shape[2]} tokens of a row that has {tokens}")
        chunk = self._queries(self.chunk, tokens)
        return mass_blocks(rule, self.rows, self.segments, chunk, has_lse=has_lse)


class MapReadout(_Request):
    """Attention of rows on single keys, softmax over all visible keys, with gradient where it is enabled.

    Args:
        rows: positions of the queries, -1 for unused slots, whose maps are 0.
        keys: positions of the keys, usually the visual tokens; -1 for unused columns, which are 0.
        layers: decoder layers, 0 is the first.
        heads: chosen query heads per layer; a layer that is not named is read with all heads.

    Attributes:
        maps: layer -> (rows, heads, queries, visual), fp32, once the forward is done. Keys that a query does not see
            are 0.
    """

    def __init__(
        self,
        rows: Int[Tensor, "rows queries"],
        keys: Int[Tensor, "rows visual"],
        layers: Sequence[int],
        heads: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(rows, layers, heads)
        self.keys = keys

    @property
    def maps(self) -> dict[int, Float[Tensor, "rows heads queries visual"]]:
        return self.found

    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Rule, scaling: float, lse: Tensor | None = None
    ) -> None:
        if layer not in self.layers:
            return
        self._check(query, key)
        self._is_recomputed(layer)
        blocks = self._blocks_for(rule, lse is not None, key)
        heads = self._heads(layer, query.shape[1])
        maps = MapRows.apply(
            rows_of(query, self.rows, heads), key, None if lse is None else rows_of(lse.detach(), self.rows, heads),
            blocks, head_groups(heads, query.shape[1] // key.shape[1], query.device), scaling, self.keys.shape[1],
        )  # fmt: skip
        # recomputation must save the same tensors again, but the loss holds the first result
        self.found.setdefault(layer, maps)  # type: ignore[arg-type]

    def require_grad(self) -> None:
        """Raises unless every map carries a gradient.

        Raises:
            RuntimeError: a map came out without one, as it does under reentrant checkpointing.
        """
        without = [layer for layer in self.layers if not self.found[layer].requires_grad]
        if without:
            raise RuntimeError(
                f"the attention maps of layers {without} carry no gradient: use non-reentrant checkpointing, and train "
                "parameters below these layers"
            )

    def complete(self, needs_grad: bool) -> None:
        """Raises unless every layer was read, and with gradient where one is needed."""
        super().complete(needs_grad)
        if needs_grad:
            self.require_grad()

    def pass_through(self, hidden: Tensor) -> None:
        """Lets the maps' gradient also reach the last hidden states, as zeros (see `Through`)."""
        self.found = {n: Through.apply(m, hidden) for n, m in self.found.items()}  # type: ignore[misc]

    def _to(self, device: torch.device) -> None:
        super()._to(device)
        self.keys = self.keys.to(device)

    def _plan(self, rule: Rule, has_lse: bool, tokens: int) -> list[Block]:  # noqa: ARG002
        return map_blocks(rule, self.rows, self.keys, tokens, self._queries(CHUNK, tokens))


class Through(torch.autograd.Function):
    """A map as it is, whose gradient also sends zeros into the hidden states.

    Sharded layers gather their parameters when a gradient reaches their output. A loss on a layer's attention alone
    never does: it enters in the middle of the layer, whose parameters have been freed.
    """

    @staticmethod
    def forward(ctx: Any, map: Tensor, hidden: Tensor) -> Tensor:  # type: ignore[override]
        ctx.like = hidden.shape, hidden.dtype, hidden.device
        return map.view_as(map)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shape, dtype, device = ctx.like
        return grad, torch.zeros(shape, dtype=dtype, device=device)


class Readouts:
    """Several requests in one forward."""

    def __init__(self, requests: Sequence[Readout]) -> None:
        self.requests = tuple(requests)

    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Rule, scaling: float, lse: Tensor | None = None
    ) -> None:
        for request in self.requests:
            request.observe(layer, query, key, rule, scaling, lse)

    def complete(self, needs_grad: bool) -> None:
        for request in self.requests:
            request.complete(needs_grad)

    def pass_through(self, hidden: Tensor) -> None:
        for request in self.requests:
            if isinstance(request, MapReadout | Readouts):
                request.pass_through(hidden)
