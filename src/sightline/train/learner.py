"""The learner: measures Rollouts and updates the policy. It executes credit and knows no method."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sightline.credit.weights import normalised_weights
from sightline.policy.batch import Batch
from sightline.policy.packing import Packer
from sightline.probes.scoring import scoring_pass
from sightline.probes.update import UpdateReadings
from sightline.train.optimiser import Optimiser
from sightline.train.supervised import supervised_loss
from sightline.types import Credit, Group

if TYPE_CHECKING:
    from sightline.config.sections import Optim
    from sightline.methods.base import Method, Probe
    from sightline.objectives import LossBatch
    from sightline.policy.load import Policy
    from sightline.train.reference import Reference

__all__ = ["Learner", "Update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one training step did: metrics by name, seconds by part."""

    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Learner:
    """Owns the optimiser and the reference of one policy.

    Args:
        policy: the policy to train.
        optim: optimiser settings.
        steps: length of the learning-rate schedule in training steps.
        temperature: the sampling temperature, applied to every log-prob.
        token_budget: tokens per forward pass.
        shares: merge common prefixes (`tree`); otherwise every Rollout is a sequence of its own (`padded`).
        seed: orders the groups of inner steps.
    """

    def __init__(
        self,
        policy: Policy,
        optim: Optim,
        *,
        steps: int,
        temperature: float = 1.0,
        token_budget: int = 8192,
        shares: bool = True,
        seed: int = 0,
    ) -> None:
        self.policy, self.optim, self.seed = policy, optim, seed
        self.temperature = temperature
        self.packer = Packer(policy, token_budget, shares=shares)
        self.optimiser = Optimiser([p for p in policy.module.parameters() if p.requires_grad], optim)
        self.reference: Reference | None = None
        self.progress = 0.0
        self.schedule(0, steps)

    def schedule(self, first: int, steps: int, lr: float | None = None) -> None:
        """The learning-rate schedule spans `steps` training steps from `first` on, up to `lr` (the recipe's)."""
        self.first, self.steps, self.lr = first, steps, self.optim.lr if lr is None else lr

    def restart(self) -> None:
        """Forgets what the optimiser has seen."""
        self.optimiser.restart()

    def measure(self, groups: Sequence[Group], probes: Sequence[Probe] = (), step: int = 0) -> list[Group]:
        """A scoring pass without gradient: log-probs, entropies and probes of every sampled token."""
        return scoring_pass(self.packer, groups, probes, temperature=self.temperature, key=(self.seed, step))

    def step(self, groups: Sequence[Group], method: Method, step: int) -> Update:
        """One rollout batch: `inner_steps x epochs` optimiser steps over minibatches of whole groups."""
        started = time.perf_counter()
        objective = method.config.objective
        is_prunable = objective.kl == 0 and not _acts_without_advantage(method)
        parts: list[dict[str, float]] = []
        lr = self._set_lr(step)
        self.progress = min(1.0, (step - self.first) / max(1, self.steps))
        for epoch in range(self.optim.epochs):
            for minibatch in self._minibatches(groups, step, epoch):
                parts.append(self._optimise(minibatch, method, is_prunable))
        metrics = {
            k: float(np.mean([p[k] for p in parts if k in p])) for k in dict.fromkeys(k for p in parts for k in p)
        }
        for key in ("update/tokens", "update/tokens_unshared"):
            metrics[key] = float(sum(p.get(key, 0.0) for p in parts))
        metrics["update/lr"] = lr
        return Update(metrics=metrics, seconds={"update": time.perf_counter() - started})

    def _optimise(self, groups: Sequence[Group], method: Method, is_prunable: bool) -> dict[str, float]:
        objective = method.config.objective
        weights = normalised_weights(groups, objective.normalisation, method.stream_weights(groups))
        weighted = [
            replace(g, credits=tuple(replace(c, weight=w) for c, w in zip(g.credits, ws, strict=True)))
            for g, ws in zip(groups, weights, strict=True)
        ]
        carried = [g for g in (_carrying(g, is_prunable) for g in weighted) if len(g)]
        terms: dict[str, float] = {}
        probes, bounded = method.probes(), sum(bool(g.record.regions) for g in carried)
        self.policy.model.train()
        for packed in self.packer.groups(carried):
            members = [carried[part.group] for part in packed.parts]
            batch = _with_measured(packed.batch.with_credit([g.credits for g in members]), members)
            batch = replace(batch, progress=self.progress)
            if self.reference is not None and objective.kl > 0:
                batch = replace(batch, reference_logprobs=self.reference.logprobs(batch, self.temperature))
            readings = UpdateReadings(probes, self.policy, packed, bounded)
            outputs = self.policy.module(batch, temperature=self.temperature, entropies=True, readout=readings.readout)
            outputs = replace(outputs, maps=readings.maps())
            loss = method.loss(cast("LossBatch", batch), outputs)
            loss.total.backward()
            self.optimiser.collect()
            terms["update/tokens"] = terms.get("update/tokens", 0.0) + batch.tokens
            for name, value in loss.terms.items():
                terms[name] = terms.get(name, 0.0) + float(value)
        carried_weight = sum(float(c.weight.sum()) for g in carried for c in g.credits)
        for name in [n for n in terms if n.startswith("policy/")]:
            terms[name] /= carried_weight  # means over the tokens that were computed
        terms["update/tokens_unshared"] = float(
            sum(len(r.prompt_ids) + len(r.ids) for g in carried for r in g.rollouts)
        )
        terms["update/grad_norm"] = self.optimiser.apply() if carried else 0.0
        return terms

    def imitate(self, batches: Sequence[Batch], step: int) -> Update:
        """One supervised step: the mean log-prob of all demonstrated tokens rises."""
        started = time.perf_counter()
        total = sum(len(b.target) for b in batches)
        loss = 0.0

        def parts() -> Iterator[torch.Tensor]:
            nonlocal loss
            for batch in batches:
                part = supervised_loss(self.policy, batch, total)
                loss += float(part.detach())
                yield part

        metrics = self.descend(parts(), step)
        return Update(metrics={"supervised/loss": loss, **metrics}, seconds={"update": time.perf_counter() - started})

    def descend(
        self, losses: Iterable[torch.Tensor], step: int, *, lr: float | None = None, decays: bool = True
    ) -> dict[str, float]:
        """One optimiser step on a sum of losses, each of which is gone before the next is computed.

        Args:
            losses: one per micro-batch.
            step: training step, for the schedule.
            lr: learning rate in place of the schedule's.
            decays: with weight decay.
        """
        rate = self._set_lr(step)
        self.policy.model.train()
        for loss in losses:
            loss.backward()
            self.optimiser.collect()
        if lr is not None:
            self.optimiser.set_lr(lr)
        norm = self.optimiser.apply(decays=decays)
        return {"update/grad_norm": norm, "update/lr": rate if lr is None else lr}

    def _minibatches(self, groups: Sequence[Group], step: int, epoch: int) -> Iterator[list[Group]]:
        """Cuts the groups into `inner_steps` near-equal parts, whole groups each, in a seeded order."""
        if self.optim.inner_steps == 1:
            yield list(groups)
            return
        order = np.random.default_rng((self.seed, step, epoch)).permutation(len(groups))
        for part in np.array_split(order, min(self.optim.inner_steps, len(groups))):
            yield [groups[i] for i in sorted(part)]

    def _set_lr(self, step: int) -> float:
        o, step = self.optim, step - self.first
        scale = min(1.0, (step + 1) / (o.warmup_steps + 1))
        progress = min(1.0, max(0.0, (step - o.warmup_steps) / max(1, self.steps - o.warmup_steps)))
        if o.schedule == "cosine":
            scale *= 0.5 * (1 + np.cos(np.pi * progress))
        elif o.schedule == "linear":
            scale *= 1 - progress
        lr = self.lr * float(scale)
        self.optimiser.set_lr(lr)
        return lr

    def state(self) -> dict[str, Any]:
        return self.optimiser.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state(state)


