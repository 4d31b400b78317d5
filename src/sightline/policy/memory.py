"""Memory of a run, byte by byte: what stays, what an update adds, what sampling adds. Pure arithmetic.

What stays, per parameter: the weight (2 bytes in bf16, 4 in fp32, about half a byte in nf4) and, where it is trained,
two moments (4 bytes each in fp32, about 1 in eight bits) and an fp32 master (none for fp32 weights, and none where
steps are rounded at random). Cards that share a model divide all of this; a share is then fp32 and its own master, and
the layers at work are gathered in the format that computes.

An update adds a gradient per trained parameter, summed over micro-batches; the activations kept for the backward pass;
and the layer, or block of logits, that is at work. Sampling adds keys and values, each prompt's once, and the logits of
one token per reply. The optimiser's step comes when activations are gone, and needs little of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sightline.policy.activations import FP32, Keeping, kept_bytes, layer_bytes, logit_bytes
from sightline.policy.architecture import Architecture
from sightline.policy.flops import EVERYTHING, Trained, Work

__all__ = ["CARDS", "Component", "Memory", "Phase", "Sampled", "Setup", "fits", "memory", "trained_parameters"]

GIB = 2**30
CARDS = {"24 GB": 23.5, "40 GB": 39.4, "80 GB": 79.1, "141 GB": 139.8}
"""Cards by the size they are sold under, with the GiB that a process can use (4090, A100-40, A100/H100-80, H200)."""
CONTEXT = 0.75 * GIB
"""What a CUDA process holds before its first tensor: context, kernels, libraries."""
FRAGMENTATION = 0.05
"""Share of the tensors that the allocator needs on top, because freed blocks do not fit new ones."""
NF4 = 0.5 + 1 / 64 + FP32 / (64 * 256)
"""Bytes per weight in nf4 with double quantisation: 4 bits, a byte of scale per 64, an fp32 number per 256 of those."""
MOMENTS = {"fp32": 2.0 * FP32, "8bit": 2.0 + 2 * FP32 / 256}
"""Bytes of both moments; in eight bits with an fp32 scale per 256 numbers."""
SCORES = 28
"""Bytes per word and reply while one token is drawn: logits and log-probs in fp32, probabilities and their sums in
fp64, and one fp32 copy on the way."""

GROWTH = 32  # positions, see sampling/cache.py
PIECE = 2**23  # numbers, see train/rounding.py

Phase = Literal["always", "update", "step", "sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a run sits in memory.

    Attributes:
        weight: bytes of a number in the format that computes: 2 for bf16, 4 for fp32.
        trained: what receives gradients.
        masters: bf16 weights step in fp32 copies, or in place and rounded at random.
        states: format of the optimiser's moments.
        is_quantised: the linear maps beside adapters are kept in nf4.
        checkpointing: layers are recomputed in the backward pass.
        is_fused: norms and feed-forward layers run fused kernels.
        reference: where a frozen copy for the KL stands; `adapter`: the policy with its adapter off is the reference.
        processes: cards.
        is_sharded: cards share the model; otherwise each has all of it.
        is_cuda: CUDA kernels, CUDA context.
        features: bytes of image features kept where the vision tower is frozen.
    """

    weight: int = 2
    trained: Trained = EVERYTHING
    masters: Literal["fp32", "stochastic"] = "fp32"
    states: Literal["fp32", "8bit"] = "fp32"
    is_quantised: bool = False
    checkpointing: bool = True
    is_fused: bool = False
    reference: Literal["none", "adapter", "device", "cpu"] = "none"
    processes: int = 1
    is_sharded: bool = False
    is_cuda: bool = True
    features: float = 0.0

    @property
    def keeping(self) -> Keeping:
        return Keeping(
            size=self.weight, trained=self.trained, checkpointing=self.checkpointing, is_fused=self.is_fused,
            is_cuda=self.is_cuda,
        )  # fmt: skip

    @property
    def share(self) -> int:
        """Cards that divide the model."""
        return self.processes if self.is_sharded else 1

    @property
    def kept(self) -> float:
        """Bytes of a trained number where the optimiser finds it: shares of a sharded model are fp32 masters."""
        return FP32 if self.is_sharded and self.masters == "fp32" else float(self.weight)

    @property
    def has_masters(self) -> bool:
        """fp32 copies beside the weights; shares of a sharded model are fp32 themselves."""
        return self.weight < FP32 and self.masters == "fp32" and not self.is_sharded


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What the local sampler holds when every reply side by side has grown to its limit.

    Attributes:
        prompts: prompts of the batch, each filled once.
        prompt: tokens of the longest.
        replies: replies of the batch.
        reply: tokens of a reply, all turns together.
    """

    prompts: int
    prompt: int
    replies: int
    reply: int


@dataclass(frozen=True, slots=True)
class Component:
    """One line of the table; `phase` says when it is there."""

    name: str
    bytes: float
    phase: Phase
    why: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes per card, by component."""

    components: tuple[Component, ...]

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def __getitem__(self, name: str) -> float:
        """Bytes of the component of that name, 0 where there is none."""
        return sum((c.bytes for c in self.components if c.name == name), 0.0)

    def during(self, phase: Phase) -> float:
        """What there is in a phase: its own and what stays."""
        return sum((c.bytes for c in self.components if c.phase in ("always", phase)), 0.0)

    @property
    def peak(self) -> float:
        """The largest of the phases, which follow each other."""
        return max(self.during("update"), self.during("step"), self.during("sampling"))


