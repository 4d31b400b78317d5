"""The sides of the update benchmark: the token tree and two padded batches, each one forward, loss and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sightline.config.sections import Optim
from sightline.credit.weights import normalised_weights
from sightline.methods.grpo import GRPO, GRPOConfig
from sightline.policy.batch import Batch, collate
from sightline.policy.forward import Outputs, TokenLogprobs
from sightline.policy.load import Policy, load_policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.train.learner import Learner
from sightline.types import Group

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["PaddedSide", "Side", "TreeSide", "agreement", "bench_policy", "reference_logprobs", "weighted"]


class Side(Protocol):
    """One way to compute the same update."""

    @property
    def model(self) -> Any: ...

    def update(self) -> float:
        """Forward, loss and backward from cleared gradients; returns the loss."""
        ...


def bench_policy(folder: Path, *, checkpointing: bool = False, stock: bool = False) -> Policy:
    """A policy without banned ids, since the peers ban none in their loss; `stock`: transformers' own attention."""
    policy = load_policy(folder, checkpointing=checkpointing)
    policy.module.bias.zero_()
    if stock:
        policy.model.set_attn_implementation({"text_config": "sdpa"})
    policy.model.train()
    return policy


def reference_logprobs(groups: Sequence[Group], seed: int = 1) -> list[list[np.ndarray]]:
    """Stands in for a frozen reference: the old log-probs plus fixed noise, per Rollout token."""
    rng = np.random.default_rng(seed)
    return [
        [(m.logprobs + rng.normal(0, 0.1, len(m.logprobs))).astype(np.float32) for m in g.measurements]  # type: ignore[operator]
        for g in groups
    ]


def weighted(groups: Sequence[Group]) -> list[Group]:
    """Credit whose weights make the loss the mean over all tokens of the minibatch."""
    weights = normalised_weights(groups, "token")
    return [
        replace(g, credits=tuple(replace(c, weight=w) for c, w in zip(g.credits, ws, strict=True)))
        for g, ws in zip(groups, weights, strict=True)
    ]


class TreeSide:
    """What the learner does between two optimiser steps, building the trees included.

    The trees, their positions and the credit are built anew at every call; the peers' inputs are prepared once.
    """

    def __init__(self, policy: Policy, groups: Sequence[Group], kl: float) -> None:
        self.policy, self.groups = policy, groups
        self.learner = Learner(policy, Optim(), steps=1)
        self.method = GRPO(GRPOConfig.model_validate({"objective": {"kl": kl}}))
        self.reference = reference_logprobs(groups) if kl else None
        self.clip_fraction = 0.0

    @property
    def model(self) -> Any:
        return self.policy.model

    def update(self) -> float:
        self.model.zero_grad(set_to_none=True)
        groups = weighted(self.groups)
        total = self.clip_fraction = 0.0
        for packed in self.learner.packer.groups(groups):
            index = [part.group for part in packed.parts]
            batch = _prepared(
                packed.batch, [groups[i] for i in index], self.reference and [self.reference[i] for i in index]
            )
            outputs = self.policy.module(batch, entropies=True)
            loss = self.method.loss(batch, outputs)  # type: ignore[arg-type]
            loss.total.backward()
            total += float(loss.total.detach())
            self.clip_fraction += float(loss.terms["policy/clip_fraction"])
        return total


class PaddedSide:
    """One row per Rollout, stock causal attention, inputs prepared once.

    Args:
        vision: `per_rollout` is the library's stock call: the image is encoded once per row and logits are computed at
            every position. `shared` encodes each image once and computes the logits of the replies only.
    """

    def __init__(
        self, policy: Policy, groups: Sequence[Group], kl: float, vision: Literal["per_rollout", "shared"]
    ) -> None:
        self.policy, self.vision = policy, vision
        self.method = GRPO(GRPOConfig.model_validate({"objective": {"kl": kl}}))
        rollouts = [r for g in groups for r in g.rollouts]
        lengths = {len(r.prompt_ids) + len(r.ids) for r in rollouts}
        if len(lengths) != 1:
            raise ValueError("the padded side is built for rows of one length, which favours it: it pads nothing")
        trees = [build_tree([rollout_path(r, policy.image_token)], policy.rules) for r in rollouts]
        # one group per row, so that credit and old log-probs find their row
        rows = [g.at([i]) for g in weighted(groups) for i in range(len(g))]
        reference = [[row] for group in reference_logprobs(groups) for row in group] if kl else None
        self.batch = _prepared(collate([[t] for t in trees], policy.pixels, pad=policy.pad), rows, reference)
        repeated = [self.policy.pixels.batch([(i, 0) for i in r.prompt.images]) for r in rollouts]
        self.stock = {
            "input_ids": self.batch.ids,
            "attention_mask": torch.ones_like(self.batch.ids),
            "pixel_values": torch.cat([v.pixels for v in repeated if v.pixels is not None]),
            "image_grid_thw": torch.cat([v.grids for v in repeated if v.grids is not None]),
            "mm_token_type_ids": (self.batch.ids == policy.image_token).int(),
        }

    @property
    def model(self) -> Any:
        return self.policy.model

    def update(self) -> float:
        self.model.zero_grad(set_to_none=True)
        outputs = self._shared() if self.vision == "shared" else self._per_rollout()
        loss = self.method.loss(self.batch, outputs)  # type: ignore[arg-type]
        loss.total.backward()
        return float(loss.total.detach())

    def _per_rollout(self) -> Outputs:
        logits = self.model(**self.stock).logits
        all_logprobs = torch.log_softmax(logits.reshape(-1, logits.shape[-1]), -1)
        return Outputs(all_logprobs[self.batch.predictor, self.batch.target])

    def _shared(self) -> Outputs:
        batch, adapter = self.batch, self.policy.adapter
        assert batch.pixels is not None
        assert batch.grids is not None
        features = adapter.vision(batch.pixels, batch.grids)
        hidden = adapter.text(batch.ids, batch.positions, None, (features, batch.visual_at, batch.visual_from))
        scores = self.policy.module.scores(hidden.reshape(-1, hidden.shape[-1])[batch.predictor])
        logprobs, entropies = TokenLogprobs.apply(scores, batch.target, True)  # type: ignore[misc]
        return Outputs(logprobs, entropies)


def _prepared(batch: Batch, groups: Sequence[Group], reference: Sequence[Sequence[np.ndarray]] | None) -> Batch:
    batch = batch.with_credit([g.credits for g in groups])
    batch = batch.with_logprobs([[m.logprobs for m in g.measurements if m.logprobs is not None] for g in groups])
    return batch if reference is None else replace(batch, reference_logprobs=batch.gather(reference))


def agreement(ours: Side, theirs: Side) -> tuple[float, float]:
    """Relative difference of the losses, and of the gradient of the tensor that differs most."""
    a, b = ours.update(), theirs.update()
    gradients: dict[str, Tensor] = {n: p.grad for n, p in theirs.model.named_parameters() if p.grad is not None}
    own = {n: p.grad for n, p in ours.model.named_parameters() if p.grad is not None}
    if own.keys() != gradients.keys():
        raise AssertionError(f"gradients of other tensors: {sorted(own.keys() ^ gradients.keys())}")
    worst = max(float((own[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in gradients.items())
    return abs(a - b) / abs(b), worst
