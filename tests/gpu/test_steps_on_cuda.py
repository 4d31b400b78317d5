"""Steps of the learner on CUDA: no compilation after the first, no waiting for the device, compiled layers the same."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import FAMILIES
from measured import conversation_groups
from sightline.config import Optim
from sightline.credit.weights import normalised_weights
from sightline.methods.grpo import GRPO, GRPOConfig
from sightline.policy.compiled import compile_blocks
from sightline.policy.features import freeze_vision
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import LoraSettings
from sightline.policy.packing import Packer
from sightline.policy.readout import MapReadout, MassReadout, Readouts
from sightline.train.optimiser import Optimiser
from sightline.train.reference import keep_reference
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
@pytest.mark.parametrize("how", ["checkpointing", "lora", "frozen tower"])
def test_compiled_layers_train_as_the_recipe_says(checkpoints: dict[str, Path], family: str, how: str) -> None:
    """Recomputed layers, adapters inside the layers, and features of images in place of images."""
    lora = LoraSettings(rank=4) if how == "lora" else None
    policy = load_policy(checkpoints[family], device="cuda", checkpointing=how == "checkpointing", lora=lora)
    if how == "frozen tower":
        freeze_vision(policy, 64.0)
    policy.model.train()
    names = [n for n, _ in policy.model.named_parameters()]
    groups = credited(policy)
    update(policy, groups)
    plain = gradients(policy)
    compile_blocks(policy.adapter)
    update(policy, groups)
    assert float(plain.norm()) > 0
    assert float((gradients(policy) - plain).norm() / plain.norm()) < 1e-4
    assert [n for n, _ in policy.model.named_parameters()] == names


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_layers_are_read_like_others(checkpoints: dict[str, Path], family: str) -> None:
    """Maps with a loss on them, masses, and a segment that owns every key, of which nothing is computed."""
    policy = load_policy(checkpoints[family], device="cuda", dtype="bfloat16")
    policy.model.train()
    packed = next(iter(Packer(policy).groups(credited(policy))))
    rows, visual = packed.batch.predictor[None], packed.batch.visual_at[None]
    whole = torch.ones(1, 1, packed.batch.ids.shape[1])
    results = []
    for is_compiled in (False, True):
        if is_compiled:
            compile_blocks(policy.adapter)
        for _ in range(2):
            maps, masses = MapReadout(rows, visual, [0, 1]), MassReadout(rows, whole, [0, 1])
            logprobs = policy.module(packed.batch, readout=Readouts([maps, masses])).logprobs
            (maps.mean().square().sum() - logprobs.mean()).backward()
            results.append((maps.mean().detach(), gradients(policy)))
            torch.testing.assert_close(masses.mean(), torch.ones_like(masses.mean()))
    for read, gradient in results[1:]:
        torch.testing.assert_close(read, results[0][0], atol=3e-3, rtol=0)
        assert float((gradient - results[0][1]).norm() / results[0][1].norm()) < 5e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_copy_of_a_compiled_policy_keeps_its_weights(checkpoints: dict[str, Path], family: str) -> None:
    policy = load_policy(checkpoints[family], device="cuda")
    compile_blocks(policy.adapter)
    packed = next(iter(Packer(policy).groups(credited(policy))))
    references = [keep_reference(policy, lambda: policy, place) for place in ("device", "cpu")]
    with torch.no_grad():
        want = policy.module(packed.batch).logprobs
        for p in policy.model.parameters():
            p.mul_(1.1)
        moved = policy.module(packed.batch).logprobs
    for reference in references:
        torch.testing.assert_close(reference.logprobs(packed.batch, 1.0), want, atol=1e-4, rtol=1e-4)
    assert float((moved - want).abs().max()) > 1e-3


def test_the_optimiser_steps_like_that_of_the_cpu() -> None:
    """One kernel per step; a state from the CPU goes on here, and one from here goes on there."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=draw) for s in ((300, 70), (70,))]
    slopes = [[torch.randn(p.shape, generator=draw) for p in start] for _ in range(4)]

    def steps(device: str, state: dict[str, Any] | None, weights: list[torch.Tensor], part: slice) -> Any:
        owned = [torch.nn.Parameter(w.detach().to(device, copy=True)) for w in weights]
        optimiser = Optimiser(owned, Optim(lr=1e-2, weight_decay=0.1))
        if state is not None:
            optimiser.load_state(state)
        for gradient in slopes[part]:
            for p, g in zip(owned, gradient, strict=True):
                p.grad = g.to(device)
            optimiser.collect()
            optimiser.apply()
        assert optimiser.adamw.param_groups[0]["fused"] == (True if device == "cuda" else None)
        return optimiser.state(), [p.detach().cpu() for p in owned]

    _, want = steps("cpu", None, start, slice(0, 4))
    for first, second in (("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")):
        state, between = steps(first, None, start, slice(0, 2))
        _, found = steps(second, state, between, slice(2, 4))
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


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
