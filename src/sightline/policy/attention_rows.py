"""Attention of chosen rows, computed exactly from queries and keys: sums over key segments, or single keys.

A row's probabilities are P_k = exp(s_k - l) with s_k = scale q.k over the visible keys and l = log sum_k exp(s_k).
Where the attention kernel hands over l (`lse`), only the columns that are asked for are computed; else all visible
ones. Everything from the logits on is fp32. Keys are never repeated over the query heads that share them, and no block
of logits is larger than (query heads of one key head) x chunk x keys.

Backward of a map, for an upstream gradient g on the columns asked for (0 elsewhere):

    dS = P (g - sum_k P_k g_k),    dq = scale dS k,    dk = scale dS^T q.

P is recomputed there from q, k and l, so that nothing of the size rows x keys is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sightline.policy.attention import TreeLayout
from sightline.policy.batch import sent

__all__ = ["Block", "HeadGroup", "MapRows", "Rule", "head_groups", "map_blocks", "mass_blocks", "mass_rows", "rows_of"]

Rule = TreeLayout | Tensor | None
"""Who sees whom: a token tree, a mask (4 axes: rows, 1, queries, keys; 2 axes: valid keys), or None for causal."""

Index = slice | Tensor


class Block(NamedTuple):
    """A few requested queries of one row, and the keys that matter to them.

    Attributes:
        row: row of the batch.
        slots: the request's slots these queries stand in.
        keys: positions of the keys.
        hidden: which of the pairs are invisible, (queries, keys); None if all are visible.
        wanted: masses: weight of each key in each segment, (keys, segments). Maps: indices into `keys` that the map
            asks for.
        target: maps: the columns of the map they go to.
        omitted: masses: the segment that is one minus the others, -1 if all are computed.
    """

    row: int
    slots: Index
    keys: Index
    hidden: Bool[Tensor, "queries keys"] | None
    wanted: Any
    target: Any = None
    omitted: int = -1


class HeadGroup(NamedTuple):
    """Query heads that share one key head: that head, and their places among the chosen heads."""

    key: int
    places: Index


def head_groups(heads: Sequence[int], fold: int, device: torch.device) -> list[HeadGroup]:
    """Groups chosen query heads by the key head they use (query head h uses key head h // fold)."""
    found: dict[int, list[int]] = {}
    for place, head in enumerate(heads):
        found.setdefault(head // fold, []).append(place)
    return [HeadGroup(key, _places(places, device)) for key, places in found.items()]


def _places(places: Sequence[int], device: torch.device) -> Index:
    """Ascending places as a slice if they are contiguous; told on the host, which need not ask the device."""
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        return slice(first, last + 1)
    return sent(torch.tensor(places), device)


def rows_of(
    values: Tensor, rows: Int[Tensor, "rows queries"], heads: Sequence[int]
) -> Float[Tensor, "rows heads queries *width"]:
    """Picks the requested positions of the chosen heads out of (rows, heads, tokens, ...); unused slots get token 0."""
    batch = torch.arange(len(rows), device=rows.device)[:, None, None]
    is_all = len(heads) == values.shape[1] and isinstance(heads, range)
    picked = torch.arange(len(heads), device=rows.device) if is_all else sent(torch.tensor(list(heads)), rows.device)
    chosen = picked[None, :, None]
    return values[batch, chosen, rows.clamp(min=0)[:, None]]


def visible_keys(rule: Rule, row: int, queries: Int[Tensor, "queries"], tokens: int) -> Bool[Tensor, "queries tokens"]:
    """Which keys the queries of one row may attend to. Padding sees nothing."""
    index = torch.arange(tokens, device=queries.device)
    causal = index <= queries[:, None]
    if rule is None:
        return causal
    if isinstance(rule, TreeLayout):
        end = rule.end[row].to(queries.device)
        seen = causal & (queries[:, None] < end)
        is_padding = (end[queries] == queries + 1) & (seen.sum(-1) == 1)
        return seen & ~is_padding[:, None]
    if rule.ndim == 2:
        return causal & rule[row].bool()
    mask = rule[row if len(rule) > 1 else 0, 0][queries]
    if mask.dtype == torch.bool:
        return mask
    seen = mask > torch.finfo(mask.dtype).min / 2
    if bool((mask[seen] != 0).any()):
        raise ValueError("a read-out knows masks that hide keys, not biases that weigh them")
    return seen


def _span(index: Int[Tensor, "items"]) -> Index:
    """A slice where the ascending index is contiguous, so that picking by it copies nothing."""
    if not len(index):
        return index
    first, last = int(index[0]), int(index[-1])
    is_contiguous = last - first + 1 == len(index) and bool((index.diff() == 1).all())
    return slice(first, last + 1) if is_contiguous else index


def _chunks(
    rule: Rule, rows: Int[Tensor, "rows queries"], tokens: int, chunk: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Requested slots of every row in order of position, a few at a time, with the keys they see."""
    for row, positions in enumerate(rows):
        slots = torch.nonzero(positions >= 0)[:, 0]
        slots = slots[torch.argsort(positions[slots], stable=True)]
        for part in slots.split(chunk):
            seen = visible_keys(rule, row, positions[part], tokens)
            sees = seen.any(-1)
            if bool(sees.any()):
                yield row, part[sees], seen[sees]


def _hidden(seen: Bool[Tensor, "queries keys"]) -> Bool[Tensor, "queries keys"] | None:
    return None if bool(seen.all()) else ~seen


def mass_blocks(
    rule: Rule,
    rows: Int[Tensor, "rows queries"],
    segments: Float[Tensor, "rows segments tokens"],
    chunk: int,
    *,
    has_lse: bool,
) -> list[Block]:
    """The work of a mass request, the same for every layer.

    With the log-sum-exp at hand, keys outside every segment are skipped; and if the segments cover each key exactly
    once, the one that owns most keys is not computed: it is what the others leave of one.
    """
    blocks = []
    for row, slots, seen in _chunks(rule, rows, segments.shape[2], chunk):
        weights, omitted = segments[row], -1
        needed = seen.any(0)
        if has_lse:
            covered = weights[:, needed].sum(0)
            if bool(((covered - 1).abs() < 1e-6).all()):
                total = (weights[:, needed] != 0).sum(0)
                omitted = int(((weights[:, needed] != 0) & (total == 1)).sum(1).argmax())
                weights = weights.clone()
                weights[omitted] = 0
            needed = needed & (weights != 0).any(0)
        keys = torch.nonzero(needed)[:, 0]
        blocks.append(
            Block(
                row, _span(slots), _span(keys), _hidden(seen[:, keys]), weights[:, keys].T.contiguous(), None, omitted
            )
        )
    return blocks


@torch.no_grad()
def mass_rows(
    query: Float[Tensor, "rows heads queries width"],
    key: Float[Tensor, "rows kv_heads tokens width"],
    lse: Float[Tensor, "rows heads queries"] | None,
    blocks: Sequence[Block],
    groups: Sequence[HeadGroup],
    scaling: float,
    segments: int,
) -> Float[Tensor, "rows heads queries segments"]:
    """Attention mass on each segment; `query` and `lse` hold the requested rows of the chosen heads."""
    precision = torch.promote_types(query.dtype, torch.float32)
    out = torch.zeros(*query.shape[:3], segments, dtype=precision, device=query.device)
    for block in blocks:
        weights = block.wanted.to(precision)
        for group in groups:
            norm = None if lse is None else lse[block.row, group.places][:, block.slots]
            p = _probabilities(
                query[block.row, group.places][:, block.slots], key[block.row, group.key], norm, block, scaling
            )
            mass = p @ weights
            if block.omitted >= 0:
                mass[..., block.omitted] = (1 - mass.sum(-1)).clamp_(min=0)
            _put(out[block.row], group.places, block.slots, mass)
    return out


def _put(out: Tensor, places: Index, slots: Index, values: Tensor) -> None:
    """out[places][:, slots] = values, whatever mixture of slices and indices they are."""
    if isinstance(places, Tensor) and isinstance(slots, Tensor):
        out[places[:, None], slots] = values
    else:
        out[places, slots] = values


def _probabilities(
    query: Float[Tensor, "heads queries width"],
    key: Float[Tensor, "tokens width"],
    norm: Float[Tensor, "heads queries"] | None,
    block: Block,
    scaling: float,
) -> Float[Tensor, "heads queries keys"]:
    """exp(scale q.k - norm), 0 where invisible; without `norm` the softmax over the block's keys."""
    s = _logits(query, key[block.keys], norm, scaling)
    if block.hidden is not None:
        s.masked_fill_(block.hidden, float("-inf"))
    return torch.softmax(s, -1) if norm is None else s.exp_()


def _logits(
    query: Float[Tensor, "heads queries width"],
    key: Float[Tensor, "keys width"],
    norm: Float[Tensor, "heads queries"] | None,
    scaling: float,
) -> Float[Tensor, "heads queries keys"]:
    """scale q.k - norm in fp32: all heads that share the key as rows of one product."""
    precision = torch.promote_types(query.dtype, torch.float32)
    shape = (*query.shape[:2], len(key))
    q = query.reshape(-1, query.shape[-1])
    with torch.autocast(query.device.type, enabled=False):
        if q.is_cuda and q.dtype != precision:
            # tensor cores multiply halves exactly and add up in fp32
            s = torch.mm(q, key.T, out_dtype=precision).mul_(scaling)
            return (s if norm is None else s.sub_(norm.reshape(-1, 1))).view(shape)
        q, k = q.to(precision) * scaling, key.to(precision)
        s = q @ k.T if norm is None else torch.addmm(-norm.reshape(-1, 1).to(precision), q, k.T)
    return s.view(shape)


def map_blocks(
    rule: Rule,
    rows: Int[Tensor, "rows queries"],
    keys: Int[Tensor, "rows visual"],
    tokens: int,
    chunk: int,
) -> list[Block]:
    """The work of a map request, the same for every layer: all visible keys, and where the wanted ones are."""
    blocks = []
    for row, slots, seen in _chunks(rule, rows, tokens, chunk):
        needed = seen.any(0)
        place = torch.cumsum(needed, 0) - 1
        target = torch.nonzero((keys[row] >= 0) & needed[keys[row].clamp(min=0)])[:, 0]
        found = torch.nonzero(needed)[:, 0]
        blocks.append(
            Block(
                row, _span(slots), _span(found), _hidden(seen[:, found]), _span(place[keys[row, target]]), _span(target)
            )
        )
    return blocks


class MapRows(torch.autograd.Function):
    """Attention of requested rows on requested keys, differentiable in queries and keys.

    Inputs: queries of the rows (rows, heads, queries, width), all keys (rows, kv_heads, tokens, width), the
    log-sum-exp of the rows or None, the work, its head groups, scale, and the number of columns of a map. The
    log-sum-exp is treated as the function of q and k that it is.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        key: Tensor,
        lse: Tensor | None,
        blocks: Sequence[Block],
        groups: Sequence[HeadGroup],
        scaling: float,
        visual: int,
    ) -> Float[Tensor, "rows heads queries visual"]:
        precision = torch.promote_types(query.dtype, torch.float32)
        out = torch.zeros(*query.shape[:3], visual, dtype=precision, device=query.device)
        norms = torch.zeros(query.shape[:3], dtype=precision, device=query.device) if lse is None else lse
        for block in blocks:
            for group in groups:
                q, k = query[block.row, group.places][:, block.slots], key[block.row, group.key]
                if lse is None:
                    whole = _logits(q, k[block.keys], None, scaling)
                    if block.hidden is not None:
                        whole.masked_fill_(block.hidden, float("-inf"))
                    norm = torch.logsumexp(whole, -1)
                    _put(norms[block.row], group.places, block.slots, norm)
                    p = whole[..., block.wanted].sub(norm[..., None]).exp_()
                else:
                    p = _probabilities(q, k, lse[block.row, group.places][:, block.slots], _columns(block), scaling)
                part = p.new_zeros(*p.shape[:2], visual)
                part[..., block.target] = p
                _put(out[block.row], group.places, block.slots, part)
        ctx.save_for_backward(query, key, norms)
        ctx.blocks, ctx.groups, ctx.scaling = blocks, groups, scaling
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, norms = ctx.saved_tensors
        d_query = torch.zeros(query.shape, dtype=grad.dtype, device=query.device)
        d_key = torch.zeros(key.shape, dtype=grad.dtype, device=key.device)
        for block in ctx.blocks:
            for group in ctx.groups:
                q, k = query[block.row, group.places][:, block.slots], key[block.row, group.key]
                p = _probabilities(q, k, norms[block.row, group.places][:, block.slots], block, ctx.scaling)
                g = grad[block.row, group.places][:, block.slots][..., block.target]
                pg = p[..., block.wanted] * g
                p.mul_(-pg.sum(-1, keepdim=True))
                p[..., block.wanted] += pg
                p = p.flatten(0, 1).mul_(ctx.scaling)
                _put(d_query[block.row], group.places, block.slots, (p @ k[block.keys].to(p.dtype)).view(q.shape))
                d_key[block.row, group.key, block.keys] += p.T @ q.reshape(-1, q.shape[-1]).to(p.dtype)
        return d_query.to(query.dtype), d_key.to(key.dtype), None, None, None, None, None


def _columns(block: Block) -> Block:
    """The block without the keys that the map does not ask for."""
    if isinstance(block.keys, slice):
        if isinstance(block.wanted, slice):
            keys: Index = slice(block.keys.start + block.wanted.start, block.keys.start + block.wanted.stop)
        else:
            keys = block.wanted + block.keys.start
    else:
        keys = block.keys[block.wanted]
    hidden = None if block.hidden is None else block.hidden[:, block.wanted]
    return block._replace(keys=keys, hidden=hidden)
