"""VPPO: which tokens carry the advantage, the factors over the step, the penalty in the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from losses import LossReads, contrast_batch
from sightline.credit.tokens import causal_effect, rollout_scales
from sightline.methods import load_method
from sightline.methods.vppo import VPPO
from sightline.objectives import policy_loss
from sightline.train.scoring import credit, score
from sightline.types import Group, Measurement

GOOD, BAD = "<think>it is left</think><answer>green</answer>", "<think>it is left</think><answer>red</answer>"


def vppo(**keys: Any) -> VPPO:
    method = load_method({"name": "vppo", **keys})
    assert isinstance(method, VPPO)
    return method


def contrasted(group: Group, *changed: list[float]) -> Group:
    seen = [
        Measurement(logprobs=np.zeros(len(r.ids)), probes={"contrast": np.array(c)})
        for r, c in zip(group.rollouts, changed, strict=True)
    ]
    return replace(group, measurements=tuple(seen))


def credited(method: VPPO, world, *groups: Group) -> list[Group]:
    return credit(method, score(method, groups, world.context()))


def test_the_probe_is_the_released_one() -> None:
    (probe,) = vppo().probes()
    assert (probe.intervention.kind, probe.intervention.probability) == ("patch_blacken", 0.5)  # type: ignore[attr-defined]


def test_only_the_most_affected_tokens_carry_the_advantage(world) -> None:
    """Four tokens: ceil(.4 x 4) = 2 keep it; the others keep their weight, so the denominator is all tokens."""
    group = contrasted(world.group(world.record(), textual=[GOOD, BAD]), [-2, 0, -1, 0], [0, 0, -1, -2])
    found = credited(vppo(dependence={"lowest_scale": 1.0}), world, group)[0]
    assert [(c.advantage != 0).tolist() for c in found.credits] == [
        [True, False, True, False],
        [False, False, True, True],
    ]
    assert all(c.weight.tolist() == [1, 1, 1, 1] for c in found.credits)
    assert found.credits[0].advantage[0] == pytest.approx(1 / 2**0.5, abs=1e-5)


def test_factors_span_the_whole_step(world) -> None:
    first = contrasted(world.group(world.record(), textual=[GOOD, BAD]), [-1] * 4, [-2] * 4)
    other = world.group(replace(world.record(), id="s2"), textual=[GOOD, BAD])
    second = contrasted(other, [-3] * 4, [0] * 4)
    groups = credited(vppo(), world, first, second)
    factors = [c.parts["scale"] for g in groups for c in g.credits]
    effects = [float(causal_effect(np.zeros(1), np.array([d]))[0]) for d in (-1.0, -2.0, -3.0, 0.0)]
    assert factors == pytest.approx(rollout_scales(effects).tolist())
    assert np.mean(factors) == pytest.approx(1.0, abs=1e-6)
    assert min(factors) == pytest.approx(0.9)
    kept = groups[0].credits[1]
    assert kept.advantage[kept.advantage != 0] == pytest.approx(kept.parts["advantage"] * kept.parts["scale"])


def test_masked_rollouts_set_no_range(world) -> None:
    cut = contrasted(world.group(world.record(), textual=[GOOD, BAD, "cut …"]), [-1] * 4, [-2] * 4, [-9] * 3)
    method = vppo()
    found = credit(method, score(method, [cut], world.context()), mask_truncated=True)[0]
    assert [c.parts["scale"] for c in found.credits][2] == 1.0
    assert np.mean([c.parts["scale"] for c in found.credits][:2]) == pytest.approx(1.0, abs=1e-6)
    assert not found.credits[2].weight.any()


def test_replies_that_were_not_measured_have_plain_credit(world) -> None:
    found = credited(vppo(), world, world.group(world.record(), textual=[GOOD, BAD]))[0]
    assert [c.parts["advantage"] for c in found.credits] == pytest.approx([2**-0.5, -(2**-0.5)], abs=1e-4)
    assert all((c.advantage != 0).all() for c in found.credits)


def test_the_mean_effect_is_shown_and_counts_nothing(world) -> None:
    group = contrasted(world.group(world.record(), textual=[GOOD, BAD]), [-2] * 4, [0] * 4)
    scored = score(vppo(), [group], world.context())[0]
    assert scored.scores[0].terms["dependence"].value == pytest.approx(1.135, abs=0.001)
    assert [s.total for s in scored.scores] == [2.0, 1.0]


def test_the_penalty_lowers_the_entropy() -> None:

    given, logprobs = contrast_batch([0.0] * 4), torch.tensor([-0.5, -1.0, -0.1, -2.0], requires_grad=True)
    method = vppo()
    base = policy_loss(given, LossReads(logprobs), method.config.objective)  # type: ignore[arg-type]
    loss = method.loss(given, LossReads(logprobs))  # type: ignore[arg-type]
    assert float((loss.total - base.total).detach()) == pytest.approx(0.06 * 0.9)
    loss.total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.015] * 4)
