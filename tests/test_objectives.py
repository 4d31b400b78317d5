"""Closed forms, and folded credit against an unshared batch computed by a separate, plainer implementation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sightline.credit.config import ObjectiveConfig
from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.geometry.grid import membership
from sightline.geometry.targets import TargetShape, region_target
from sightline.objectives import (
    anchor_losses,
    clipped_surrogate,
    cover_target,
    k3,
    policy_loss,
    sequence_surrogate,
    visual_losses,
)
from sightline.types import Box, Region, Size


@dataclass
class Credit:
    positive: Tensor
    negative: Tensor
    weight: Tensor


@dataclass
class Paths:
    leaf: Tensor
    token: Tensor
    advantage: Tensor
    weight: Tensor


@dataclass
class Batch:
    credit: Credit
    paths: Paths
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    probes: dict[str, Tensor] = field(default_factory=dict)
    progress: float = 0.0


@dataclass
class Outputs:
    logprobs: Tensor
    entropies: Tensor | None = None
    maps: dict[str, object] = field(default_factory=dict)


@dataclass
class Case:
    """Leaves as lists of token indices; leaves that list the same index share that token."""

    leaves: list[list[int]]
    advantages: list[float]
    normalisation: str
    seed: int = 0
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = max(max(leaf) for leaf in self.leaves) + 1
        generator = torch.Generator().manual_seed(self.seed)
        self.old = -torch.rand(self.tokens, generator=generator, dtype=torch.float64) * 3
        self.new = self.old + torch.randn(self.tokens, generator=generator, dtype=torch.float64) * 0.9
        self.reference = self.old + torch.randn(self.tokens, generator=generator, dtype=torch.float64) * 0.5

    def weights(self) -> list[float]:
        """Per leaf, the weight of each of its tokens."""
        if self.normalisation == "sequence":
            return [1 / (len(leaf) * len(self.leaves)) for leaf in self.leaves]
        return [1 / sum(map(len, self.leaves))] * len(self.leaves)

    def batch(self) -> Batch:
        positive, negative, weight = (torch.zeros(self.tokens, dtype=torch.float64) for _ in range(3))
        rows = []
        for number, (leaf, a, w) in enumerate(zip(self.leaves, self.advantages, self.weights(), strict=True)):
            for token in leaf:
                positive[token] += w * max(a, 0)
                negative[token] += w * min(a, 0)
                weight[token] += w
                rows.append((number, token, a, w))
        leaf, token, advantage, each = zip(*rows, strict=True)
        doubles = {"dtype": torch.float64}
        paths = Paths(
            torch.tensor(leaf), torch.tensor(token), torch.tensor(advantage, **doubles), torch.tensor(each, **doubles)
        )
        return Batch(Credit(positive, negative, weight), paths, self.old, self.reference)


def unshared(case: Case, new: Tensor, kl: float, low=0.2, high=0.28, dual: float | None = 3.0) -> Tensor:
    """PPO as the papers write it, leaf by leaf and token by token."""
    total = new.new_zeros(())
    for leaf, a, w in zip(case.leaves, case.advantages, case.weights(), strict=True):
        for token in leaf:
            ratio = torch.exp(new[token] - case.old[token])
            clipped = torch.clip(ratio, 1 - low, 1 + high)
            term = torch.maximum(-a * ratio, -a * clipped)
            if a < 0 and dual is not None:
                term = torch.minimum(term, new.new_tensor(-a * dual))
            difference = case.reference[token] - new[token]
            total = total + w * (term + kl * (torch.exp(difference) - difference - 1))
    return total


SHARED = [[0, 1, 2, 3], [0, 1, 4], [0, 5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
@pytest.mark.parametrize("dual", [3.0, 1.5, None])
@pytest.mark.parametrize("seed", range(8))
def test_folded_credit_equals_the_unshared_batch(normalisation, dual, seed) -> None:
    case = Case(SHARED, [1.2, -0.7, -1.4, 0.9], normalisation, seed)
    expected_input = case.new.clone().requires_grad_()
    expected = unshared(case, expected_input, kl=0.1, dual=dual)
    (expected_gradient,) = torch.autograd.grad(expected, expected_input)

    logprobs = case.new.clone().requires_grad_()
    config = ObjectiveConfig(kl=0.1, dual_clip=dual)
    loss = policy_loss(case.batch(), Outputs(logprobs), config)
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


def test_the_cases_above_do_clip_on_every_side() -> None:
    fractions = [
        clipped_surrogate(c.new, c.old, c.batch().credit.positive, c.batch().credit.negative, dual_clip=1.5)
        for c in (Case(SHARED, [1.2, -0.7, -1.4, 0.9], "token", seed) for seed in range(8))
    ]
    assert any(f.clip_fraction_low > 0 for f in fractions)
    assert any(f.clip_fraction_high > 0 for f in fractions)
    assert any(f.dual_clip_fraction > 0 for f in fractions)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.56, False),
        (0.5, 2.0, -1.0, True),
        (0.5, -2.0, 1.6, False),
        (1.5, -2.0, 3.0, True),
        (4.0, -2.0, 6.0, False),
    ],
)
def test_single_tokens_by_hand(ratio, advantage, expected, slope) -> None:
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    old = torch.zeros(1, dtype=torch.float64)
    result = clipped_surrogate(new, old, a.clamp(min=0), a.clamp(max=0))
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected)
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-advantage * ratio if slope else 0.0)


def test_shares_are_weighted_by_the_loss_weights_and_add_over_micro_batches() -> None:
    case = Case([[0, 1, 2], [3, 4, 5, 6]], [1.0, -1.0], "token", seed=3)
    batch = case.batch()
    c = batch.credit
    whole = clipped_surrogate(case.new, case.old, c.positive, c.negative, weight=c.weight)
    parts = [
        clipped_surrogate(case.new[p], case.old[p], c.positive[p], c.negative[p], weight=c.weight[p])
        for p in (slice(0, 3), slice(3, 7))
    ]
    ratios = torch.exp(case.new - case.old)
    assert whole.ratio_mean.item() == pytest.approx(ratios.mean().item())
    assert whole.clip_fraction_high.item() == pytest.approx((ratios[:3] > 1.28).sum().item() / 7)
    for name in ("loss", "clip_fraction_low", "clip_fraction_high", "dual_clip_fraction", "ratio_mean", "shift"):
        total = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(total, getattr(whole, name))


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([-0.5, -1.0, -2.0], requires_grad=True)
    positive, negative = torch.tensor([0.4, 0.0, 0.1]), torch.tensor([0.0, -0.3, -0.2])
    result = clipped_surrogate(logprobs, None, positive, negative)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(logprobs.grad, -(positive + negative))


def test_k3_by_hand_and_its_clamps() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -50.0, -1.0], requires_grad=True)
    reference = torch.tensor([-1.0, -2.0, -1.0, -50.0])
    values = k3(logprobs, reference)
    assert values.tolist() == pytest.approx([0.0, math.exp(-1) + 1 - 1, 10.0, 10.0])
    values[:2].sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad[:2].tolist() == pytest.approx([0.0, 1 - math.exp(-1)])


def test_log_ratio_is_clamped_before_the_exponential() -> None:
    far = torch.tensor([1000.0, -1000.0])
    result = clipped_surrogate(far, torch.zeros(2), torch.zeros(2), torch.tensor([-1.0, -1.0]), dual_clip=None)
    assert torch.isfinite(result.loss)
    assert result.loss.item() == pytest.approx(math.exp(20) + 0.8, rel=1e-6)


def gspo(case: Case, new: Tensor, low=3e-4, high=4e-4) -> Tensor:
    """GSPO as its paper writes it: mean over sequences of the clipped sequence ratio."""
    terms = []
    for leaf, a in zip(case.leaves, case.advantages, strict=True):
        index = torch.tensor(leaf)
        s = torch.exp((new[index] - case.old[index]).mean())
        terms.append(-torch.minimum(s * a, torch.clip(s, 1 - low, 1 + high) * a))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shift", [0.5, 1e-4])
def test_sequence_ratio_equals_gspo_with_its_gradient(seed, shift) -> None:
    case = Case(SHARED, [1.2, -0.7, -1.4, 0.9], "sequence", seed)
    start = case.old + (case.new - case.old) * shift
    expected_input = start.clone().requires_grad_()
    expected = gspo(case, expected_input)
    (expected_gradient,) = torch.autograd.grad(expected, expected_input)
    logprobs = start.clone().requires_grad_()
    loss = policy_loss(case.batch(), Outputs(logprobs), ObjectiveConfig.model_validate({"ratio": "sequence"}))
    (gradient,) = torch.autograd.grad(loss.total, logprobs)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    assert 0 <= loss.terms["policy/clip_fraction"] <= 1


def test_sequence_ratio_on_policy_and_with_nothing_sampled() -> None:
    case = Case(SHARED, [1.2, -0.7, -1.4, 0.9], "sequence")
    logprobs = case.new.clone().requires_grad_()
    result = sequence_surrogate(logprobs, None, case.batch().paths)
    result.loss.backward()
    credit = case.batch().credit
    torch.testing.assert_close(logprobs.grad, -(credit.positive + credit.negative))
    none = torch.zeros(0)
    empty = sequence_surrogate(none, none, Paths(none.long(), none.long(), none, none))
    assert empty.loss.item() == 0.0


def test_terms_report_reference_and_entropy_without_changing_the_loss() -> None:
    case = Case(SHARED, [1.2, -0.7, -1.4, 0.9], "token")
    batch = case.batch()
    outputs = Outputs(case.new, entropies=torch.full((case.tokens,), 0.7, dtype=torch.float64))
    loss = policy_loss(batch, outputs, ObjectiveConfig())
    assert loss.terms["policy/entropy"].item() == pytest.approx(0.7)
    assert loss.terms["policy/kl"].item() > 0
    assert loss.terms["loss/kl"].item() == 0
    assert loss.total.item() == pytest.approx(loss.terms["loss/policy"].item())


@pytest.mark.parametrize("shape", ["coverage", "binary"])
def test_targets_made_in_the_update_are_those_of_the_stage(shape: TargetShape) -> None:
    frame, sizes = Frame("absolute", 28, 4 * 28**2, 1280 * 28**2), [Size(84, 56), Size(56, 56)]
    regions = [Region(box=Box(10, 5, 50, 40)), Region(box=Box(30, 30, 56, 56), image=1)]
    cover = membership(regions, sizes, frame, "overlap" if shape == "binary" else "coverage")
    padded = torch.from_numpy(np.append(cover, [1.0, 1.0]))[None]
    counted = torch.arange(len(cover) + 2)[None] < len(cover)
    found = cover_target(padded, counted, 0.1)[0]
    assert found[: len(cover)].numpy() == pytest.approx(region_target(regions, sizes, frame, shape, smooth=0.1))
    assert found[len(cover) :].tolist() == [0, 0]
    assert cover_target(padded * 0, counted)[0].sum() == pytest.approx(1.0)


def test_anchor_losses_by_hand() -> None:
    """Two heads over two visual tokens and a column that does not count; half and a quarter of the mass is on text."""
    maps = torch.tensor([[[0.4, 0.1, 0.3]], [[0.15, 0.6, 0.2]]])
    target, counted = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    given = {"target": target, "counted": counted, "region": target > 0}
    mean = -math.log(0.55 / 1.25)
    for loss in ("kl", "mass_nll"):  # with the whole target on one cell both are -log of its share
        assert float(anchor_losses(maps, loss=loss, **given)) == pytest.approx(mean)
        raw = anchor_losses(maps, loss=loss, normalise="raw", **given)
        assert float(raw) == pytest.approx(-math.log(0.275))
        by_head = anchor_losses(maps, loss=loss, normalise="norm_then_mean", **given)
        assert float(by_head) == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)
    assert float(visual_losses(maps, counted)) == pytest.approx(-math.log(0.625))


def test_kl_without_a_reference_is_an_error() -> None:
    batch = Case(SHARED, [1.0, -1.0, 0.5, 0.0], "token").batch()
    batch.reference_logprobs = None
    logprobs = torch.zeros(11, dtype=torch.float64)
    with pytest.raises(UserError, match="reference"):
        policy_loss(batch, Outputs(logprobs), ObjectiveConfig(kl=0.01))
    assert "policy/kl" not in policy_loss(batch, Outputs(logprobs), ObjectiveConfig()).terms


def test_objective_config_defaults_follow_the_ratio() -> None:
    assert (ObjectiveConfig().clip_low, ObjectiveConfig().clip_high, ObjectiveConfig().dual_clip) == (0.2, 0.28, 3.0)
    sequence = ObjectiveConfig.model_validate({"ratio": "sequence", "clip_high": 0.01})
    assert (sequence.clip_low, sequence.clip_high, sequence.dual_clip) == (3e-4, 0.01, None)
    assert (ObjectiveConfig().normalisation, sequence.normalisation) == ("token", "sequence")
    by_token = ObjectiveConfig.model_validate({"ratio": "sequence", "normalisation": "token"})
    assert by_token.normalisation == "token"
    assert ObjectiveConfig.model_validate(sequence.model_dump()) == sequence
    with pytest.raises(ValidationError):
        ObjectiveConfig.model_validate({"cliplow": 0.1})
