"""PAPO: the terms of the loss in closed form, their gradients, clamps, the share of tokens, annealing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from losses import LossInput, LossReads, contrast_batch
from sightline.methods import load_method
from sightline.methods.papo import PAPO
from sightline.methods.probes import Contrast
from sightline.objectives import policy_loss


def papo(**keys: Any) -> PAPO:
    method = load_method({"name": "papo", **keys})
    assert isinstance(method, PAPO)
    return method


LOGPROBS, CHANGED = [-0.5, -1.0, -0.1, -2.0], [-2.5, -0.7, -0.1, -7.0]
PLAIN = {"objective": {"kl": 0.0}}


def value(method: PAPO, given: LossInput, logprobs: list[float]) -> tuple[Tensor, Tensor]:
    own = torch.tensor(logprobs, requires_grad=True)
    loss = method.loss(given, LossReads(own))  # type: ignore[arg-type]
    loss.total.backward()
    assert own.grad is not None
    return loss.total.detach(), own.grad


def test_presets_and_probe() -> None:
    grpo, dapo = papo(), papo(preset="dapo")
    assert (grpo.config.perception.gamma, grpo.config.perception.entropy, grpo.config.objective.kl) == (
        0.02,
        0.05,
        0.01,
    )
    assert (dapo.config.perception.gamma, dapo.config.perception.entropy, dapo.config.objective.kl) == (0.01, 0.03, 0.0)
    (probe,) = grpo.probes()
    assert isinstance(probe, Contrast)
    assert (probe.intervention.kind, probe.intervention.probability, probe.intervention.patch) == (
        "patch_blacken",
        0.6,
        14,
    )


def test_the_loss_by_hand() -> None:
    d = np.array(CHANGED) - np.array(LOGPROBS)
    k = np.exp(d) - d - 1
    entropy, changed = -np.mean(LOGPROBS), -np.mean(CHANGED)
    found, _ = value(papo(**PLAIN), contrast_batch(CHANGED), LOGPROBS)
    assert float(found) == pytest.approx(-0.02 * k.mean() + 0.05 * entropy + 0.05 * changed, rel=1e-5)


def test_tokens_that_the_image_supports_become_likelier() -> None:
    rules = {"perception": {"gamma": 1.0, "entropy": 0.0}}
    _, gradient = value(papo(**PLAIN, **rules), contrast_batch(CHANGED), LOGPROBS)
    ratio = np.exp(np.array(CHANGED) - np.array(LOGPROBS))
    assert gradient.tolist() == pytest.approx(((ratio - 1) / 4).tolist(), abs=1e-6)
    assert gradient[0] < 0 < gradient[1]


def test_only_the_entropy_of_the_original_has_a_gradient() -> None:
    rules = {"perception": {"gamma": 0.0, "entropy": 0.0, "entropy_changed": 1.0}}
    _, gradient = value(papo(**PLAIN, **rules), contrast_batch(CHANGED), LOGPROBS)
    assert gradient.tolist() == [0, 0, 0, 0]
    _, gradient = value(papo(**PLAIN, perception={"gamma": 0.0, "entropy": 1.0}), contrast_batch(CHANGED), LOGPROBS)
    assert gradient.tolist() == [-0.25] * 4


def test_k_is_clamped() -> None:
    rules = {"perception": {"gamma": 1.0, "entropy": 0.0, "entropy_changed": 0.0}}
    found, gradient = value(papo(**PLAIN, **rules), contrast_batch([5.0, -1.0, -1.0, -1.0]), [-1.0] * 4)
    assert float(found) == pytest.approx(-10 / 4)
    assert gradient[0] == 0


def test_only_the_largest_of_each_reply_count() -> None:
    rules = {"perception": {"gamma": 1.0, "entropy": 0.0, "top_share": 0.5}}
    _, gradient = value(papo(**PLAIN, **rules), contrast_batch(CHANGED), LOGPROBS)
    assert (gradient != 0).tolist() == [True, False, False, True]


def test_gamma_can_fall_to_zero() -> None:
    rules = {"perception": {"gamma": 1.0, "entropy": 0.0, "anneals": True}}
    method = papo(**PLAIN, **rules)
    whole = value(method, contrast_batch(CHANGED), LOGPROBS)[1]
    quarter = value(method, contrast_batch(CHANGED, progress=0.75), LOGPROBS)[1]
    assert quarter.tolist() == pytest.approx((whole / 4).tolist())


def test_rollouts_without_a_measurement_add_nothing() -> None:
    rules = {"perception": {"gamma": 1.0, "entropy": 0.0}}
    _, gradient = value(papo(**PLAIN, **rules), contrast_batch([float("nan"), *CHANGED[1:]]), LOGPROBS)
    assert gradient[0] == 0
    assert gradient.isfinite().all()


def test_without_its_weights_it_is_grpo() -> None:
    off = {"perception": {"gamma": 0.0, "entropy": 0.0, "entropy_changed": 0.0}}
    given = contrast_batch(CHANGED, reference_logprobs=torch.tensor([-0.6, -1.0, -0.2, -2.0]))
    method, own = papo(**off), torch.tensor(LOGPROBS)
    base = policy_loss(given, LossReads(own), method.config.objective)  # type: ignore[arg-type]
    assert float(method.loss(given, LossReads(own)).total) == pytest.approx(float(base.total))  # type: ignore[arg-type]
