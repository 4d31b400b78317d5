"""The attention of the language model: the token-tree mask, shared-prefix decoding and the hook for read-outs.

Token q of a row may attend to token k iff `k <= q < end[k]`, where `end[k]` is one past the last descendant of k in the
depth-first layout of the token tree. One integer per token describes the whole mask; a plain causal sequence is the
special case `end[k] = length`.

On CPU the rule needs no mask: a run of tokens with equal `end` is a chain that attends to itself causally, and its
descendants, a contiguous range, attend to all of it (`TreeLayout`, `TreeAttention`). Siblings never meet, so the work
is that of the visible pairs rather than of the whole square.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sightline.kernels import attended, compiled
from sightline.policy.flex import block_mask

__all__ = [
    "NAME",
    "Decoder",
    "Readout",
    "TreeAttention",
    "TreeLayout",
    "dense_mask",
    "switch_attention",
    "tree_inputs",
    "tree_mask",
]

NAME = "sightline"


@runtime_checkable
class Readout(Protocol):
    """Sees the post-RoPE queries and un-repeated keys of every decoder layer; stores what it was asked for.

    `rule` is the tree layout, else the mask as it came. `lse` is the log-sum-exp of every query's logits, where the
    kernel tells it. After the forward, `complete` raises if something asked for is missing.
    """

    def observe(
        self, layer: int, query: Tensor, key: Tensor, rule: Any, scaling: float, lse: Tensor | None = None
    ) -> None: ...

    def complete(self, needs_grad: bool) -> None: ...


@runtime_checkable
class Decoder(Protocol):
    """Holds the keys and values of a running generation and attends to them (see `sampling/cache.py`)."""

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor: ...


class Part(NamedTuple):
    """One rectangle (or causal triangle) of visible pairs, as indices into (rows, heads, tokens, ...).

    `is_first` says that these queries have met no key before.
    """

    queries: tuple[slice, slice, slice]
    keys: tuple[slice, slice, slice]
    is_causal: bool
    is_first: bool


class TreeLayout:
    """The tree rule as parts, ancestors before descendants. A plain class: FSDP2 rebuilds dataclass arguments.

    Roots that see only themselves are padding and get no part; nothing reads their output, which is zero.
    """

    def __init__(self, end: Int[Tensor, "rows tokens"]) -> None:
        self.end = end

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for row, ends in enumerate(self.end.cpu().numpy()) for part in _parts(row, ends))


def _parts(row: int, end: Int[np.ndarray, "tokens"]) -> list[Part]:
    def tokens(start: int, stop: int) -> tuple[slice, slice, slice]:
        return slice(row, row + 1), slice(None), slice(start, stop)

    starts = np.flatnonzero(np.diff(end, prepend=-1))
    covered = np.concatenate([[0], np.maximum.accumulate(end)])
    parts = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(end)], strict=True):
        last, is_root = int(end[start]), bool(covered[start] <= start)
        if is_root and last == start + 1:
            continue
        own = tokens(start, stop)
        parts.append(Part(own, own, True, is_root))
        if last > stop:
            parts.append(Part(tokens(stop, last), own, False, is_root))
    return parts


class TreeAttention(torch.autograd.Function):
    """Attention over a token tree, part by part, with the flash kernel that SDPA uses on CPU.

    A query's parts are merged by their log-sum-exp: `l = log(e^{l_1} + e^{l_2})`, `out = sum e^{l_i - l} out_i`. Given
    the merged output and log-sum-exp, the kernel's backward of each part is that part of the whole gradient. The
    kernels are called below SDPA because SDPA keeps the log-sum-exp to itself. Returns the output and the merged
    log-sum-exp, which carries no gradient.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scaling: float
    ) -> tuple[Float[Tensor, "rows heads tokens width"], Float[Tensor, "rows heads tokens"]]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        rows, heads, tokens, width = query.shape
        out = query.new_zeros(rows, tokens, heads, width).transpose(1, 2)
        precision = torch.promote_types(query.dtype, torch.float32)
        total = torch.zeros(rows, tokens, heads, dtype=precision).transpose(1, 2)
        for at, seen, is_causal, is_first in layout.parts:
            part, lse = kernel(query[at], key[seen], value[seen], 0.0, is_causal, scale=scaling)
            if is_first:
                out[at], total[at] = part, lse
            else:
                out[at].lerp_(part, torch.sigmoid(lse - total[at]).to(part.dtype)[..., None])
                total[at] = torch.logaddexp(total[at], lse)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.mark_non_differentiable(total)
        ctx.layout, ctx.scaling = layout, scaling
        return out, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, out, total = ctx.saved_tensors
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
        for at, seen, is_causal, _ in ctx.layout.parts:
            q, k, v = kernel(
                grad[at], query[at], key[seen], value[seen], out[at], total[at], 0.0, is_causal, scale=ctx.scaling
            )
            d_query[at].add_(q)
            d_key[seen].add_(k)
            d_value[seen].add_(v)
        return d_query, d_key, d_value, None, None


