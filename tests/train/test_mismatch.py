"""Truncated importance weights: the formula by hand, its place in the loss, and what it costs where engines agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import make_record
from sightline.credit.config import ObjectiveConfig
from sightline.language.prompts import prompt
from sightline.objectives.importance import mismatch, truncated_importance
from sightline.objectives.policy import policy_loss
from sightline.policy.load import Policy
from sightline.policy.packing import Packed, Packer
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.train.mismatch import corrected
from sightline.train.run import gather
from sightline.types import Credit, Group


def test_weights_by_hand() -> None:
    old = torch.tensor([0.5, 0.2, 0.3, 1e-30]).log()
    sampler = torch.tensor([0.25, 0.4, 0.01, 0.9]).log()
    torch.testing.assert_close(truncated_importance(old, sampler, 3.0), torch.tensor([2.0, 0.5, 3.0, 1e-30 / 0.9]))
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = mismatch(old, sampler, 3.0, weight)
    assert float(found.weight) == pytest.approx(0.2 + 0.1 + 0.9, abs=1e-6)
    assert float(found.capped) == pytest.approx(0.3)
    ratios = np.array([2.0, 0.5, 30.0, np.exp(-20.0)])
    assert float(found.shift) == pytest.approx(float((weight.numpy() * (ratios - 1 - np.log(ratios))).sum()), rel=1e-5)


def test_without_a_cap_the_weighted_mean_is_the_learners() -> None:
    """`E_sampler[w f] = E_learner[f]`, summed over a small vocabulary."""
    generator = torch.Generator().manual_seed(0)
    learner, sampler = torch.randn(2, 7, generator=generator).double().log_softmax(-1)
    value = torch.randn(7, generator=generator).double()
    weights = truncated_importance(learner, sampler, 1e9)
    torch.testing.assert_close((sampler.exp() * weights * value).sum(), (learner.exp() * value).sum())


def groups_of(policy: Policy) -> list[Group]:
    records = [make_record("a", ((96, 64),)), make_record("b", ())]
    asked = [Request(prompt(r, s, s, "compact"), (3,)) for r in records for s in ("textual", "grounded")]
    sampled = LocalSampler(policy).sample(asked, SamplingSettings(max_new_tokens=6), seed=0, step=0)
    groups = gather(records, [r for group in sampled for r in group], policy.frame)
    noise = np.random.default_rng(0)
    return [
        replace(
            g,
            rollouts=tuple(
                replace(r, logprobs=(r.logprobs + noise.normal(0, 0.7, len(r.ids))).astype(np.float32))
                for r in g.rollouts
            ),
            credits=tuple(
                Credit(advantage=np.full(len(r.ids), noise.normal()), weight=np.full(len(r.ids), 0.01))
                for r in g.rollouts
            ),
        )
        for g in groups
    ]  # fmt: skip


def with_credit(policy: Policy, groups: list[Group]) -> tuple[Packed, list[Group]]:
    (packed,) = Packer(policy, 100_000).groups(groups)
    members = [groups[part.group] for part in packed.parts]
    return replace(packed, batch=packed.batch.with_credit([g.credits for g in members])), members


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("has_old", [False, True])
def test_each_tokens_surrogate_is_weighted(policy: Policy, ratio: str, has_old: bool) -> None:
    """Against the sum over Rollouts and tokens of `w min(r A, clip(r) A)`, written out."""
    groups = groups_of(policy)
    packed, members = with_credit(policy, groups)
    batch = packed.batch
    with torch.no_grad():
        outputs = policy.module(batch)
    if has_old:
        shift = 0.1 * torch.randn(len(batch.target), generator=torch.Generator().manual_seed(1))
        batch = replace(batch, old_logprobs=outputs.logprobs + shift)
    changed, terms = corrected(batch, members, outputs.logprobs, 1.5)
    config = ObjectiveConfig(ratio=ratio, kl=0.0, clip_low=0.2, clip_high=0.28, dual_clip=None)  # type: ignore[arg-type]
    found = float(policy_loss(changed, outputs, config).total)

    old = outputs.logprobs if batch.old_logprobs is None else batch.old_logprobs
    mine, before = batch.scatter(outputs.logprobs), batch.scatter(old)
    want, capped, mass = 0.0, 0.0, 0.0
    for tree, group in enumerate(members):
        for i, rollout in enumerate(group.rollouts):
            gap = before[tree][i] - rollout.logprobs
            w, log_ratio = np.minimum(np.exp(gap), 1.5), mine[tree][i] - before[tree][i]
            r = np.exp(log_ratio if ratio == "token" else np.full_like(log_ratio, log_ratio.mean()))
            a, weight = group.credits[i].advantage, group.credits[i].weight
            want -= float((weight * w * np.minimum(r * a, np.clip(r, 0.8, 1.28) * a)).sum())
            capped += float((weight * (gap > np.log(1.5))).sum())
            mass += float(weight.sum())
    assert found == pytest.approx(want, rel=1e-4)
    assert terms["policy/engine_capped"] == pytest.approx(capped, rel=1e-4)
    assert 0 < capped < mass
    assert changed.credit is not None
    assert batch.credit is not None
    assert changed.credit.weight is batch.credit.weight  # KL and denominators know nothing of it


def test_equal_engines_change_nothing(policy: Policy) -> None:
    groups = groups_of(policy)
    packed, members = with_credit(policy, groups)
    with torch.no_grad():
        outputs = policy.module(packed.batch)
    recorded = packed.batch.scatter(outputs.logprobs)
    same = [
        replace(g, rollouts=tuple(replace(r, logprobs=lp) for r, lp in zip(g.rollouts, lps, strict=True)))
        for g, lps in zip(members, recorded, strict=True)
    ]
    changed, terms = corrected(packed.batch, same, outputs.logprobs, 2.0)
    assert changed.credit is not None
    assert packed.batch.credit is not None
    torch.testing.assert_close(changed.credit.positive, packed.batch.credit.positive, rtol=0, atol=0)
    assert terms["policy/engine_capped"] == terms["policy/engine_shift"] == 0.0
    untouched, nothing = corrected(packed.batch, members, outputs.logprobs, None)
    assert untouched is packed.batch
    assert not nothing
