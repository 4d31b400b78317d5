"""Steps of the learner on CUDA: no compilation after the first, no waiting for the device, compiled layers the same."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import FAMILIES
from measured import conversation_groups
from sightline.credit.weights import normalised_weights
from sightline.methods.grpo import GRPO, GRPOConfig
from sightline.policy.compiled import compile_blocks
from sightline.policy.load import Policy, load_policy
from sightline.policy.packing import Packer
from sightline.types import Credit, Group

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def credited(policy: Policy) -> list[Group]:
    """Groups of conversations with normal advantages."""
    rng = np.random.default_rng(0)
    groups = [
        replace(
            g,
            measurements=(),
            credits=tuple(
                Credit(advantage=np.full(len(r.ids), rng.normal()), weight=r.sampled.astype(float)) for r in g.rollouts
            ),
        )
        for g in conversation_groups(policy)
    ]
    weights = normalised_weights(groups, "token")
    return [
        replace(g, credits=tuple(replace(c, weight=w) for c, w in zip(g.credits, ws, strict=True)))
        for g, ws in zip(groups, weights, strict=True)
    ]


def update(policy: Policy, groups: list[Group]) -> None:
    """Forward, loss and backward, without reading anything back."""
    for packed in Packer(policy).groups(groups):
        batch = packed.batch.with_credit([groups[p.group].credits for p in packed.parts])
        outputs = policy.module(batch, entropies=True)
        GRPO(GRPOConfig()).loss(batch, outputs).total.backward()  # type: ignore[arg-type]


def gradients(policy: Policy) -> torch.Tensor:
    found = torch.cat([p.grad.flatten().float() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_layers_give_the_same_gradient(checkpoints: dict[str, Path], family: str, dtype: str) -> None:
    policy = load_policy(checkpoints[family], device="cuda", dtype=dtype)
    policy.model.train()
    groups = credited(policy)
    update(policy, groups)
    plain = gradients(policy)
    compile_blocks(policy.adapter)
    update(policy, groups)
    difference = float((gradients(policy) - plain).norm() / plain.norm())
    assert difference < (1e-4 if dtype == "float32" else 5e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_later_steps_compile_nothing_and_wait_for_nothing(checkpoints: dict[str, Path], family: str) -> None:
    from torch._dynamo.utils import counters

    policy = load_policy(checkpoints[family], device="cuda", dtype="bfloat16")
    policy.model.train()
    compile_blocks(policy.adapter)
    groups = credited(policy)
    for some in (groups, groups[:1], groups):
        update(policy, some)
    graphs = counters["stats"]["unique_graphs"]
    for some in (groups[::-1], groups[:1], groups):  # the same widths, other trees
        update(policy, [g.at(list(range(len(g)))[::-1]) for g in some])
    assert counters["stats"]["unique_graphs"] == graphs
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            update(policy, groups)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)]
    assert not waits
