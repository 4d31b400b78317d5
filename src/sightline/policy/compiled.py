"""Regional compilation: every decoder layer and vision block by torch.compile, the code of a kind once for all of them.

What is compiled serves passes over whole batches, with and without gradient. Attention stands outside the graphs, so
that read-outs see queries and keys as they do without compilation; FlexAttention is compiled on its own. The sampler's
forwards, whose caches grow token by token, run as they are (`uncompiled`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightline.policy.adapter import ModelAdapter

__all__ = ["compile_blocks", "uncompiled"]


def compile_blocks(adapter: ModelAdapter) -> None:
    """Compiles the model's layers in place; names and parameters stay as they are.

    The graphs take any number of tokens, so that no step compiles anew.
    """
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from sightline.policy import attention, towers

    for name, function in ((attention.NAME, attention.attention), (towers.NAME, towers.varlen_attention)):
        ALL_ATTENTION_FUNCTIONS.register(name, torch.compiler.disable(function))
    for block in _blocks(adapter.model):
        block.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, compiled layers run as they were written."""
    import torch

    return torch.compiler.set_stance("force_eager")


def _blocks(model: Any) -> list[Any]:
    """Decoder layers and vision blocks, by the names transformers gives the classes it never splits."""
    names = {n for m in model.modules() for n in (getattr(m, "_no_split_modules", None) or ())}
    return [m for m in model.modules() if type(m).__name__ in names]
