"""The learner against textbook sums, and against itself with and without sharing, pruning and micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.config import Optim
from sightline.methods import load_method
from sightline.methods.base import Method
from sightline.policy.load import Policy, load_policy
from sightline.train.learner import Learner
from sightline.train.reference import FrozenCopy
from sightline.types import Group
from stock import groups_of, make_method, reference_logprobs


@pytest.fixture
def fresh(checkpoints: dict[str, Path]) -> Policy:
    """A policy of its own, because learners change weights."""
    return load_policy(checkpoints["qwen3_vl"])


def moved(policy: Policy, start: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(p.detach() - start[n]).flatten() for n, p in policy.model.named_parameters()])


def update(checkpoint: Path, method: Method, groups: list[Group], **changes: object) -> tuple[torch.Tensor, dict]:
    """Parameter movement of one learner step from the checkpoint's weights."""
    policy = load_policy(checkpoint)
    start = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    given: dict = {"steps": 10, "temperature": 1.0, "token_budget": 4096, **changes}
    optim = given.pop("optim", Optim(lr=1e-3, clip_norm=1e6))
    learner = Learner(policy, optim, **given)
    if method.config.objective.kl:
        learner.reference = FrozenCopy(load_policy(checkpoint).module)
    result = learner.step(groups, method, 0)
    return moved(policy, start), result.metrics


def test_gradient_equals_the_textbook_sum(fresh: Policy, checkpoints: dict[str, Path]) -> None:
    """One on-policy step: grad = -(1 / tokens) sum A grad logp, from single stock sequences."""
    method = make_method()
    groups = groups_of(fresh, method)
    total = sum(len(r.ids) for g in groups for r in g.rollouts)
    loss = torch.zeros(())
    for group in groups:
        for logprobs, credit in zip(reference_logprobs(fresh, group.rollouts), group.credits, strict=True):
            loss = loss - (torch.from_numpy(credit.advantage).float() * logprobs).sum() / total
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in fresh.model.parameters() if p.grad is not None]).norm()
    _, metrics = update(checkpoints["qwen3_vl"], method, groups)
    assert metrics["update/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("objective", [{}, {"kl": 0.1}, {"ratio": "sequence", "normalisation": "sequence"}])
def test_sharing_and_microbatches_change_nothing(
    fresh: Policy, checkpoints: dict[str, Path], objective: dict[str, object]
) -> None:
    method = make_method(**objective)
    groups = groups_of(fresh, method)
    folder = checkpoints["qwen3_vl"]
    whole, a = update(folder, method, groups)
    small, b = update(folder, method, groups, token_budget=64)
    padded, c = update(folder, method, groups, shares=False)
    for other in (b, c):
        assert other["update/grad_norm"] == pytest.approx(a["update/grad_norm"], rel=1e-3)
    # Adam's first step has the size of lr whatever the gradient, so compare directions
    for other in (small, padded):
        assert torch.nn.functional.cosine_similarity(whole, other, dim=0) > 0.995
    assert c["update/tokens"] > 1.5 * a["update/tokens"]


def test_rollouts_without_advantage_are_skipped_only_without_kl(fresh: Policy, checkpoints: dict[str, Path]) -> None:
    method = make_method()
    groups = groups_of(fresh, method)
    flat = [replace(g, credits=tuple(replace(c, advantage=c.advantage * 0) for c in g.credits)) for g in groups]
    still, metrics = update(checkpoints["qwen3_vl"], method, flat)
    assert float(still.abs().max()) == 0.0
    assert metrics["update/tokens"] == 0
    _, with_kl = update(checkpoints["qwen3_vl"], make_method(kl=0.1), flat)
    assert with_kl["update/tokens"] > 0


@pytest.mark.parametrize(
    ("keys", "is_kept"),
    [
        ({"name": "faithful_mr1"}, False),
        ({"name": "vppo"}, True),
        ({"name": "vppo", "dependence": {"entropy": 0.0}}, False),
    ],
)
def test_a_loss_of_its_own_keeps_rollouts_without_advantage_only_where_it_acts_on_them(
    fresh: Policy, checkpoints: dict[str, Path], keys: dict[str, object], is_kept: bool
) -> None:
    groups = groups_of(fresh, make_method())
    textual = [g.at([i for i, r in enumerate(g.rollouts) if r.stream == "textual"]) for g in groups]
    flat = [replace(g, credits=tuple(replace(c, advantage=c.advantage * 0) for c in g.credits)) for g in textual]
    still, metrics = update(checkpoints["qwen3_vl"], load_method(keys), flat)
    assert (metrics["update/tokens"] > 0) == is_kept
    assert (float(still.abs().max()) > 0) == is_kept


def test_a_loss_that_nothing_is_known_of_keeps_every_rollout(fresh: Policy, checkpoints: dict[str, Path]) -> None:
    class Own(Method):
        def loss(self, batch, outputs):  # type: ignore[no-untyped-def]
            return super().loss(batch, outputs)

    groups = groups_of(fresh, make_method())
    flat = [replace(g, credits=tuple(replace(c, advantage=c.advantage * 0) for c in g.credits)) for g in groups]
    assert update(checkpoints["qwen3_vl"], Own(), flat)[1]["update/tokens"] > 0


def test_inner_steps_take_whole_groups_once_each(fresh: Policy) -> None:
    method = make_method()
    groups = groups_of(fresh, method, records=5)
    learner = Learner(fresh, Optim(lr=1e-3, inner_steps=2), steps=10, seed=3)
    parts = list(learner._minibatches(groups, 0, 0))
    assert sorted(g.record.id for part in parts for g in part) == [f"r{i}" for i in range(5)]
    assert sorted(len(p) for p in parts) == [2, 3]
    assert [[g.record.id for g in p] for p in parts] == [
        [g.record.id for g in p] for p in learner._minibatches(groups, 0, 0)
    ]
    measured = learner.measure(groups)
    for group in measured:
        for rollout, seen in zip(group.rollouts, group.measurements, strict=True):
            np.testing.assert_allclose(seen.logprobs, rollout.logprobs, atol=1e-4)
            assert seen.entropies is not None
            assert (seen.entropies > 0).all()
    metrics = learner.step(measured, method, 0).metrics
    assert metrics["policy/ratio"] != pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedule(fresh: Policy, schedule: str, expected: float) -> None:
    optim = Optim.model_validate({"lr": 0.01, "warmup_steps": 4, "schedule": schedule})
    learner = Learner(fresh, optim, steps=24)
    assert learner._set_lr(0) == pytest.approx(0.01 / 5)
    assert learner._set_lr(14) == pytest.approx(0.01 * expected)


def test_a_broken_gradient_stops_the_run(fresh: Policy) -> None:
    method = make_method()
    groups = groups_of(fresh, method)
    broken = [
        replace(g, credits=tuple(replace(c, advantage=np.full_like(c.advantage, 1e37)) for c in g.credits))
        for g in groups
    ]
    with pytest.raises(FloatingPointError, match="gradient norm"):
        Learner(fresh, Optim(lr=1e-3), steps=1).step(broken, method, 0)
