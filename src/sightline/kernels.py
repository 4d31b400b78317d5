"""Functions that are handed to torch.compile, compiled once each. They stand apart from the code that calls them
because shape checks, which tests put around every function of `policy/`, would end up in the compiled graph.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["attended", "compiled", "logit_gradient", "logprobs", "tree_rule"]

SHAPES = 128
"""How many shapes of one function the compiler may keep; each costs seconds once."""


@cache
def compiled(function: Callable[..., Any], *, dynamic: bool | None = None) -> Any:
    """The function, compiled the first time it is asked for."""
    import torch._dynamo

    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * SHAPES)
    return torch.compile(function, dynamic=dynamic, fullgraph=True)


def tree_rule(end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Who sees whom in a token tree, as FlexAttention asks for it."""

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return (k <= q) & (q < end[b, k])

    return rule


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float) -> tuple[Tensor, Tensor]:
    """FlexAttention and its log-sum-exp."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    out, extra = flex_attention(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    assert extra.lse is not None
    return out, extra.lse


def logprobs(
    z: Tensor, bias: Tensor, target: Tensor, temperature: float, entropies: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """log softmax(s)[target], log sum exp s and the entropy, for s = (z + bias) / temperature in fp32."""
    s = _scores(z, bias, temperature)
    total = torch.logsumexp(s, -1)
    chosen = s.gather(-1, target[:, None])[:, 0]
    entropy = total - (torch.exp(s - total[:, None]) * s).sum(-1) if entropies else total.new_empty(0)
    return chosen - total, total, entropy


def logit_gradient(
    z: Tensor, bias: Tensor, target: Tensor, total: Tensor, grad: Tensor, temperature: float
) -> Tensor:
    """grad (onehot(target) - exp(s - total)) / temperature, in the precision of z."""
    is_target = torch.arange(z.shape[1], device=z.device) == target[:, None]
    p = torch.exp(_scores(z, bias, temperature) - total[:, None])
    return ((is_target.float() - p) * (grad[:, None] / temperature)).to(z.dtype)


def _scores(z: Tensor, bias: Tensor, temperature: float) -> Tensor:
    return (z.float() + bias) / temperature