def trained_parameters(model: Architecture, trained: Trained) -> int:
    """How many numbers the optimiser steps, adapters included."""
    own = model.text.parameters * trained.text + model.vision.parameters * trained.vision
    return own + _adapters(model, trained)


def memory(model: Architecture, setup: Setup, work: Work, sampled: Sampled | None = None) -> Memory:
    """Bytes per card.

    Args:
        model: the dimensions.
        setup: precision, what is trained, how many cards.
        work: the largest micro-batch of the update on one card.
        sampled: the largest batch of the local sampler on one card; None where a server samples.
    """
    found = [
        *_staying(model, setup),
        *_updating(model, setup, work),
        Component("optimiser step", _stepping(model, setup), "step", "on the way from moments to weights"),
    ]
    if sampled is not None:
        found += _sampling(model, setup, sampled)
    return Memory(tuple(c for c in found if c.bytes))


def fits(needs: Memory, card: float) -> bool:
    """Whether the peak fits a card of so many GiB, with a share for what fragmentation loses."""
    return needs.peak * (1 + FRAGMENTATION) <= card * GIB


def _staying(model: Architecture, setup: Setup) -> list[Component]:
    trained, count = setup.trained, trained_parameters(model, setup.trained)
    moments = count * MOMENTS[setup.states] / setup.share
    found = [
        Component("weights", _weights(model, setup), "always", "what computes"),
        Component("masters", count * FP32 * setup.has_masters, "always", "fp32 copies that take the steps"),
        Component("moments", moments, "always", "two per trained number"),
        Component("features", setup.features, "always", "of images, while the vision tower is frozen"),
    ]
    if trained.rank:
        adapters = _adapters(model, trained) * setup.kept / setup.share
        found.insert(1, Component("adapters", adapters, "always", f"low-rank matrices, rank {trained.rank}"))
    if setup.reference == "device":
        frozen = model.parameters * setup.weight / setup.share
        found.append(Component("reference", frozen, "always", "the frozen start, for the KL"))
    if setup.is_cuda:
        found.append(Component("context", CONTEXT, "always", "CUDA context and libraries"))
    return found


def _weights(model: Architecture, setup: Setup) -> float:
    """A frozen tower stays whole on every card."""
    text, tower, trained = model.text, model.vision, setup.trained
    language = text.parameters * (setup.kept if trained.text else setup.weight)
    if setup.is_quantised:
        language -= text.layers * sum(text.matrices[name].size for name in trained.targets) * (setup.weight - NF4)
    vision = tower.parameters * (setup.kept if trained.vision else setup.weight)
    return language / setup.share + vision / (setup.share if trained.trains_tower else 1)