def attention(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads queries width"],
    key: Float[Tensor, "rows kv_heads tokens width"],
    value: Float[Tensor, "rows kv_heads tokens width"],
    attention_mask: Any,
    *,
    scaling: float,
    dropout: float = 0.0,
    readout: Readout | None = None,
    decoder: Decoder | None = None,
    layout: TreeLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a tree layout on CPU; FlexAttention for a block mask; stock SDPA for a dense mask or none.

    `readout`, `decoder` and `layout` travel as keywords of the model call, so that recomputation under activation
    checkpointing sees the same request. On CPU the layout replaces the mask, which is then a placeholder; on CUDA it
    tells a read-out what the block mask hides.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    if readout is not None:
        _refuse_unreadable(dropout, decoder, **kwargs)
    if decoder is not None:
        return decoder.attend(layer, query, scaling), None
    lse = None
    if dropout and layout is not None:
        raise ValueError("attention over a token tree has no dropout; set attention_dropout to 0")
    if layout is not None and query.device.type == "cpu":
        fold = query.shape[1] // key.shape[1]
        out, lse = TreeAttention.apply(query, repeat_kv(key, fold), repeat_kv(value, fold), layout, scaling)  # type: ignore[misc]
        out = out.transpose(1, 2)
    elif attention_mask is None or isinstance(attention_mask, Tensor):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    else:
        out, lse = compiled(attended, dynamic=False)(query, key, value, attention_mask, scaling)
        out = out.transpose(1, 2)
    if readout is not None:
        readout.observe(layer, query, key, attention_mask if layout is None else layout, scaling, lse)
    return out, None


def _refuse_unreadable(dropout: float, decoder: Decoder | None, **kwargs: Any) -> None:
    """A read-out repeats the softmax of the layer, so it refuses what it would not repeat."""
    if dropout:
        raise ValueError("attention cannot be read with dropout; set attention_dropout to 0")
    if decoder is not None:
        raise ValueError("attention is read in a forward over the whole sequence, not while decoding")
    for name in ("sliding_window", "softcap"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attention cannot be read in a layer with {name}")


def switch_attention(model: Any, function: Callable[..., Any] = attention, name: str = NAME) -> None:
    """Puts the language model on our attention, or a form of it; the vision tower stays on its own.

    The mask function is registered under the same name: without it transformers drops the mask of a padded batch
    silently.
    """
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, sdpa_mask)
    model.set_attn_implementation({"text_config": name})


def dense_mask(end: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> Float[Tensor, "rows 1 tokens tokens"]:
    """The tree rule as an additive mask: 0 where visible, the lowest number of `dtype` elsewhere."""
    index = torch.arange(end.shape[1], device=end.device)
    visible = (index[None, :] <= index[:, None]) & (index[None, :, None] < end[:, None, :])
    mask = torch.zeros(visible.shape, dtype=dtype, device=end.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def tree_mask(end: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> Any:
    """The mask of a packed row: blocks for FlexAttention on CUDA, dense for SDPA elsewhere."""
    return block_mask(end) if end.is_cuda else dense_mask(end, dtype)


def tree_inputs(end: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Mask and keywords that make the model call follow the tree rule: the layout does it on CPU, a mask elsewhere.

    The placeholder mask that goes with a layout has four axes, which transformers passes through as it is.
    """
    mask = torch.zeros(1, 1, 1, 1, dtype=dtype) if end.device.type == "cpu" else tree_mask(end, dtype)
    return mask, {"layout": TreeLayout(end)}
