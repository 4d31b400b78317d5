"""Memory of a run, byte by byte: what stays, what an update adds, what sampling adds. Pure arithmetic.

What stays on every card, per parameter: the weights (2 bytes in bf16, 4 in fp32, about half a byte in nf4), and for
those that are trained an fp32 master copy (none where the weights are fp32 or rounded stochastically), a gradient that
adds up over micro-batches, and two moments (4 bytes each, or 1 with 8-bit states). Several cards divide these.

What an update adds are activations kept for the backward pass: with checkpointing one vector per token and layer and
the inside of a single layer, without it the inside of all layers; and one block of logits, never all of them.

What sampling adds are keys and values: every prompt once, every reply by itself, and one row of logits per reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sightline.policy.architecture import Architecture, Text, Tower
from sightline.policy.flops import EVERYTHING, Trained, Work

__all__ = ["BLOCK", "Component", "Memory", "Sampled", "Setup", "activations", "memory", "parameters"]

FP32 = 4
BLOCK = 2**27
"""Numbers in a block of logits (see `policy/forward.py`)."""
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in nf4 with double quantisation: 4 bits, an 8-bit scale per 64 weights, an fp32 scale per 256 of
those."""
STATES = {"fp32": 8.0, "8bit": 2.0 + 2 * FP32 / 256}
"""Bytes of both moments of a parameter; 8-bit states have an fp32 scale per 256 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a run sits in memory.

    Attributes:
        weight: bytes of a weight that computes.
        trained: what receives gradients.
        masters: fp32 copies of bf16 weights, or stochastic rounding without them.
        states: the optimiser's moments.
        is_quantised: the decoder's frozen linear maps are kept in nf4.
        checkpointing: activations are recomputed layer by layer.
        reference: where a frozen copy for the KL stands; `adapter`: the policy without its adapter, which needs none.
        processes: cards.
        is_sharded: the cards divide weights, masters, gradients and moments; otherwise every card holds all of them.
    """

    weight: int = 2
    trained: Trained = EVERYTHING
    masters: Literal["fp32", "stochastic"] = "fp32"
    states: Literal["fp32", "8bit"] = "fp32"
    is_quantised: bool = False
    checkpointing: bool = True
    reference: Literal["none", "adapter", "device", "cpu"] = "none"
    processes: int = 1
    is_sharded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What the local sampler holds when every reply has grown to its limit: prompts, replies, tokens of each."""

    prompts: int = 0
    prompt: int = 0
    replies: int = 0
    reply: int = 0


@dataclass(frozen=True, slots=True)
class Component:
    """One line of the table. `phase` says when it is there: always, during the update, or while sampling."""

    name: str
    bytes: float
    phase: Literal["always", "update", "sampling"]
    why: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per card, by component."""

    components: tuple[Component, ...]

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def __getitem__(self, name: str) -> float:
        """Bytes of the components of a name."""
        return sum(c.bytes for c in self.components if c.name == name)

    def during(self, *phases: str) -> float:
        return sum(c.bytes for c in self.components if c.phase in phases)

    @property
    def static(self) -> float:
        """What stays."""
        return self.during("always")

    @property
    def update(self) -> float:
        return self.during("always", "update")

    @property
    def sampling(self) -> float:
        return self.during("always", "sampling")

    @property
    def peak(self) -> float:
        """The larger of both phases, which follow each other."""
        return max(self.update, self.sampling)


def parameters(model: Architecture, trained: Trained) -> tuple[int, int]:
    """Parameters of the model that are trained, and those of adapters beside it."""
    own = model.text.parameters * trained.text + model.vision.parameters * trained.vision
    adapters = sum(m.adapter(trained.rank) for n, m in model.text.matrices.items() if n in trained.targets)
    return own, model.text.layers * adapters


