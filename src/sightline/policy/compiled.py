"""Regional compilation: every decoder layer and vision block by torch.compile, the code of a kind once for all of them.

What is compiled serves passes over whole batches, with and without gradient: decoder layers once per width of a row
(`policy/flex.py` pads rows to few), vision blocks once for any number of patches. A layer whose attention is read or
decoded leaves its graph for it. The sampler's forwards, whose caches grow token by token, run uncompiled.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sightline.policy.adapter import ModelAdapter

__all__ = ["NAME", "compile_blocks", "uncompiled"]

NAME = "sightline_compiled"
"""The attention of compiled layers; other policies of the process keep theirs."""


def compile_blocks(adapter: ModelAdapter, *, backend: str = "inductor") -> None:
    """Compiles the model's layers in place; names and parameters stay as they are."""
    from sightline.kernels import allow_shapes, in_graph
    from sightline.policy.attention import attention, switch_attention

    allow_shapes()
    switch_attention(adapter.model, in_graph(attention), NAME)
    for block in _blocks(adapter.model):
        if hasattr(block, "self_attn"):
            block.compile(dynamic=False, backend=backend)
        else:
            # Qwen2.5-VL's vision blocks are 3,420 wide inside, for which the card has only slow kernels
            padded = {"options": {"force_shape_pad": True}} if backend == "inductor" else {}
            block.compile(dynamic=True, backend=backend, **padded)


def uncompiled() -> AbstractContextManager[Any]:
    """Within it, compiled layers run as they were written."""
    return torch.compiler.set_stance("force_eager")


def _blocks(model: Any) -> list[Any]:
    """Decoder layers and vision blocks, by the names transformers gives the classes it never splits."""
    names = {n for m in model.modules() for n in (getattr(m, "_no_split_modules", None) or ())}
    return [m for m in model.modules() if type(m).__name__ in names]
