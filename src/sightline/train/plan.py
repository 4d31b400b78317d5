"""What a step of a run would compute and hold, counted before anything is loaded.

The prompts of a few records are encoded for real and laid out as the token trees that a step would build from them;
replies are taken at their longest, conversations at all their turns with crops as large as the picture they come from.
What is told is therefore the most a step can cost, except that sampling in several rounds is counted once.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from sightline.policy.batch import microbatches
from sightline.policy.flops import Flops, Trained, Work, forward_flops, padded_work, tree_work, update_flops
from sightline.policy.memory import Sampled, Setup, trained_parameters
from sightline.policy.targets import chosen
from sightline.policy.tree import Tree, build_tree, rollout_path
from sightline.train.possible import with_adapter
from sightline.types import ImageRef, ImageSlot, Prompt, Rollout, Span, Turn

if TYPE_CHECKING:
    from sightline.config import Recipe
    from sightline.methods.base import Method, Stage, Stream
    from sightline.policy.architecture import Architecture
    from sightline.policy.outline import Outline
    from sightline.types import Record

__all__ = ["LOOKED_AT", "Passes", "Plan", "plan", "setup_of"]

LOOKED_AT = 16
"""Records whose prompts are encoded."""
WORDS = 32
"""Tokens of the user's words in a turn of a rule that does not tell them."""
SHARDED = 500_000_000
"""Trained parameters from which `train.parallel: auto` shards (see `train/sharding.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How often a step runs over its trees, beside sampling.

    Attributes:
        updates: forward and backward.
        scoring: forward only, of the same trees: old log-probs and attention, then one per changed image.
        reference: forward only, of the frozen start.
    """

    updates: int
    scoring: int
    reference: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One reinforcement step of a run, at its longest.

    Attributes:
        outline: the policy.
        setup: how it sits in memory.
        method: decides streams, probes and stages.
        passes: over the trees of a step.
        records: per step; `looked` are the ones that were encoded.
        streams: rollouts of a step by stream.
        prompts: tokens of every prompt that was encoded, visual ones included.
        visual: visual tokens of each.
        trees: the tree of every record that was encoded.
        unshared: lengths of its sequences if each stood alone, with its images, record by record.
        sampled: what the local sampler holds at most; None where servers sample.
        budget: tokens per forward pass.
        stages: of the whole run, with their steps.
    """

    outline: Outline
    setup: Setup
    method: Method
    passes: Passes
    records: int
    streams: dict[str, int]
    prompts: tuple[int, ...]
    visual: tuple[int, ...]
    trees: tuple[Tree, ...]
    unshared: tuple[tuple[tuple[int, int], ...], ...]
    sampled: Sampled | None
    budget: int
    stages: tuple[tuple[Stage, int], ...]

    @property
    def model(self) -> Architecture:
        return self.outline.model

    @property
    def share(self) -> float:
        """Records of a step per record that was encoded."""
        return self.records / len(self.trees)

    def _work(self, trees: Sequence[Tree]) -> Work:
        return tree_work(trees, self.outline.grid, self.model.vision.merge)

    @cached_property
    def works(self) -> tuple[Work, ...]:
        """What each tree computes; a step's trees share no images."""
        return tuple(self._work([tree]) for tree in self.trees)

    @property
    def tree_tokens(self) -> float:
        """Tokens of a step as trees."""
        return self.share * sum(work.tokens for work in self.works)

    @property
    def unshared_tokens(self) -> float:
        """Tokens of a step with every rollout by itself, without padding."""
        return self.share * sum(length for group in self.unshared for length, _ in group)

    @cached_property
    def micro(self) -> Work:
        """The largest micro-batch of an update on one card, padding included."""
        count = max(1, -(-self.records // self.setup.processes))
        drawn = [self.trees[i % len(self.trees)] for i in range(count)]
        rows = microbatches([len(t) for t in drawn], self.budget, packs=self.setup.is_cuda)
        found = []
        for batch in rows:
            work = self._work([drawn[i] for row in batch for i in row])
            width = max(sum(len(drawn[i]) for i in row) for row in batch)
            # one tree may stand for several records here, whose images are different ones
            images = tuple(grid for row in batch for i in row for grid in self.works[i % len(self.trees)].grids)
            found.append(replace(work, tokens=width * len(batch), grids=images))
        return max(found, key=lambda work: work.tokens)

    def update(self) -> Flops:
        """Model FLOPs of forward and backward over a step's trees."""
        return self._sum(lambda work: update_flops(self.model, work, self.setup.trained))

    def forward(self) -> Flops:
        """Model FLOPs of one forward over a step's trees."""
        return self._sum(lambda work: forward_flops(self.model, work))

    def padded(self) -> Flops:
        """Model FLOPs of the same update as a padded batch per record, an image per rollout, logits of the replies."""
        works = []
        for group, own in zip(self.unshared, self.works, strict=True):
            scored = sum(reply for _, reply in group)
            works.append(padded_work([length for length, _ in group], scored, own.grids * len(group)))
        flops = [update_flops(self.model, work, self.setup.trained) for work in works]
        return sum(flops, Flops()) * self.share

    def _sum(self, count: Callable[[Work], Flops]) -> Flops:
        return sum((count(work) for work in self.works), Flops()) * self.share


def setup_of(recipe: Recipe, model: Architecture, processes: int = 1, *, is_adapted: bool = False) -> Setup:
    """How the policy of a recipe sits in memory on so many cards.

    Args:
        recipe: with the adapter that the policy already has (`possible.with_adapter`).
        model: its dimensions.
        processes: cards.
        is_adapted: the policy has an adapter at the start, so that the reference is a copy.
    """
    own, is_cuda = recipe.model, _is_cuda(recipe.model.device)
    trained = trained_of(recipe, model)
    count = trained_parameters(model, trained)
    quantised = own.lora is not None and own.lora.quantise is not None
    is_sharded = processes > 1 and (
        recipe.train.parallel == "fsdp"
        or (recipe.train.parallel == "auto" and count > SHARDED and not quantised and recipe.optim.states == "fp32")
    )
    reference: Literal["none", "adapter", "device", "cpu"] = "none"
    if recipe.method_config.objective.kl > 0:
        is_off = own.lora is not None and not is_adapted
        reference = "adapter" if is_off else "cpu" if own.reference == "cpu" else "device"
    fused = own.kernels == "liger" or (
        own.kernels == "auto" and is_cuda and importlib.util.find_spec("liger_kernel") is not None
    )
    return Setup(
        weight=4 if own.dtype == "float32" else 2, trained=trained, masters=own.masters, states=recipe.optim.states,
        is_quantised=quantised, checkpointing=own.checkpointing, is_fused=fused, reference=reference,
        processes=processes, is_sharded=is_sharded, is_cuda=is_cuda,
        features=0.0 if trained.trains_tower else own.feature_cache * 2**20,
    )  # fmt: skip


def trained_of(recipe: Recipe, model: Architecture) -> Trained:
    """What the recipe trains: everything, the language model alone, or adapters.

    An adapter of some layers of a kind is counted as one of all.
    """
    own = recipe.model
    if own.lora is None:
        return Trained(vision=own.train_vision)
    adapted = chosen(list(model.linear), own.lora.targets)
    language = {name.rpartition(".")[2] for name in adapted if ".language_model." in name}
    targets = tuple(name for name in model.text.matrices if name in language)
    has_rows = any(stage.focus is not None for stage in _method(recipe).stages())
    return Trained(
        text=False, vision=False, rank=own.lora.rank, targets=targets, embeddings=has_rows,
        adapts_vision=any(".visual." in name for name in adapted),
    )  # fmt: skip


def plan(recipe: Recipe, outline: Outline, *, processes: int = 1, looked: int = LOOKED_AT, length: float = 1.0) -> Plan:
    """Counts a step of a recipe without arms.

    Args:
        recipe: decides everything.
        outline: its policy.
        processes: cards.
        looked: records to encode, at most.
        length: of every reply, as a share of its limit.

    Raises:
        UserError: the records cannot be read, or the recipe asks for what cannot be.
    """
    recipe, method = with_adapter(recipe, outline.model, outline.adapter), _method(recipe)
    records = _records(recipe, looked)
    streams: Counter[str] = Counter()
    prompts, visual, trees, unshared = [], [], [], []
    widest, longest = 0, 0
    for record in records:
        rollouts: list[Rollout] = []
        for stream in method.streams(record):
            made = list(_rollouts(recipe, outline, record, stream, length))
            streams[stream.name] += len(made)
            prompts.append(len(made[0].prompt_ids))
            visual.append(int((made[0].prompt_ids == outline.image_token).sum()))
            widest, longest = max(widest, prompts[-1]), max(longest, max(len(r.ids) for r in made))
            rollouts += made
        trees.append(build_tree([rollout_path(r, outline.image_token) for r in rollouts], outline.rules))
        unshared.append(tuple((len(r.prompt_ids) + len(r.ids), int(r.sampled.sum())) for r in rollouts))
    share = recipe.data.records_per_step / len(records)
    return Plan(
        outline=outline, method=method,
        setup=setup_of(recipe, outline.model, processes, is_adapted=outline.adapter is not None),
        passes=_passes(recipe, method), records=recipe.data.records_per_step,
        streams={name: round(share * count) for name, count in streams.items()}, prompts=tuple(prompts),
        visual=tuple(visual), trees=tuple(trees), unshared=tuple(unshared), budget=recipe.train.token_budget,
        sampled=_sampled(recipe, processes, share, len(prompts), sum(streams.values()), widest, longest),
        stages=tuple((s, recipe.train.steps if s.steps is None else s.steps) for s in method.stages()),
    )  # fmt: skip


def _method(recipe: Recipe) -> Method:
    from sightline.methods import load_method

    return load_method(recipe.method)


def _records(recipe: Recipe, looked: int) -> list[Record]:
    """Records evenly spaced over a file; the first ones of scenes."""
    from sightline.data import open_source

    data = recipe.data
    source = open_source(
        data.train, split="train", seed=recipe.train.seed, reader=data.reader, image_root=data.image_root,
        frame=data.frame, limit=data.limit, types=data.types,
    )  # fmt: skip
    if source.size is None:
        return [source.at(i) for i in range(looked)]
    count = min(looked, source.size)
    return [source.at(i * source.size // count) for i in range(count)]


def _rollouts(recipe: Recipe, outline: Outline, record: Record, stream: Stream, length: float) -> Iterator[Rollout]:
    """The rollouts of one prompt, every reply as long as it may be, or a share of that."""
    from sightline.language.prompts import prompt

    shown = prompt(
        record, stream.name, stream.template, outline.style, forced_prefix=stream.forced_prefix, frame=outline.frame
    )
    ids = outline.encode(shown).ids
    most = int((stream.sampling or {}).get("max_new_tokens", recipe.sampling.max_new_tokens))
    limit = max(1, round(most * length))
    replies, forks, sampled, turns, images = _conversation(outline, shown, stream, limit)
    for branch in np.ndindex(*stream.branches):
        # every branch looks closer at a place of its own
        own = tuple(
            replace(image, digest=f"{stream.name}{branch[: turn + 1]}{turn}") for turn, image in enumerate(images)
        )
        yield Rollout(
            prompt=shown, branch=tuple(int(b) for b in branch), prompt_ids=ids, ids=replies, sampled=sampled,
            logprobs=np.zeros(len(replies)), text="", finish="length", turns=turns, images=own,
            forks=forks[: len(stream.branches) - 1],
        )  # fmt: skip


def _conversation(
    outline: Outline, shown: Prompt, stream: Stream, limit: int
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray, tuple[Turn, ...], tuple[ImageRef, ...]]:
    """Ids after the prompt, where deeper branches begin, which ids are sampled, the user's turns, and their images."""
    reply = np.zeros(limit, np.int64)
    rule = stream.turns
    if rule is None:
        return reply, (), np.ones(limit, bool), (), ()
    crop = shown.images[:1]
    syntax = getattr(rule, "syntax", None)
    words = "" if syntax is None else syntax.follow_up(len(crop), (), outline.style)
    added = outline.encode_turn((*(ImageSlot(i) for i in range(len(crop))), words), crop).ids
    if syntax is None:
        added = np.concatenate([added, np.zeros(WORDS, np.int64)])
    pieces, forks, turns, at = [reply], [], [], limit
    for _ in range(int(getattr(rule, "max_turns", 2)) - 1):
        pieces += [added, reply]
        turns.append(Turn(role="user", span=Span(at, at + len(added)), images=tuple(range(len(crop)))))
        forks.append(at + len(added))
        at += len(added) + limit
    sampled = np.concatenate([np.full(len(p), p is reply) for p in pieces])
    return np.concatenate(pieces), tuple(forks), sampled, tuple(turns), crop * len(turns)


def _passes(recipe: Recipe, method: Method) -> Passes:
    from sightline.methods.probes import Contrast, GoldLikelihood

    optim, probes = recipe.optim, method.probes()
    old = recipe.train.old_logprobs
    if old == "auto":
        old = "none" if optim.inner_steps == optim.epochs == 1 else "learner"
    scoring = int(bool(probes) or old == "learner")
    scoring += sum(p.draws for p in probes if isinstance(p, Contrast))
    scoring += sum(isinstance(p, GoldLikelihood) for p in probes)
    return Passes(updates=optim.epochs, scoring=scoring, reference=optim.epochs * (method.config.objective.kl > 0))


def _sampled(
    recipe: Recipe, processes: int, share: float, prompts: int, replies: int, prompt: int, reply: int
) -> Sampled | None:
    """The largest batch of the local sampler: whole requests, up to `sampling.batch` replies."""
    if recipe.sampling.server is not None:
        return None
    per_prompt = replies / prompts
    side_by_side = min(max(recipe.sampling.batch, per_prompt), share * replies / processes)
    return Sampled(
        prompts=max(1, round(side_by_side / per_prompt)), prompt=prompt, replies=round(side_by_side), reply=reply
    )


def _is_cuda(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    import torch

    return torch.cuda.is_available()