def memory(model: Architecture, setup: Setup, work: Work, sampled: Sampled | None = None) -> Memory:
    """Bytes per card.

    Args:
        model: the dimensions.
        setup: precision, what is trained, how many cards.
        work: the largest micro-batch of the update.
        sampled: what the local sampler holds at most; None where a server samples.
    """
    own, adapters = parameters(model, setup.trained)
    share = setup.processes if setup.is_sharded else 1
    components = [
        Component("weights", _weights(model, setup) / share, "always", "parameters that compute"),
        *_training(own, adapters, setup, share),
        Component("activations", activations(model, setup, work), "update", "kept for the backward pass"),
        Component("logits", _logits(model.text, setup, work), "update", "one block of them"),
    ]
    if setup.reference == "device":
        frozen = model.parameters * setup.weight
        components.append(Component("reference", frozen / share, "always", "frozen copy for the KL"))
    if sampled is not None:
        components.append(
            Component("keys and values", _cache(model.text, setup, sampled), "sampling", "of all replies")
        )
    return Memory(tuple(c for c in components if c.bytes))


def _weights(model: Architecture, setup: Setup) -> float:
    total = model.parameters * setup.weight
    if setup.is_quantised:
        linear = model.text.layers * sum(m.size for m in model.text.matrices.values())
        total -= linear * (setup.weight - NF4)
    return total


def _training(own: int, adapters: int, setup: Setup, share: int) -> list[Component]:
    """Masters, gradients and moments; adapters are fp32 and their own masters."""
    has_masters = setup.weight < FP32 and setup.masters == "fp32"
    gradient = FP32 + setup.weight if has_masters else setup.weight
    return [
        Component("adapters", adapters * FP32 / share, "always", "LoRA factors, fp32"),
        Component("masters", own * FP32 * has_masters / share, "always", "fp32 copies that the optimiser steps"),
        Component("gradients", (own * gradient + adapters * FP32) / share, "update", "summed over micro-batches"),
        Component("optimiser", (own + adapters) * STATES[setup.states] / share, "always", "both moments"),
    ]


def activations(model: Architecture, setup: Setup, work: Work) -> float:
    """Bytes kept for the backward pass of one micro-batch, plus the layer that is being recomputed."""
    size, text, tower = setup.weight, model.text, model.vision
    patches = sum(t * h * w for t, h, w in work.grids)
    inside = work.tokens * _inside_layer(text, size, setup.trained)
    kept = text.layers * (work.tokens * text.width * size) + inside if setup.checkpointing else text.layers * inside
    if setup.trained.vision:
        block = patches * _inside_block(tower, size)
        kept += tower.layers * patches * tower.width * size + block if setup.checkpointing else tower.layers * block
    return kept


def _inside_layer(text: Text, size: int, trained: Trained) -> float:
    """Bytes per token that the backward pass of one decoder layer reads."""
    queries, keys = text.heads * text.head_width, text.kv_heads * text.head_width
    norm = (FP32 if size < FP32 else 0) + size * (1 + trained.text)
    heads = (norm * (queries + keys)) if text.has_head_norms else 0
    attention = size * 2 * (queries + keys) + FP32 * text.heads
    return 2 * text.width * (norm + size) + heads + attention + 4 * size * text.inner


def _inside_block(tower: Tower, size: int) -> float:
    norm = (FP32 if size < FP32 else 0) + 2 * size if tower.is_gated else size
    return 2 * tower.width * (norm + size) + 5 * size * tower.width + (4 if tower.is_gated else 2) * size * tower.inner


def _logits(text: Text, setup: Setup, work: Work) -> float:
    """A block of logits as the model writes it, in fp32, and its softmax."""
    block = min(work.scored, max(128, BLOCK // text.vocab))
    return block * text.vocab * (setup.weight + 2 * FP32)


def _cache(text: Text, setup: Setup, sampled: Sampled) -> float:
    tokens = sampled.prompts * sampled.prompt + sampled.replies * sampled.reply
    return tokens * text.layers * 2 * text.kv_heads * text.head_width * setup.weight


def with_cards(setup: Setup, processes: int) -> Setup:
    """The same run on so many cards, which divide it."""
    return replace(setup, processes=processes, is_sharded=processes > 1)
