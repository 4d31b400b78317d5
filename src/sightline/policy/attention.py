"""The attention of the language model: the token-tree mask, shared-prefix decoding and the hook for read-outs.

Token q of a row may attend to token k iff `k <= q < end[k]`, where `end[k]` is one past the last descendant of k in the
depth-first layout of the token tree. One integer per token describes the whole mask; a plain causal sequence is the
special case `end[k] = length`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["NAME", "Decoder", "Readout", "block_mask", "dense_mask", "switch_attention", "tree_mask"]

NAME = "sightline"


class Readout(Protocol):
    """Sees the post-RoPE queries and un-repeated keys of every decoder layer; stores what it was asked for."""

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Any, scaling: float) -> None: ...


class Decoder(Protocol):
    """Holds the keys and values of a running generation and attends to them (see `sampling/cache.py`)."""

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor: ...


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Stock attention under the mask it is given: SDPA for a dense mask, FlexAttention for a block mask.

    `readout` and `decoder` travel as keywords of the model call, so that recomputation under activation checkpointing
    sees the same request.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    if decoder is not None:
        return decoder.attend(layer, query, scaling), None
    if readout is not None:
        readout.observe(layer, query, key, attention_mask, scaling)
    if attention_mask is None or isinstance(attention_mask, Tensor):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    else:
        out, _ = flex_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    return out, None


def switch_attention(model: Any) -> None:
    """Puts the language model on our attention; the vision tower stays on its own.

    The mask function is registered under the same name: without it transformers drops the mask of a padded batch
    silently.
    """
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    model.set_attn_implementation({"text_config": NAME})


def dense_mask(end: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> Float[Tensor, "rows 1 tokens tokens"]:
    """The tree rule as an additive mask: 0 where visible, the lowest number of `dtype` elsewhere."""
    index = torch.arange(end.shape[1], device=end.device)
    visible = (index[None, :] <= index[:, None]) & (index[None, :, None] < end[:, None, :])
    mask = torch.zeros(visible.shape, dtype=dtype, device=end.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def block_mask(end: Int[Tensor, "rows tokens"]) -> BlockMask:
    """The tree rule as a FlexAttention block mask (CUDA)."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, tokens = end.shape

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return (k <= q) & (q < end[b, k])

    return create_block_mask(visible, rows, None, tokens, tokens, device=str(end.device), _compile=True)


def tree_mask(end: Int[Tensor, "rows tokens"], dtype: torch.dtype) -> Any:
    """The mask of a packed row: dense for SDPA on CPU, blocks for FlexAttention on CUDA."""
    return block_mask(end) if end.is_cuda else dense_mask(end, dtype)
