"""FLOPs against what a tiny model dispatches, against closed forms, and at the dimensions of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sightline.policy.architecture import architecture
from sightline.policy.flops import (
    EVERYTHING,
    FROZEN,
    Flops,
    Trained,
    Work,
    backward_flops,
    forward_flops,
    padded_work,
    tree_work,
    update_flops,
    visible_pairs,
)
from sightline.policy.load import Policy, load_policy
from sightline.policy.packing import Packed, Packer
from stock import groups_of, make_method

TEXT = Trained(text=True, vision=False)
VISION = Trained(text=False, vision=True)
EMBEDDINGS = Trained(text=False, vision=False, embeddings=True)

SEVEN = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
        "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
    },
}  # fmt: skip
"""The dimensions of Qwen2.5-VL-7B in the flat layout of its published config."""


def _pairs(query: Any, key: Any, is_causal: bool) -> int:
    rows, heads, queries, width = query
    return rows * heads * width * (queries * (queries + 1) // 2 if is_causal else queries * key[2])


def _attention(query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, **_: Any) -> int:  # noqa: ARG001
    return 4 * _pairs(query, key, is_causal)


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout: float, is_causal: bool, **_: Any  # noqa: ARG001
) -> int:  # fmt: skip
    return 8 * _pairs(query, key, is_causal)


def counted(run: Callable[[], object]) -> int:
    """FLOPs that were dispatched; a causal kernel counts the pairs it shows."""
    kernels = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            kernels._scaled_dot_product_flash_attention_for_cpu: _attention,
            kernels._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        },
    )
    with counter:
        run()
    return counter.get_total_flops()


def packed_of(policy: Policy, *, shares: bool = True) -> Packed:
    groups = groups_of(policy, make_method(), records=3)
    (packed,) = Packer(policy, 100_000, shares=shares).groups(groups)
    return packed


def work_of(policy: Policy, packed: Packed) -> Work:
    return tree_work([part.tree for part in packed.parts], policy.pixels.grid, policy.pixels.processor.merge_size)


@pytest.fixture(params=("tree", "padded"))
def shares(request: pytest.FixtureRequest) -> bool:
    return request.param == "tree"


def test_forward_is_what_the_model_dispatches(policy: Policy, shares: bool) -> None:
    packed = packed_of(policy, shares=shares)
    # siblings of other lengths are padded; padding passes through the linear maps but is no model FLOP
    with torch.no_grad():
        seen = counted(lambda: policy.module(packed.batch))
    model, work = architecture(policy.model.config), work_of(policy, packed)
    padding = Work(tokens=packed.batch.ids.numel() - work.tokens)
    assert seen == (forward_flops(model, work) + forward_flops(model, padding)).total


@pytest.mark.parametrize("trained", [EVERYTHING, TEXT, VISION, EMBEDDINGS], ids=("all", "text", "vision", "embeddings"))
def test_backward_is_what_the_model_dispatches(checkpoints: Any, policy: Policy, trained: Trained) -> None:
    own = load_policy(checkpoints[policy.family])
    for name, p in own.model.named_parameters():
        is_vision, is_embedding = "visual" in name, "embed_tokens" in name
        p.requires_grad_(trained.vision if is_vision else trained.text or (trained.embeddings and is_embedding))
    packed = packed_of(own)
    outputs = own.module(packed.batch)
    seen = counted(lambda: outputs.logprobs.sum().backward())
    model, work = architecture(own.model.config), work_of(own, packed)
    padding = Work(tokens=packed.batch.ids.numel() - work.tokens)
    expected = (backward_flops(model, work, trained) + backward_flops(model, padding, trained)).total
    if trained == EMBEDDINGS:  # tied: the output head is trained along with them
        expected += forward_flops(model, work).head
    assert seen == expected


def test_pairs_of_a_tree_are_those_of_its_mask(policy: Policy) -> None:
    packed = packed_of(policy)
    for part in packed.parts:
        end, index = part.tree.end, np.arange(len(part.tree))
        mask = (index[None, :] <= index[:, None]) & (index[:, None] < end[None, :])
        assert visible_pairs(end) == mask.sum()


def test_images_that_trees_share_are_counted_once(policy: Policy) -> None:
    packed = packed_of(policy)
    tree = packed.parts[0].tree
    once, twice = (tree_work([tree] * n, policy.pixels.grid, 2) for n in (1, 2))
    assert once.grids == twice.grids
    assert twice.tokens == 2 * once.tokens


def test_padded_batch_in_closed_form() -> None:
    work = padded_work([10, 7], 5, [(1, 4, 4)] * 2)
    assert work == Work(tokens=20, pairs=110, scored=5, grids=((1, 4, 4), (1, 4, 4)))
    dense = padded_work([10, 7], 5, [], is_dense=True, all_logits=True)
    assert dense == Work(tokens=20, pairs=200, scored=20)


def test_a_seven_billion_model_in_closed_form() -> None:
    """An image of 28 x 28 patches among 1,000 tokens, worked out by hand."""
    model = architecture(SEVEN)
    assert model.parameters == 8_292_166_656
    work = Work(tokens=1000, pairs=500_500, scored=100, grids=((1, 28, 28),))
    layer = 3584 * (3584 + 512 + 512 + 3584 + 3 * 18944)
    tower = 1280 * (4 * 1280 + 3 * 3420)
    windows = (3 * 3) * 64**2 + 2 * 3 * 32**2 + 16**2  # a side of 14 cells is cut into 4 + 4 + 4 + 2
    pairs = 4 * 784**2 + 28 * windows
    merger = 5120 * 5120 + 5120 * 3584
    expected = Flops(
        text=2.0 * 1000 * 28 * layer,
        attention=4.0 * 500_500 * 28 * 3584,
        vision=2.0 * 784 * (1176 * 1280 + 32 * tower) + 4.0 * pairs * 1280 + 2.0 * 196 * merger,
        head=2.0 * 100 * 3584 * 152064,
    )
    assert forward_flops(model, work) == expected


def test_lora_needs_no_gradients_of_frozen_weights() -> None:
    model = architecture(SEVEN)
    work = Work(tokens=5000, pairs=10**7, scored=4000, grids=((1, 40, 40),))
    lora = Trained(text=False, vision=False, rank=32)
    full, frozen, adapted = (backward_flops(model, work, t) for t in (EVERYTHING, FROZEN, lora))
    forward = forward_flops(model, work)
    assert full.total == pytest.approx(2 * forward.total, rel=1e-3)  # less the input of the patch embedding
    assert frozen.total == 0
    assert adapted.vision == 0
    assert adapted.head == forward.head
    assert adapted.attention == full.attention
    assert adapted.text == pytest.approx(forward.text, rel=0.03)
    assert update_flops(model, work, lora).text > 2 * forward.text * 0.99


def test_adapters_are_what_they_dispatch() -> None:
    """Rank-4 factors beside every linear map of one layer, forward and backward, without gradient to the input."""
    from sightline.policy.architecture import Matrix

    maps, rank, tokens = [Matrix(8, 12), Matrix(12, 6)], 4, 5
    torch.manual_seed(0)
    frozen = [torch.randn(m.inputs, m.outputs) for m in maps]
    down = [torch.randn(m.inputs, rank, requires_grad=True) for m in maps]
    up = [torch.randn(rank, m.outputs, requires_grad=True) for m in maps]

    def run() -> None:
        x = torch.randn(tokens, 8)
        for w, a, b in zip(frozen, down, up, strict=True):
            x = x @ w + x @ a @ b
        x.sum().backward()

    adapters = sum(m.adapter(rank) for m in maps)
    inputs = maps[1].size  # the first map's input needs no gradient, neither through it nor through its adapter
    expected = 2 * tokens * (sum(m.size for m in maps) + adapters + inputs + 2 * adapters - rank * maps[0].inputs)
    assert counted(run) == expected


@pytest.mark.parametrize("targets", ["language", "all"])
def test_lora_is_what_the_model_dispatches(policy: Policy, checkpoints: Any, targets: Any) -> None:
    from sightline.config.sections import Lora

    own = load_policy(checkpoints[policy.family], lora=Lora(rank=4, targets=targets))
    packed = packed_of(own)
    model, work = architecture(policy.model.config), work_of(own, packed)
    trained = Trained(text=False, vision=False, rank=4, adapts_vision=targets == "all")
    padding = Work(tokens=packed.batch.ids.numel() - work.tokens)
    outputs: list[Any] = []
    forward = counted(lambda: outputs.append(own.module(packed.batch)))
    backward = counted(lambda: outputs[0].logprobs.sum().backward())
    assert forward == (forward_flops(model, work, trained) + forward_flops(model, padding, trained)).total
    assert backward == (backward_flops(model, work, trained) + backward_flops(model, padding, trained)).total
