"""The learner: measures Rollouts and updates the policy. It executes credit and knows no method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from sightline.credit.weights import normalised_weights
from sightline.policy.batch import Batch
from sightline.policy.packing import Packer
from sightline.probes.scoring import scoring_pass
from sightline.probes.update import UpdateReadings
from sightline.train.distributed import World
from sightline.train.exchange import Elsewhere
from sightline.train.lockstep import Lockstep
from sightline.train.mismatch import corrected
from sightline.train.optimiser import Optimiser
from sightline.train.sharding import forget_unreached, laid_out, sum_gradients, whole
from sightline.train.supervised import supervised_loss
from sightline.train.timing import Phases, Usage
from sightline.types import Credit, Group

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.config.sections import Optim
    from sightline.methods.base import Method, Probe
    from sightline.objectives import LossBatch
    from sightline.policy.load import Policy
    from sightline.policy.packing import Packed
    from sightline.train.reference import Reference
    from sightline.types import ImageRef

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
        world: the processes of the run. Each is given all groups and runs those that are not `Elsewhere`.
        masters: where bfloat16 weights take their steps.
        importance_cap: C of the correction for a sampler of another engine; None for the learner's own.
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
        world: World | None = None,
        masters: Literal["fp32", "stochastic"] = "fp32",
        importance_cap: float | None = None,
    ) -> None:
        self.policy, self.optim, self.seed = policy, optim, seed
        self.importance_cap = importance_cap
        self.world = world or World()
        self.lockstep = Lockstep(policy, self.world)
        self.temperature = temperature
        self.packer = Packer(policy, token_budget, shares=shares)
        self.optimiser = Optimiser([p for p in policy.module.parameters() if p.requires_grad], optim, masters)
        self.reference: Reference | None = None
        self.progress = 0.0
        self.phases, self.usage = Phases(policy.device), Usage(policy)
        self.schedule(0, steps)

    def schedule(self, first: int, steps: int, lr: float | None = None) -> None:
        """The learning-rate schedule spans `steps` training steps from `first` on, up to `lr` (the recipe's)."""
        self.first, self.steps, self.lr = first, steps, self.optim.lr if lr is None else lr

    def restart(self) -> None:
        """Forgets what the optimiser has seen."""
        self.optimiser.restart()

    def measure(
        self,
        groups: Sequence[Group],
        probes: Sequence[Probe] = (),
        step: int = 0,
        *,
        others: Sequence[ImageRef] | None = None,
    ) -> list[Group]:
        """A scoring pass without gradient: log-probs, entropies and probes of every sampled token.

        Args:
            groups: this process's own.
            probes: what to measure beside log-probs and entropies.
            step: training step; decides the draws of interventions.
            others: images of the whole step, among which a swap chooses; by default those of `groups`.
        """
        with whole(self.policy):
            return scoring_pass(
                self.packer, groups, probes, temperature=self.temperature, key=(self.seed, step), others=others
            )

    def step(self, groups: Sequence[Group], method: Method, step: int) -> Update:
        """One rollout batch: `inner_steps x epochs` optimiser steps over minibatches of whole groups."""
        self.phases = Phases(self.policy.device)
        objective = method.config.objective
        is_prunable = objective.kl == 0 and not _acts_without_advantage(method)
        parts: list[dict[str, float]] = []
        lr = self._set_lr(step)
        self.progress = min(1.0, (step - self.first) / max(1, self.steps))
        with self.phases.timed("update"):
            for epoch in range(self.optim.epochs):
                for minibatch in self._minibatches(groups, step, epoch):
                    parts.append(self._optimise(minibatch, method, is_prunable))
        metrics = {
            k: float(np.mean([p[k] for p in parts if k in p])) for k in dict.fromkeys(k for p in parts for k in p)
        }
        for key in ("update/tokens", "update/tokens_unshared"):
            metrics[key] = float(sum(p.get(key, 0.0) for p in parts))
        metrics["update/lr"] = lr
        seconds = self.spent()
        return Update(metrics={**metrics, **self.usage.metrics(seconds["update"])}, seconds=seconds)

    def spent(self) -> dict[str, float]:
        """Seconds of the last step: passes over the batch, and the optimiser's own."""
        seconds = self.phases.seconds()
        return {**seconds, "update": seconds.get("update", 0.0) - seconds.get("optimise", 0.0)}

    def _optimise(self, groups: Sequence[Group], method: Method, is_prunable: bool) -> dict[str, float]:
        objective = method.config.objective
        weights = normalised_weights(groups, objective.normalisation, method.stream_weights(groups))
        weighted = [
            replace(g, credits=tuple(replace(c, weight=w) for c, w in zip(g.credits, ws, strict=True)))
            for g, ws in zip(groups, weights, strict=True)
        ]
        carried = [g for g in (_carrying(g, is_prunable) for g in weighted) if len(g)]
        terms: dict[str, float] = {}
        losses: list[dict[str, Tensor | float]] = []
        bounded = sum(bool(g.record.regions) for g in carried)
        own = [g for g in carried if not isinstance(g, Elsewhere)]
        self.policy.model.train()
        for packed, bare in self.lockstep.over(self.packer.groups(own), lambda packed: packed.batch):
            if packed is None:
                self._idle(bare, method)
                continue
            loss, tokens = self._loss(replace(packed, batch=bare), own, method, bounded)
            terms["update/tokens"] = terms.get("update/tokens", 0.0) + tokens
            losses.append(loss)
        for loss in losses:  # read only now, so that the device need not wait between micro-batches
            for name, value in loss.items():
                terms[name] = terms.get(name, 0.0) + float(value)
        terms = self.world.total(terms)
        carried_weight = sum(float(c.weight.sum()) for g in carried for c in g.credits)
        for name in [n for n in terms if n.startswith("policy/")]:
            terms[name] /= carried_weight  # means over the tokens that were computed
        terms["update/tokens_unshared"] = float(
            sum(len(r.prompt_ids) + len(r.ids) for g in carried for r in g.rollouts)
        )
        terms["update/grad_norm"] = self._apply() if carried else 0.0
        return terms

    def _loss(
        self, packed: Packed, groups: Sequence[Group], method: Method, bounded: int
    ) -> tuple[dict[str, Tensor | float], int]:
        """Forward and backward of one micro-batch; its terms and tokens."""
        members = [groups[part.group] for part in packed.parts]
        batch = _with_measured(packed.batch.with_credit([g.credits for g in members]), members)
        batch = self._with_reference(replace(batch, progress=self.progress), method)
        readings = UpdateReadings(method.probes(), self.policy, packed, bounded)
        outputs = self.policy.module(batch, temperature=self.temperature, entropies=True, readout=readings.readout)
        outputs = replace(outputs, maps=readings.maps())
        batch, engine = corrected(batch, members, outputs.logprobs, self.importance_cap)
        loss = method.loss(cast("LossBatch", batch), outputs)
        self._backward(loss.total, outputs.logprobs)
        self.usage.add(batch)
        return {**{name: value.detach() for name, value in loss.terms.items()}, **engine}, batch.tokens

    def _with_reference(self, batch: Batch, method: Method) -> Batch:
        if self.reference is None or method.config.objective.kl == 0:
            return batch
        return replace(batch, reference_logprobs=self.reference.logprobs(batch, self.temperature))

    def _idle(self, batch: Batch, method: Method) -> None:
        """Computes what the other processes need to go on, and learns nothing."""
        self._with_reference(batch, method)
        logprobs = self.policy.module(batch, temperature=self.temperature, entropies=True).logprobs
        self._backward(logprobs.sum(), logprobs)

    def _backward(self, loss: Tensor, logprobs: Tensor) -> None:
        """Gradients of a part of the loss. Sharded weights are averaged over processes, where ours add up.

        There every layer is also reached by a zero from the log-probs, as it is in the other processes.
        """
        if self.lockstep.is_sharded:
            loss = (loss + 0.0 * logprobs.sum()) * self.world.size
        loss.backward()
        self.optimiser.collect()

    def _apply(self, *, decays: bool = True, is_partial: bool = False) -> float:
        """One optimiser step on the gradients of all processes; returns their norm before clipping."""
        masters = self.optimiser.weights.masters
        if not self.lockstep.is_sharded:
            sum_gradients(self.world, masters)
        elif is_partial:
            forget_unreached(self.world, masters)
        with self.phases.timed("optimise"):
            return self.optimiser.apply(decays=decays)

    def imitate(self, batches: Sequence[Batch], step: int) -> Update:
        """One supervised step: the mean log-prob of all demonstrated tokens rises."""
        total = sum(self.world.gather(sum(len(b.target) for b in batches)))
        loss = 0.0

        def parts() -> Iterator[Tensor]:
            nonlocal loss
            for _, batch in self.lockstep.over(batches, lambda batch: batch):
                part = supervised_loss(self.policy, batch, total)
                loss += float(part.detach())
                self.usage.add(batch)
                yield part

        metrics = self.descend(parts(), step)
        loss = self.world.total({"loss": loss})["loss"]
        return Update(metrics={"supervised/loss": loss, **metrics}, seconds=self.spent())

    def descend(
        self,
        losses: Iterable[Tensor],
        step: int,
        *,
        lr: float | None = None,
        decays: bool = True,
        masks: Sequence[tuple[Tensor, Tensor]] = (),
        is_partial: bool = False,
    ) -> dict[str, float]:
        """One optimiser step on a sum of losses, each of which is gone before the next is computed.

        Args:
            losses: one per micro-batch; with sharded weights as many in every process (see `Lockstep`).
            step: training step, for the schedule.
            lr: learning rate in place of the schedule's.
            decays: with weight decay.
            masks: parameters of which only the entries with a 1 are trained.
            is_partial: the loss ends below the head and leaves some parameters without a gradient.
        """
        rate, self.phases = self._set_lr(step), Phases(self.policy.device)
        self.policy.model.train()
        with self.phases.timed("update"):
            for loss in losses:
                (loss * self.world.size if self.lockstep.is_sharded else loss).backward()
                self.optimiser.collect()
            for parameter, mask in masks:
                grad = self.optimiser.master(parameter).grad
                if grad is not None:
                    grad.mul_(laid_out(mask, grad))
            if lr is not None:
                self.optimiser.set_lr(lr)
            norm = self._apply(decays=decays, is_partial=is_partial)
        used = self.usage.metrics(self.spent()["update"])
        return {"update/grad_norm": norm, "update/lr": rate if lr is None else lr, **used}

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

    def state(self, *, is_rounded: bool = False) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights, in shares where the weights are.

        Args:
            is_rounded: the weights are saved with fewer digits than their shares have.
        """
        found = self.optimiser.state()
        if self.lockstep.is_sharded and is_rounded:
            found["masters"] = [p.detach() for p in self.optimiser.weights.parameters]
        return found

    def like(self, name: str) -> Tensor | None:
        """The parameter that a tensor of the state belongs to, by the names of `train/shards.py`."""
        kind, *place = name.split(".")
        if kind == "masters":
            return self.optimiser.weights.parameters[int(place[0])]
        if kind == "state":
            return [p for group in self.optimiser.adamw.param_groups for p in group["params"]][int(place[0])]
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that any number of processes saved."""
        groups = self.optimiser.adamw.state_dict()["param_groups"]
        if self.lockstep.is_sharded:
            laid = {i: self._shares(i, entry) for i, entry in state["optimizer"]["state"].items()}
            state = {**state, "optimizer": {"state": laid}}
            with torch.no_grad():
                for share, master in zip(self.optimiser.weights.parameters, state["masters"], strict=False):
                    share.copy_(laid_out(master, share))
            state["masters"] = []
        self.optimiser.load_state({**state, "optimizer": {"param_groups": groups, **state["optimizer"]}})

    def _shares(self, number: int, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of the optimiser's tensors for one parameter, from whole ones or from shares."""
        own = self.like(f"state.{number}")
        assert own is not None
        return {name: laid_out(value, own) if value.shape == own.shape else value for name, value in entry.items()}


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
