"""Functions that torch.compile reads, by themselves or within a layer. They stand apart from the code that calls them
because shape checks, which tests put around every function of `policy/`, would end up in the compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "allow_shapes", "attended", "compiled", "in_graph", "logit_gradient", "logprobs", "tree_rule",
    "within_segments",
]  # fmt: skip

NARROWEST = 16
"""The least head width FlexAttention takes; narrower heads are filled up with zeros, which changes no product."""

SHAPES = 128
"""How many shapes of one function the compiler may keep; each costs seconds once."""


@cache
def compiled(function: Callable[..., Any], *, dynamic: bool | None = None) -> Any:
    """The function, compiled the first time it is asked for."""
    allow_shapes()
    return torch.compile(function, dynamic=dynamic, fullgraph=True)


def allow_shapes() -> None:
    """Lets the compiler keep as many shapes of a function as there are widths of rows."""
    import torch._dynamo

    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * SHAPES)


def tree_rule(end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Who sees whom in a token tree, as FlexAttention asks for it."""

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return (k <= q) & (q < end[b, k])

    return rule


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float) -> tuple[Tensor, Tensor]:
    """FlexAttention and its log-sum-exp in fp32.

    Where several query heads share a key head, keys are repeated all the same: the backward kernel has one program per
    key head and block of keys, too few to fill a card.
    """
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    fold, width = query.shape[1] // key.shape[1], query.shape[3]
    if fold > 1:
        key, value = key.repeat_interleave(fold, 1), value.repeat_interleave(fold, 1)
    if width < NARROWEST:
        query, key, value = (functional.pad(x, (0, NARROWEST - width)) for x in (query, key, value))
    out, extra = flex_attention(query, key, value, block_mask=mask, scale=scaling, return_aux=AuxRequest(lse=True))
    assert extra.lse is not None
    return out[..., :width], extra.lse


def in_graph(attention: Callable[..., Any]) -> Callable[..., Any]:
    """An attention function for compiled layers: a block mask by itself stays in the graph, all else is `attention`.

    So is every call of a layer that runs as it was written, as those of a copy do: uncompiled, FlexAttention would fill
    in all pairs.
    """
    from torch.nn.attention.flex_attention import BlockMask

    disable: Any = torch.compiler.disable
    outside = disable(attention)

    def chosen(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, scaling: float,
        readout: Any = None, decoder: Any = None, layout: Any = None, dropout: float = 0.0, **kwargs: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        is_alone = readout is None and decoder is None and not dropout and isinstance(attention_mask, BlockMask)
        if is_alone and torch.compiler.is_compiling():
            out, _ = attended(query, key, value, attention_mask, scaling)
            return out.transpose(1, 2), None
        return outside(
            module, query, key, value, attention_mask, scaling=scaling, readout=readout, decoder=decoder, layout=layout,
            dropout=dropout, **kwargs,
        )  # fmt: skip

    return chosen


def within_segments(
    module: Any,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of (1, heads, patches, width) within segments of the sequence, by one variable-length flash kernel.

    The scale is the kernel's own, width ** -0.5, as the vision towers have it. Returns (1, patches, heads, width).
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out: Any = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return out[None], None


def logprobs(
    z: Tensor, bias: Tensor, target: Tensor, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(s)[target], log sum exp s and the entropy, for s = (z + bias) / temperature in fp32."""
    s = _scores(z, bias, temperature)
    total = torch.logsumexp(s, -1)
    chosen = s.gather(-1, target[:, None])[:, 0]
    log_p = s - total[:, None]
    entropy = -(torch.exp(log_p) * log_p).sum(-1) if entropies else total.new_empty(0)
    return chosen - total, total, entropy


def logit_gradient(z: Tensor, bias: Tensor, target: Tensor, total: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """grad (onehot(target) - exp(s - total)) / temperature, in the precision of z."""
    is_target = torch.arange(z.shape[1], device=z.device) == target[:, None]
    p = torch.exp(_scores(z, bias, temperature) - total[:, None])
    return ((is_target.float() - p) * (grad[:, None] / temperature)).to(z.dtype)


def _scores(z: Tensor, bias: Tensor, temperature: float) -> Tensor:
    return (z.float() + bias) / temperature
