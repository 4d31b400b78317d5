"""What a method's probes cost and where their results go: scoring, credit, the batch of the loss, the maps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sightline.config import Optim
from sightline.interventions import Intervention
from sightline.methods.base import Method, MethodConfig
from sightline.methods.probes import SEGMENTS, Contrast, RegionAttention
from sightline.objectives import AttentionMap, Loss, LossBatch, LossOutputs, policy_loss
from sightline.policy.load import Policy, load_policy
from sightline.report.metrics import metric
from sightline.train.health import group_metrics
from sightline.train.learner import Learner
from sightline.train.measure import measure
from sightline.types import Group
from stock import groups_of, make_method


@dataclass
class Seen:
    batches: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)


class Watching(Method):
    """Reads two probes, one of them again in the update, and remembers what its loss was shown."""

    def __init__(self, *probes: Any) -> None:
        super().__init__(MethodConfig())
        self.asked, self.seen = probes, Seen()

    def probes(self) -> tuple[Any, ...]:
        return self.asked

    def loss(self, batch: LossBatch, outputs: LossOutputs) -> Loss:
        self.seen.batches.append(batch)
        self.seen.outputs.append(outputs)
        plain = policy_loss(batch, outputs, self.config.objective)
        pull = sum((m.values.mean(0) * m.region).sum() for m in outputs.maps.values())
        return Loss(plain.total - 0.1 * pull, plain.terms)


@pytest.fixture
def fresh(checkpoints: dict[str, Path]) -> Policy:
    return load_policy(checkpoints["qwen3_vl"])


def learner_of(policy: Policy, **changes: Any) -> Learner:
    return Learner(policy, Optim(lr=1e-4), steps=4, **changes)


def run_of(learner: Learner, method: Method, old: str = "auto", **optim: Any) -> Any:
    recipe = SimpleNamespace(train=SimpleNamespace(old_logprobs=old), optim=Optim(**optim))
    return SimpleNamespace(recipe=recipe, method=method, learner=learner, step=3)


PROBES = (RegionAttention(in_update=True), Contrast(draws=2))


def test_an_on_policy_method_without_probes_measures_nothing(fresh: Policy) -> None:
    groups = groups_of(fresh, make_method())
    assert measure(run_of(learner_of(fresh), Method()), groups) == groups
    sampled = measure(run_of(learner_of(fresh), Method(), "sampler"), groups)
    for group in sampled:
        for seen, rollout in zip(group.measurements, group.rollouts, strict=True):
            assert seen.logprobs is rollout.logprobs
    assert measure(run_of(learner_of(fresh), Method(), inner_steps=2), groups)[0].measurements[0].entropies is not None


def test_probes_are_measured_and_keyed_by_seed_and_step(fresh: Policy) -> None:
    groups = groups_of(fresh, make_method())
    method = Watching(*PROBES)
    first = measure(run_of(learner_of(fresh, seed=5), method), groups)
    assert set(first[0].measurements[0].probes) == {"attention", "attention/top1", "contrast"}
    again = measure(run_of(learner_of(fresh, seed=5), method, "sampler"), groups)
    other = measure(run_of(learner_of(fresh, seed=6), method), groups)
    for a, b, c, group in zip(first, again, other, groups, strict=True):
        for x, y, z, rollout in zip(a.measurements, b.measurements, c.measurements, group.rollouts, strict=True):
            assert x.images == y.images != z.images
            assert y.logprobs is rollout.logprobs
            assert np.array_equal(x.probes["attention"], z.probes["attention"])


@pytest.mark.parametrize("shares", [True, False])
def test_the_loss_reads_probes_and_maps(fresh: Policy, shares: bool) -> None:
    method = Watching(*PROBES)
    learner = learner_of(fresh, shares=shares, token_budget=120)
    groups = learner.measure(groups_of(fresh, method), method.probes(), 0)
    learner.step(groups, method, 0)
    assert len(method.seen.batches) > 1
    weight, tokens = 0.0, 0
    for batch, outputs in zip(method.seen.batches, method.seen.outputs, strict=True):
        count = len(batch.target)
        tokens += count
        assert {n: tuple(v.shape) for n, v in batch.probes.items()} == {
            "attention": (count, 4), "attention/top1": (count,), "contrast": (count, 2),
        }  # fmt: skip
        seen = outputs.maps["attention"]
        assert isinstance(seen, AttentionMap)
        torch.testing.assert_close(
            (seen.values.detach().mean(0) * seen.region).sum(-1), batch.probes["attention"][:, 0], atol=1e-6, rtol=0
        )
        weight += float(seen.weight.sum())
    assert tokens == sum(len(r.ids) for g in groups for r in g.rollouts)
    assert weight == pytest.approx(1.0, abs=1e-5)


def test_what_a_rollout_lacks_is_not_a_number(fresh: Policy) -> None:
    method = Watching(Contrast())
    groups = groups_of(fresh, method)
    learner = learner_of(fresh)
    measured = learner.measure(groups, method.probes(), 0)
    bare = tuple(replace(m, probes={}) for m in measured[1].measurements)
    learner.step([measured[0], replace(measured[1], measurements=bare), measured[2]], method, 0)
    values = torch.cat([b.probes["contrast"] for b in method.seen.batches])
    assert int(values.isnan().sum()) == sum(len(r.ids) for r in groups[1].rollouts)


def test_a_loss_on_attention_moves_it(fresh: Policy) -> None:
    """With no advantage anywhere, the pull on the maps alone raises the region mass."""
    method = Watching(RegionAttention(in_update=True))

    def region_mass(groups: list[Group]) -> float:
        seen = learner.measure(groups, (RegionAttention(),), 0)
        return float(np.concatenate([m.probes["attention"][:, 0] for g in seen for m in g.measurements]).mean())

    groups = groups_of(fresh, method, records=1)
    flat = tuple(replace(c, advantage=np.zeros_like(c.advantage)) for c in groups[0].credits)
    groups = [replace(groups[0], credits=flat)]
    learner = Learner(fresh, Optim(lr=3e-3), steps=4)
    before = region_mass(groups)
    for step in range(4):
        learner.step(groups, method, step)
    assert region_mass(groups) > before + 0.01


def test_probes_are_metrics_of_their_stream(fresh: Policy) -> None:
    probes = (RegionAttention(), Contrast(), Contrast(name="bare", intervention=Intervention("region_mask")))
    groups = learner_of(fresh).measure(groups_of(fresh, make_method()), probes, 0)
    metrics = group_metrics(groups)
    own = {name: value for name, value in metrics.items() if name.startswith("probe/textual/")}
    assert {name.removeprefix("probe/textual/") for name in own} == {
        "attention_region", "attention_image", "attention_added", "attention_text", "attention_top1",
        "contrast_effect", "bare_effect",
    }  # fmt: skip
    pairs = [
        (m, r)
        for g in groups
        for m, r in zip(g.measurements, g.rollouts, strict=True)
        if r.stream == "textual" and m.logprobs is not None
    ]
    rows = np.concatenate([m.probes["attention"][r.sampled] for m, r in pairs])
    assert own["probe/textual/attention_region"] == pytest.approx(rows[:, 0].mean(), rel=1e-5)
    assert sum(own[f"probe/textual/attention_{s}"] for s in SEGMENTS) == pytest.approx(1.0, abs=1e-5)
    effects = np.concatenate([(m.logprobs - m.probes["contrast"])[r.sampled] for m, r in pairs])
    assert own["probe/textual/contrast_effect"] == pytest.approx(effects.mean(), rel=1e-4, abs=1e-5)
    for name in own:
        assert metric(name) is not None
        assert "{" not in metric(name).sentence  # type: ignore[union-attr]