def _adapters(model: Architecture, trained: Trained) -> int:
    text, tower = model.text, model.vision
    count = text.layers * sum(m.adapter(trained.rank) for n, m in text.matrices.items() if n in trained.targets)
    if trained.adapts_vision:
        count += tower.layers * sum(m.adapter(trained.rank) for m in tower.matrices.values())
        count += tower.mergers * sum(m.adapter(trained.rank) for m in tower.merger)
        count += tower.patch_embedding.adapter(trained.rank)
    return count


def _updating(model: Architecture, setup: Setup, work: Work) -> list[Component]:
    """Layers at work follow the logits: by then gradients of a micro-batch have taken the place of activations."""
    count, how = trained_parameters(model, setup.trained), setup.keeping
    size = FP32 if setup.has_masters else setup.kept
    fresh = float(count * setup.weight) if setup.has_masters or setup.masters == "stochastic" else 0.0
    kept, logits = kept_bytes(model, how, work), logit_bytes(model.text, how, work)
    layer = layer_bytes(model, how, work) + (0.0 if setup.is_sharded else max(0.0, fresh - kept))
    found = [
        Component("gradients", count * size / setup.share, "update", "summed over micro-batches"),
        Component("gradients", count * size / setup.share, "step", "summed over micro-batches"),
        Component("activations", kept, "update", "of one micro-batch, for its backward pass"),
        Component("at work", max(logits, layer), "update", "one layer or one block of logits"),
    ]
    if setup.is_sharded:
        found.append(Component("gathered", _gathered(model, setup), "update", "root, and two layers with gradients"))
    return found


def _gathered(model: Architecture, setup: Setup) -> float:
    """Embeddings, head and what else is no layer stay gathered; a layer at work, the next one, and their gradients."""
    text, tower = model.text, model.vision
    root = text.parameters - text.layers * text.layer_parameters
    if setup.trained.trains_tower:
        root += tower.parameters - tower.layers * tower.block_parameters
    gradients = FP32 + setup.weight  # as computed, and in fp32 while they are summed over cards
    trains_root = setup.trained.text
    return root * (setup.weight + gradients * trains_root) + 2 * text.layer_parameters * (
        setup.weight + gradients * trains_root
    )


def _stepping(model: Architecture, setup: Setup) -> float:
    """AdamW on CUDA steps in one kernel; on the CPU it takes the roots of one tensor's second moments first.

    Small formats are stepped piece by piece, in fp32; of eight bits, both moments of a tensor are unpacked whole.
    """
    count, text = trained_parameters(model, setup.trained), model.text
    largest = text.embedding if setup.trained.text else max(m.size for m in text.matrices.values())
    numbers = min(count, largest / setup.share)
    if setup.masters == "stochastic" or setup.states == "8bit":
        return min(numbers, PIECE) * 5 * FP32 + (numbers * 3 * FP32 if setup.states == "8bit" else 0.0)
    return 0.0 if setup.is_cuda else numbers * FP32


def _sampling(model: Architecture, setup: Setup, sampled: Sampled) -> list[Component]:
    text, size = model.text, setup.weight
    token = text.layers * 2 * text.kv_heads * text.head_width * size
    filled = sampled.prompts * sampled.prompt
    cache = float((filled + sampled.replies * _capacity(sampled.reply)) * token)
    # one forward over all prompts of the batch: the feed-forward layer, and the mask where it is a square
    filling = filled * size * (3 * text.inner + 4 * text.width + sampled.prompt)
    scores = sampled.replies * text.vocab * SCORES
    found = [
        Component("keys and values", cache, "sampling", "prompts once, every reply to its limit"),
        Component(
            "at work", float(max(filling, scores)), "sampling", "filling the prompts, or one token of all replies"
        ),
    ]
    if setup.is_sharded:
        whole = float(model.parameters * size)
        found.append(Component("gathered", whole, "sampling", "the whole model, to sample without exchange"))
    return found


def _capacity(tokens: int) -> int:
    """Positions that the growing cache of a reply has by then: half as much again whenever it is full."""
    capacity = GROWTH
    while capacity < tokens:
        capacity += max(GROWTH, capacity // 2)
    return capacity
