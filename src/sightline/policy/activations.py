"""Bytes that the backward pass of an update reads: what autograd keeps of every layer, counted tensor by tensor.

Counted for the modules of transformers as they are. A norm keeps its input in fp32 and, where its scale is trained, the
normalised input; rotary embeddings keep nothing of the queries; attention keeps queries, keys, values, its output and
one log-sum-exp per head; a gated feed-forward layer keeps both branches, the activation and their product. The input of
a linear map is kept where its weights or an adapter are trained. With fused kernels a norm keeps its input as it is and
the feed-forward layer neither the activation nor, unless it feeds something trained, the product.
"""

from __future__ import annotations

from dataclasses import dataclass

from sightline.policy.architecture import Architecture, Text, Tower
from sightline.policy.flops import Trained, Work

__all__ = ["BLOCK", "Keeping", "kept_bytes", "layer_bytes", "logit_bytes"]

FP32 = 4.0
BLOCK = 2**27
"""Numbers in a block of logits (see `policy/forward.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What decides how much is kept.

    Attributes:
        size: bytes of a number in the format that computes.
        trained: what receives gradients.
        checkpointing: layers are recomputed from their input.
        is_fused: norms and feed-forward layers run fused kernels.
        is_cuda: keys and values are not repeated per query head, and logits stay in the format that computes; the
            kernels for the CPU need both.
    """

    size: int
    trained: Trained
    checkpointing: bool
    is_fused: bool = False
    is_cuda: bool = True


def kept_bytes(model: Architecture, how: Keeping, work: Work) -> float:
    """Kept from the forward until the backward pass arrives there.

    With checkpointing one input per layer, without it the inside of every layer.
    """
    text, tower = model.text, model.vision
    layer = text.width * how.size if how.checkpointing else _layer(text, how)
    kept = work.tokens * (text.layers * layer + _norm(text.width, how)) + work.scored * text.width * how.size
    if how.trained.trains_tower:
        patches = sum(t * h * w for t, h, w in work.grids)
        block = tower.width * how.size if how.checkpointing else _block(tower, how)
        kept += patches * (tower.layers * block + _ends(tower, how))
    return float(kept) if how.trained.is_any else 0.0


def layer_bytes(model: Architecture, how: Keeping, work: Work) -> float:
    """Needed on top while the backward pass of one layer is at work.

    Gradients on the way: two of the inner width of the feed-forward layer and two of the model's. With checkpointing
    also the layer's inside, computed once more.
    """
    text, tower = model.text, model.vision
    layer = how.size * 2 * (text.inner + text.width) + (_layer(text, how) if how.checkpointing else 0)
    if not how.trained.trains_tower:
        return float(work.tokens * layer)
    patches = sum(t * h * w for t, h, w in work.grids)
    block = how.size * 2 * (tower.inner + tower.width) + (_block(tower, how) if how.checkpointing else 0)
    return float(max(work.tokens * layer, patches * block))


def logit_bytes(text: Text, how: Keeping, work: Work) -> float:
    """A block of logits and its gradient; on the CPU three in fp32: logits, softmax, and one on the way."""
    block = min(work.scored, max(128, BLOCK // text.vocab))
    return block * text.vocab * (2.0 * how.size if how.is_cuda else 3 * FP32)


def _layer(text: Text, how: Keeping) -> float:
    """Bytes per token of one decoder layer."""
    size, trained = how.size, how.trained
    queries, keys = text.heads * text.head_width, text.kv_heads * text.head_width
    held = keys if how.is_cuda else queries
    reads = {name for name in text.matrices if trained.text or (trained.rank and name in trained.targets)}
    total = 2 * _norm(text.width, how) + FP32 * text.heads
    total += size * text.width * (bool(reads & {"q_proj", "k_proj", "v_proj"}) + bool(reads & {"gate_proj", "up_proj"}))
    if text.has_head_norms:
        total += _norm(queries, how) + _norm(keys, how)
    total += size * (2 * queries + 2 * held)
    total += size * text.inner * ((2 if how.is_fused else 3) + ("down_proj" in reads))
    return total + size * trained.rank * sum(name in trained.targets for name in text.matrices)


def _norm(width: int, how: Keeping) -> float:
    """Of an RMSNorm, its output not counted."""
    if how.is_fused:
        return float(width * how.size)
    return width * (FP32 + how.size * how.trained.text)


def _block(tower: Tower, how: Keeping) -> float:
    """Bytes per patch of one block of the tower: the joint projection, queries and keys after rotation, the output."""
    size, width = how.size, tower.width
    norm = width * (FP32 + size if tower.is_gated and not how.is_fused else size)
    inner = ((2 if how.is_fused else 3) + 1 if tower.is_gated else 2) * tower.inner
    return 2 * (norm + size * width) + 7 * size * width + FP32 * tower.heads + size * inner


def _ends(tower: Tower, how: Keeping) -> float:
    """Bytes per patch before the first block and after the last: the patch itself, and what the mergers keep."""
    size, width = float(how.size), tower.width
    norm = width * (FP32 + size if tower.is_gated and not how.is_fused else size)
    return (
        size * tower.patch_embedding.inputs
        + norm
        + tower.mergers * 3 * size * width
        + (tower.mergers - 1) * size * width
    )