def _acts_without_advantage(method: Method) -> bool:
    from sightline.methods.base import Method

    return type(method).loss is not Method.loss and method.config.acts_without_advantage


def _with_measured(batch: Batch, groups: Sequence[Group]) -> Batch:
    """Old log-probs and probes per scored token. Without old log-probs the update is strictly on-policy."""
    if not all(g.measurements for g in groups):
        return batch
    seen = [g.measurements for g in groups]
    if all(m.logprobs is not None for row in seen for m in row):
        batch = batch.with_logprobs([[m.logprobs for m in row if m.logprobs is not None] for row in seen])
    shapes = {name: v.shape[1:] for row in reversed(seen) for m in reversed(row) for name, v in m.probes.items()}
    probes = {}
    for name, axes in shapes.items():
        values = [
            [m.probes.get(name, np.full((len(r.ids), *axes), np.nan)) for m, r in zip(row, g.rollouts, strict=True)]
            for row, g in zip(seen, groups, strict=True)
        ]
        probes[name] = batch.gather(values, axes)
    return replace(batch, probes=probes)


def _carrying(group: Group, is_prunable: bool) -> Group:
    """Without KL a Rollout whose advantages are all zero has no gradient: it is left out of the forward pass."""

    def carries(credit: Credit) -> bool:
        return bool((credit.weight != 0).any() and (not is_prunable or (credit.weight * credit.advantage != 0).any()))

    return group.at([i for i, c in enumerate(group.credits) if carries(c)])
