"""Memory against what autograd keeps and the profiler sees on small models, and in closed form at published sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.policy.activations import kept_bytes, logit_bytes
from sightline.policy.architecture import architecture
from sightline.policy.flops import EVERYTHING, Trained, Work, tree_work
from sightline.policy.load import Policy, load_policy
from sightline.policy.memory import CARDS, Sampled, Setup, fits, memory, trained_parameters
from sightline.policy.packing import Packed, Packer
from sightline.policy.published import published_config
from sightline.train.masters import MasterWeights
from stock import groups_of, make_method

LORA = Trained(text=False, vision=False, rank=32)
SEVEN, THREE = (architecture(published_config(f"Qwen/Qwen2.5-VL-{size}B-Instruct")) for size in (7, 3))
WORK = Work(tokens=8192, pairs=8192 * 800, scored=6000, grids=((1, 60, 60),) * 2)
GIB = 2**30


def loaded(folder: Path, dtype: str, trained: Trained, *, checkpointing: bool = False) -> Policy:
    policy = load_policy(folder, dtype=dtype, checkpointing=checkpointing)
    for name, p in policy.model.named_parameters():
        p.requires_grad_(trained.vision if "visual" in name else trained.text)
    policy.model.train()
    return policy


def packed_of(policy: Policy, copies: int = 1) -> tuple[Packed, Work]:
    groups = [replace(g, rollouts=g.rollouts * copies) for g in groups_of(policy, make_method(), records=1)]
    (packed,) = Packer(policy, 10**6, shares=copies == 1).groups(groups)
    work = tree_work([part.tree for part in packed.parts], policy.pixels.grid, policy.pixels.processor.merge_size)
    return packed, replace(work, tokens=packed.batch.ids.numel())


def saved_bytes(policy: Policy, run: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most that `run` holds at once, from the profiler's record of every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events: list[Any] = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = top = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            top = max(top, live)
    return top


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", [EVERYTHING, Trained(vision=False)], ids=("all", "text"))
def test_activations_are_what_autograd_keeps(
    policy: Policy, checkpoints: dict[str, Path], dtype: str, trained: Trained
) -> None:
    packed, work = packed_of(policy)
    own = loaded(checkpoints[policy.family], dtype, trained)
    seen = saved_bytes(own, lambda: own.module(packed.batch))
    model = architecture(own.model.config)
    setup = Setup(weight=2 if dtype == "bfloat16" else 4, trained=trained, checkpointing=False, is_cuda=False)
    softmax = work.scored * model.text.vocab * 4
    # beside activations: rotary angles, indices and positions, a few bytes per token each
    assert kept_bytes(model, setup.keeping, work) == pytest.approx(seen - softmax, rel=0.06)


@pytest.mark.parametrize("checkpointing", [False, True], ids=("kept", "recomputed"))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_of_an_update_is_what_the_profiler_sees(
    policy: Policy, checkpoints: dict[str, Path], dtype: str, checkpointing: bool
) -> None:
    packed, work = packed_of(policy, copies=8)
    own = loaded(checkpoints[policy.family], dtype, EVERYTHING, checkpointing=checkpointing)
    masters = MasterWeights(list(own.model.parameters()))

    def update() -> None:
        own.module(packed.batch, entropies=True).logprobs.sum().backward()
        masters.collect()

    update()  # gradients of an earlier micro-batch are there
    seen = peak_bytes(update)
    setup = Setup(weight=2 if dtype == "bfloat16" else 4, checkpointing=checkpointing, is_cuda=False)
    needs = memory(architecture(own.model.config), setup, work)
    expected = sum(c.bytes for c in needs if c.phase == "update" and c.name != "gradients")
    assert expected == pytest.approx(seen, rel=0.15)


def test_seven_billion_parameters_in_closed_form() -> None:
    needs = memory(SEVEN, Setup(trained=EVERYTHING), WORK)
    count = 8_292_166_656
    assert (needs["weights"], needs["masters"], needs["moments"]) == (2 * count, 4 * count, 8 * count)
    assert sum(c.bytes for c in needs if c.name == "gradients" and c.phase == "update") == 4 * count
    assert needs["optimiser step"] == 0
    assert not fits(needs, CARDS["141 GB"])  # 8.3 billion times 20 bytes, a gradient of a micro-batch included
    assert needs.peak == needs.during("update") > 20 * count > needs.during("step") > 18 * count
    rounded = memory(SEVEN, Setup(masters="stochastic"), WORK)
    assert rounded["optimiser step"] == 20 * 2**23
    assert memory(SEVEN, Setup(is_cuda=False), WORK)["optimiser step"] == 4 * 152064 * 3584


def test_boundaries_and_one_layer_in_closed_form() -> None:
    """With checkpointing, per token: an input per layer, and the inside of one."""
    needs = memory(SEVEN, Setup(trained=LORA), WORK)
    kept = 28 * 3584 * 2 + 3584 * 4
    assert needs["activations"] == 8192 * kept + 6000 * 3584 * 2
    norms = 2 * 3584 * 4 + 4 * 28
    attention, inputs = 2 * (2 * 3584 + 2 * 512), 2 * 2 * 3584
    feed_forward, low_rank, flowing = 2 * 4 * 18944, 2 * 7 * 32, 2 * 2 * (18944 + 3584)
    layer = 8192 * (norms + attention + inputs + feed_forward + low_rank + flowing)
    fresh = trained_parameters(SEVEN, LORA) * 2 - needs["activations"]
    assert fresh < 0
    assert sum(c.bytes for c in needs if c.name == "at work") == layer


def test_adapters_have_the_published_number_of_parameters() -> None:
    """Rank 32 on all linear maps of the 7B decoder: r x (inputs + outputs), worked out by hand."""
    layer = 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert trained_parameters(SEVEN, LORA) == 28 * layer == 80_740_352


def test_block_of_logits_is_bounded() -> None:
    from sightline.policy import activations, forward

    assert activations.BLOCK == forward.BLOCK
    how = Setup().keeping
    few, many = (logit_bytes(SEVEN.text, how, replace(WORK, scored=n)) for n in (1000, 10**6))
    assert few == many == 2 * 2 * 152064 * (2**27 // 152064)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"checkpointing": False}, {"checkpointing": True}),
        ({"trained": EVERYTHING}, {"trained": Trained(vision=False)}),
        ({"trained": EVERYTHING}, {"trained": LORA}),
        ({"trained": LORA}, {"trained": LORA, "is_quantised": True}),
        ({"masters": "fp32"}, {"masters": "stochastic"}),
        ({"states": "fp32"}, {"states": "8bit"}),
        ({"reference": "device"}, {"reference": "cpu"}),
        ({}, {"processes": 2, "is_sharded": True}),
        ({"processes": 2, "is_sharded": True}, {"processes": 8, "is_sharded": True}),
        ({"trained": LORA}, {"trained": LORA, "is_fused": True}),
    ],
)
def test_what_is_said_to_save_memory_saves_it(worse: dict[str, Any], better: dict[str, Any]) -> None:
    high, low = (memory(SEVEN, Setup(**options), WORK) for options in (worse, better))
    assert low.peak < high.peak


def test_a_server_spares_the_keys_and_values() -> None:
    sampled = Sampled(prompts=26, prompt=1300, replies=256, reply=4096)
    needs = memory(SEVEN, Setup(trained=LORA), WORK, sampled)
    token = 28 * 2 * 4 * 128 * 2
    # a cache that grows by half from 32 has 5530 positions when it holds 4096
    assert needs["keys and values"] == (26 * 1300 + 256 * 5530) * token
    assert needs.peak == needs.during("sampling")
    assert memory(SEVEN, Setup(trained=LORA), WORK)["keys and values"] == 0


def test_growth_is_that_of_the_sampler() -> None:
    from sightline.policy import memory as module
    from sightline.sampling import cache
    from sightline.train import rounding

    assert module.GROWTH == cache.GROWTH
    assert module.PIECE == rounding.PIECE
    grown = torch.empty(1, 1, cache.GROWTH, 1)
    for tokens in range(1, 2000):
        while grown.shape[2] < tokens:
            grown = cache._grown(grown)
        assert module._capacity(tokens) == grown.shape[2]


def test_known_runs_fit_and_known_misfits_do_not() -> None:
    """Experience of the field: LoRA of 7B on one 80 GB card, full 3B on 141 GB, never full 7B on one 80 GB card."""
    assert fits(memory(SEVEN, Setup(trained=LORA), WORK), CARDS["80 GB"])
    assert fits(memory(THREE, Setup(), WORK), CARDS["141 GB"])
    assert not fits(memory(SEVEN, Setup(), WORK), CARDS["80 GB"])
    assert fits(memory(SEVEN, Setup(processes=8, is_sharded=True), WORK), CARDS["80 GB"])
    assert fits(memory(SEVEN, Setup(trained=LORA, is_quantised=True), WORK), CARDS["24 GB"])
