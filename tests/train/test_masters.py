"""Small updates of a bfloat16 policy are not rounded away, and survive a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.config import Optim
from sightline.errors import UserError
from sightline.policy.load import load_policy
from sightline.train.learner import Learner
from sightline.train.masters import MasterWeights
from stock import groups_of, make_method

TINY = Optim(lr=1e-6, clip_norm=1e6)


def movement(learner: Learner, start: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(
        [(m.detach() - s).flatten() for m, s in zip(learner.optimiser.weights.masters, start, strict=True)]
    )


def test_bfloat16_follows_float32_at_a_tiny_rate(checkpoints: dict[str, Path]) -> None:
    method = make_method()
    groups = groups_of(load_policy(checkpoints["qwen3_vl"]), method)
    moves = []
    for dtype in ("float32", "bfloat16"):
        learner = Learner(load_policy(checkpoints["qwen3_vl"], dtype=dtype), TINY, steps=10)
        start = [m.detach().clone() for m in learner.optimiser.weights.masters]
        for step in range(8):
            learner.step(groups, method, step)
        moves.append(movement(learner, start))
    # weights that no token of these groups touches stay in both
    touched = moves[0] != 0
    assert float((moves[1][touched] != 0).float().mean()) > 0.95
    assert torch.nn.functional.cosine_similarity(moves[0], moves[1], dim=0) > 0.9


def test_the_policy_holds_the_rounded_masters_and_a_resume_keeps_both(checkpoints: dict[str, Path]) -> None:
    method = make_method()
    groups = groups_of(load_policy(checkpoints["qwen3_vl"]), method)
    learner = Learner(load_policy(checkpoints["qwen3_vl"], dtype="bfloat16"), Optim(lr=1e-4), steps=10)
    learner.step(groups, method, 0)
    for p, m in zip(learner.optimiser.weights.parameters, learner.optimiser.weights.masters, strict=True):
        assert p.dtype == torch.bfloat16
        assert torch.equal(p, m.bfloat16())
    again = Learner(load_policy(checkpoints["qwen3_vl"], dtype="bfloat16"), Optim(lr=1e-4), steps=10)
    again.load_state(learner.state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(learner.optimiser.weights.masters, again.optimiser.weights.masters, strict=True)
    )


def test_gradients_of_micro_batches_add_up_in_fp32() -> None:
    """A sum in bfloat16 would stop at 256."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    weights = MasterWeights([parameter])
    for _ in range(300):
        parameter.grad = torch.ones_like(parameter)
        weights.collect()
        assert parameter.grad is None
    [master] = weights.masters
    assert master.grad is not None
    assert master.grad.tolist() == [300.0] * 3


def test_float32_is_its_own_master_and_float16_is_refused(checkpoints: dict[str, Path]) -> None:
    learner = Learner(load_policy(checkpoints["qwen3_vl"]), TINY, steps=1)
    assert all(
        p is m for p, m in zip(learner.optimiser.weights.parameters, learner.optimiser.weights.masters, strict=True)
    )
    assert learner.state()["masters"] == []
    with pytest.raises(UserError, match="float16"):
        Learner(load_policy(checkpoints["qwen3_vl"], dtype="float16"), TINY, steps=1)
