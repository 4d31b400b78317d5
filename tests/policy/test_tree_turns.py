"""Trees of conversations: the loss on shared turns against one stock forward per Rollout, and what the layout holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import make_record
from conversations import Crops, ends_often
from sightline.credit.config import ObjectiveConfig
from sightline.credit.weights import Normalisation, normalised_weights
from sightline.language.prompts import prompt
from sightline.objectives import LossBatch, policy_loss
from sightline.policy.batch import Batch, collate
from sightline.policy.load import Policy
from sightline.policy.tree import build_tree, rollout_path
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.types import Credit, Group, Reading, Rollout
from stock import reference_logprobs

OLD = 1.0
"""Spread of the old log-probs around the present ones: ratios far beyond every clip."""


def sampled_group(policy: Policy) -> list[Rollout]:
    """Two streams of one record as 2 x 3 and 3 x 2 trees, some of whose leaves are direct answers."""
    record = make_record("r", ((50, 90),), 3)
    shown = [prompt(record, s, s, "compact") for s in ("grounded", "textual")]
    requests = [Request(p, b, Crops()) for p, b in zip(shown, ((2, 3), (3, 2)), strict=True)]
    groups = LocalSampler(ends_often(policy)).sample(requests, SamplingSettings(max_new_tokens=16), seed=4, step=0)
    return [r for group in groups for r in group]


def credited(rollouts: Sequence[Rollout], how: Normalisation) -> Group:
    """Advantages of both signs on leaves that share their first turn, weights normalised as the learner does it."""
    rng = np.random.default_rng(0)
    credits = tuple(
        Credit(
            advantage=np.full(len(r.ids), (-1.0) ** i * (0.5 + rng.random())),
            weight=r.sampled * np.where(np.arange(len(r.ids)) % 7, 1.0, 0.5),
        )
        for i, r in enumerate(rollouts)
    )
    empty = tuple(Reading(text=r.text) for r in rollouts)
    group = Group(record=rollouts[0].record, rollouts=tuple(rollouts), readings=empty, credits=credits)
    (weights,) = normalised_weights([group], how, {"grounded": 1.0, "textual": 0.7})
    return replace(group, credits=tuple(replace(c, weight=w) for c, w in zip(credits, weights, strict=True)))


def old_logprobs(rollouts: Sequence[Rollout]) -> list[np.ndarray]:
    """Per Rollout; a token that leaves share has one value, drawn by the branch that sampled it."""
    found = []
    for rollout in rollouts:
        noise = np.zeros(len(rollout.ids), np.float32)
        for depth, (a, b) in enumerate(zip((0, *rollout.forks), (*rollout.forks, len(rollout.ids)), strict=True), 1):
            key = [ord(rollout.stream[0]), *rollout.branch[:depth]]
            noise[a:b] = np.random.default_rng(key).normal(0, OLD, b - a)
        found.append((rollout.logprobs + noise) * rollout.sampled)
    return found


def textbook(
    rollouts: Sequence[Rollout], logprobs: Sequence[Tensor], group: Group, config: ObjectiveConfig
) -> Tensor:  # fmt: skip
    """Sum over Rollouts and their own tokens of w times the dual-clipped PPO term, plus kl x k3; nothing is shared."""
    loss = torch.zeros(())
    for rollout, lp, old, credit in zip(rollouts, logprobs, old_logprobs(rollouts), group.credits, strict=True):
        on = torch.from_numpy(rollout.sampled)
        a, w = (torch.from_numpy(x).float()[on] for x in (credit.advantage, credit.weight))
        then, ratio_of = torch.from_numpy(old).float()[on], lp[on]
        if config.ratio == "sequence":
            mean = (ratio_of - then).detach().mean()
            r = (mean + ratio_of - ratio_of.detach()).exp()
        else:
            r = (ratio_of - then).exp()
        kept = torch.minimum(r * a, r.clamp(1 - config.clip_low, 1 + config.clip_high) * a)
        if config.dual_clip is not None:
            kept = torch.where(a < 0, torch.maximum(kept, config.dual_clip * a), kept)
        d = -0.1 * torch.ones_like(ratio_of) - ratio_of + ratio_of.detach()
        loss = loss - (w * kept).sum() + config.kl * (w * (d.exp() - d - 1)).sum()
    return loss


def batch_of(policy: Policy, group: Group) -> Batch:
    tree = build_tree([rollout_path(r, policy.image_token) for r in group.rollouts], policy.rules)
    batch = collate([[tree]], policy.pixels, pad=policy.pad)
    return batch.with_credit([group.credits]).with_logprobs([old_logprobs(group.rollouts)])


def gradient(policy: Policy) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("how", "objective"),
    [
        ("sequence", {"dual_clip": 3.0, "kl": 0.1}),
        ("token", {"dual_clip": None}),
        ("sequence", {"ratio": "sequence"}),
    ],
)
def test_shared_turns_equal_separate_sequences(
    policy: Policy, how: Normalisation, objective: dict, checkpointing: bool
) -> None:
    config = ObjectiveConfig(**objective)
    rollouts = sampled_group(policy)
    group = credited(rollouts, how)
    shared = [i for i, r in enumerate(rollouts) if len(r.turns) > 1 and r.branch[-1] == 0]
    assert shared
    assert any(len(r.turns) == 1 for r in rollouts)
    reference = reference_logprobs(policy, rollouts)
    want = textbook(rollouts, reference, group, config)
    want.backward()
    expected = gradient(policy)

    policy.model.train(checkpointing)
    if checkpointing:
        policy.model.activation_checkpointing_enable({"use_reentrant": False})
    batch = batch_of(policy, group)
    out = policy.module(batch)
    # a reference that differs by the same amount everywhere, so that k3 has a closed form
    batch = replace(batch, reference_logprobs=out.logprobs.detach() - 0.1 if config.kl else None)
    loss = policy_loss(cast("LossBatch", batch), out, config).total
    loss.backward()
    policy.model.activation_checkpointing_disable()
    policy.model.eval()
    for rollout, got, lp in zip(rollouts, batch.scatter(out.logprobs)[0], reference, strict=True):
        np.testing.assert_allclose(got, np.where(rollout.sampled, lp.detach(), 0), atol=1e-5)
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5, abs=1e-6)
    got = gradient(policy)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_leaves_of_both_signs_fold_onto_the_turn_they_share(policy: Policy) -> None:
    rollouts = sampled_group(policy)
    group = credited(rollouts, "token")
    batch = batch_of(policy, group)
    assert batch.credit is not None
    own = [i for i, r in enumerate(rollouts) if (r.stream, r.branch[0]) == ("grounded", 0)]
    first = rollouts[own[0]].turns[0].span
    slots = {tuple(batch.slots[0][i][slice(*first)]) for i in own}
    assert len(slots) == 1
    (index,) = slots
    parts = [group.credits[i].weight[slice(*first)] * group.credits[i].advantage[slice(*first)] for i in own]
    assert {np.sign(p[0]) for p in parts} == {1.0, -1.0}
    for folded, sign in ((batch.credit.positive, 1), (batch.credit.negative, -1)):
        want = sum(np.maximum(sign * p, 0) for p in parts)
        np.testing.assert_allclose(sign * folded[list(index)].numpy(), want, rtol=1e-6)


def test_a_tree_of_conversations_holds_every_turn_once(policy: Policy) -> None:
    rollouts = sampled_group(policy)
    tree = build_tree([rollout_path(r, policy.image_token) for r in rollouts], policy.rules)
    cut = int(np.flatnonzero(rollouts[0].prompt_ids == policy.image_token)[-1]) + 2
    own = {}
    for r in rollouts:
        bounds = [0, *r.forks, len(r.ids)]
        own |= {(r.stream, r.branch[: k + 1]): bounds[k + 1] - bounds[k] for k in range(len(r.branch))}
    heads = {r.stream: len(r.prompt_ids) - cut for r in rollouts}
    assert len(tree) == cut + sum(heads.values()) + sum(own.values())
    added = {(r.stream, r.branch[:1] if t.span.start < r.forks[0] else r.branch, t.span.start): len(t.images)
             for r in rollouts for t in r.turns}  # fmt: skip
    assert len(tree.images) == 1 + sum(added.values())


def test_positions_of_conversations_equal_transformers(policy: Policy) -> None:
    for rollout in sampled_group(policy):
        ids = torch.from_numpy(np.concatenate([rollout.prompt_ids, rollout.ids]))[None]
        shown = [policy.pixels.batch([(image, 0)]).grids for image in (*rollout.prompt.images, *rollout.images)]
        want, _ = policy.model.model.get_rope_index(
            ids, mm_token_type_ids=(ids == policy.image_token).int(),
            image_grid_thw=torch.cat([grid for grid in shown if grid is not None]),
        )  # fmt: skip
        tree = build_tree([rollout_path(rollout, policy.image_token)], policy.rules)
        np.testing.assert_array_equal(tree.positions, want[:, 0].numpy())
