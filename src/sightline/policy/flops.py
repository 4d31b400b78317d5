"""Model FLOPs of scoring and update passes: what the mathematics asks for, whatever a kernel repeats.

    text       2 x parameters of the linear maps x unique tree tokens
    attention  4 x heads x head width x visible pairs, per decoder layer; a pair is (query, key) with k <= q < end[k]
    vision     2 x parameters of the tower's linear maps per patch (mergers per visual token), its own attention:
               within windows or over the whole image, each distinct image once
    head       2 x width x vocabulary x scored tokens

A multiplication and an addition are two. Embedding look-ups, norms, activations and softmax are not counted, nor is
anything that checkpointing, a flash kernel or chunked logits compute a second time. The backward pass needs the
gradient of the input of every linear map (as much as the forward) and, where the map is trained, the gradient of its
weights (as much again); products of attention cost twice their forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from sightline.policy.architecture import Architecture, Text, Tower

if TYPE_CHECKING:
    from sightline.policy.tree import Tree
    from sightline.types import ImageRef

__all__ = [
    "EVERYTHING", "FROZEN", "Flops", "Trained", "Work", "backward_flops", "forward_flops", "padded_work", "tree_work",
    "update_flops", "visible_pairs",
]  # fmt: skip

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one pass computes. Works add up.

    Attributes:
        tokens: positions of the language model, visual ones included.
        pairs: visible (query, key) pairs, a token's own included.
        scored: tokens whose logits are computed.
        grids: images that are encoded, (frames, rows, columns) in patches.
    """

    tokens: int = 0
    pairs: int = 0
    scored: int = 0
    grids: tuple[Grid, ...] = ()

    def __add__(self, other: Work) -> Work:
        return Work(
            tokens=self.tokens + other.tokens, pairs=self.pairs + other.pairs, scored=self.scored + other.scored,
            grids=self.grids + other.grids,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """FLOPs by part. `text` are the decoder's linear maps, adapters included."""

    text: float = 0.0
    attention: float = 0.0
    vision: float = 0.0
    head: float = 0.0

    @property
    def total(self) -> float:
        return self.text + self.attention + self.vision + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> Flops:
        return Flops(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What receives gradients.

    Attributes:
        text: the weights of the language model, embeddings and head.
        vision: the weights of the vision tower.
        rank: of the LoRA factors beside `targets`; 0 for none.
        targets: linear maps of a decoder layer that have an adapter.
        adapts_vision: all maps of the vision tower have one too, the patch embedding included.
        embeddings: rows of the input embeddings (a `<Focus>` row too); gradients then reach below the first layer.
    """

    text: bool = True
    vision: bool = True
    rank: int = 0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapts_vision: bool = False
    embeddings: bool = False

    @property
    def is_any(self) -> bool:
        return self.text or self.vision or self.rank > 0 or self.embeddings

    @property
    def trains_tower(self) -> bool:
        """Whether anything in the vision tower receives gradients."""
        return self.vision or (self.rank > 0 and self.adapts_vision)

    @property
    def reaches_inputs(self) -> bool:
        """Whether the gradient of the first layer's input is needed."""
        return self.text or self.trains_tower or self.embeddings


EVERYTHING = Trained()
FROZEN = Trained(text=False, vision=False)


def visible_pairs(end: Int[np.ndarray, "tokens"]) -> int:
    """Pairs that the tree rule shows: token k is seen by the `end[k] - k` tokens from itself to its last descendant.

    Example:
        >>> visible_pairs(np.array([4, 4, 4, 4]))  # a plain causal sequence of four
        10
        >>> visible_pairs(np.array([4, 4, 3, 4]))  # two tokens, then two branches of one
        9
    """
    return int((end - np.arange(len(end))).sum())


def tree_work(trees: Iterable[Tree], grid: Callable[[ImageRef], tuple[int, int]], merge: int) -> Work:
    """What a micro-batch of trees computes: each distinct image once, padding not counted.

    Args:
        trees: the trees of the micro-batch.
        grid: rows and columns of visual tokens of an image (`Pixels.grid`).
        merge: patches per side of a visual token.
    """
    work, images = Work(), {}
    for tree in trees:
        work += Work(tokens=len(tree), pairs=visible_pairs(tree.end), scored=int(tree.sampled.sum()))
        images |= {image.digest: image for image, _ in tree.images}
    cells = [grid(image) for image in images.values()]
    return work + Work(grids=tuple((1, rows * merge, columns * merge) for rows, columns in cells))


def padded_work(
    lengths: Sequence[int], scored: int, grids: Sequence[Grid], *, is_dense: bool = False, all_logits: bool = False
) -> Work:
    """What a right-padded batch computes: every sequence as long as the longest.

    Args:
        lengths: tokens of each sequence.
        scored: tokens of the replies.
        grids: the images that are encoded; repeat them where every sequence encodes its own.
        is_dense: attention runs over the whole square, as with a dense mask, instead of the causal half.
        all_logits: logits of every position are computed.
    """
    rows, longest = len(lengths), max(lengths, default=0)
    seen = longest**2 if is_dense else longest * (longest + 1) // 2
    tokens = rows * longest
    return Work(tokens=tokens, pairs=rows * seen, scored=tokens if all_logits else scored, grids=tuple(grids))


def forward_flops(model: Architecture, work: Work, trained: Trained = FROZEN) -> Flops:
    """FLOPs of one forward; adapters of `trained` are counted."""
    text, tower = model.text, _tower(model.vision, work)
    adapters = _tower_adapters(model.vision, work, trained)
    return Flops(
        text=2.0 * work.tokens * text.layers * (_linear(text) + _adapters(text, trained)),
        attention=4.0 * work.pairs * text.layers * text.heads * text.head_width,
        vision=tower.patches + tower.linear + tower.attention + adapters,
        head=2.0 * work.scored * text.width * text.vocab,
    )


def backward_flops(model: Architecture, work: Work, trained: Trained = EVERYTHING) -> Flops:
    """FLOPs of the backward pass of the same work.

    Parts that are frozen and have nothing trained below them cost nothing; frozen parts above something trained cost
    the gradients of their inputs, but none of their weights.
    """
    if not trained.is_any:
        return Flops()
    text, once = model.text, forward_flops(model, work)
    inputs, weights = text.layers * _linear(text), text.layers * _linear(text) if trained.text else 0
    adapters = 2 * text.layers * _adapters(text, trained)
    if not trained.reaches_inputs:  # the queries, keys and values of the first layer pass nothing on
        first = ("q_proj", "k_proj", "v_proj")
        inputs -= sum(text.matrices[name].size for name in first)
        adapters -= sum(trained.rank * text.matrices[n].inputs for n in first if n in trained.targets)
    return Flops(
        text=2.0 * work.tokens * (inputs + weights + adapters),
        attention=2 * once.attention,
        vision=_tower_backward(model.vision, work, trained),
        head=once.head * (2 if trained.text else 1),
    )


def update_flops(model: Architecture, work: Work, trained: Trained = EVERYTHING) -> Flops:
    """Model FLOPs of forward and backward, without recomputation: what MFU counts."""
    return forward_flops(model, work, trained) + backward_flops(model, work, trained)


def _linear(text: Text) -> int:
    """Numbers in the linear maps of one decoder layer."""
    return sum(m.size for m in text.matrices.values())


def _adapters(text: Text, trained: Trained) -> int:
    return sum(m.adapter(trained.rank) for name, m in text.matrices.items() if name in trained.targets)


class _Tower(NamedTuple):
    """Forward FLOPs of the tower: patch embedding, linear maps of blocks and mergers, attention."""

    patches: float
    linear: float
    attention: float


def _tower(tower: Tower, work: Work) -> _Tower:
    patches, cells = _patches(work), tower.cells(work.grids)
    blocks = patches * tower.layers * sum(m.size for m in tower.matrices.values())
    merging = cells * tower.mergers * sum(m.size for m in tower.merger)
    full, windows = tower.pairs(work.grids)
    pairs = tower.full * full + (tower.layers - tower.full) * windows
    return _Tower(2.0 * patches * tower.patch_embedding.size, 2.0 * (blocks + merging), 4.0 * pairs * tower.width)


def _tower_adapters(tower: Tower, work: Work, trained: Trained) -> float:
    """Forward FLOPs of adapters beside every map of the tower, the patch embedding too."""
    if not trained.adapts_vision:
        return 0.0
    block = sum(m.adapter(trained.rank) for m in tower.matrices.values())
    blocks = _patches(work) * (tower.layers * block + tower.patch_embedding.adapter(trained.rank))
    return 2.0 * (blocks + tower.cells(work.grids) * tower.mergers * sum(m.adapter(trained.rank) for m in tower.merger))


def _tower_backward(tower: Tower, work: Work, trained: Trained) -> float:
    if not trained.trains_tower:
        return 0.0
    once, adapters = _tower(tower, work), 2 * _tower_adapters(tower, work, trained)
    if trained.vision:  # the patches themselves need no gradient
        return once.patches + 2 * (once.linear + once.attention) + adapters
    patches = 2.0 * _patches(work) * trained.rank * tower.patch_embedding.inputs
    return once.linear + 2 * once.attention + adapters - patches


def _patches(work: Work) -> int:
    return sum(t * h * w for t, h, w in work.grids)
