"""Compiled layers, with a backend that runs the captured graphs as they are: what is captured, and how often."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from conftest import FAMILIES
from eager import rollouts, tree_of
from sightline.kernels import in_graph
from sightline.policy.attention import TreeLayout
from sightline.policy.batch import Batch, collate
from sightline.policy.compiled import NAME, compile_blocks
from sightline.policy.flex import block_mask
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import LoraSettings
from sightline.policy.readout import MassReadout
from sightline.policy.save import save_policy


def batch_of(policy: Policy, seed: int) -> Batch:
    return collate([[tree_of(policy, rollouts(policy, seed))]], policy.pixels, pad=policy.pad)


@torch.no_grad()
def hidden(policy: Policy, batch: Batch, **more: object) -> torch.Tensor:
    """Hidden states under the block mask that a CUDA device would get."""
    assert batch.pixels is not None
    assert batch.grids is not None
    vision = policy.adapter.vision(batch.pixels, batch.grids)
    visual = (vision, batch.visual_at, batch.visual_from)
    return policy.adapter.text(batch.ids, batch.positions, block_mask(batch.end), visual, **more)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_a_layer_is_captured_once_for_all_layers_and_steps(checkpoints: dict[str, Path], family: str) -> None:
    from torch._dynamo.utils import counters

    plain, policy = load_policy(checkpoints[family]), load_policy(checkpoints[family])
    batch = batch_of(plain, 0)
    with torch.no_grad():
        want = plain.module(batch, hidden=True)
    torch._dynamo.reset()
    compile_blocks(policy.adapter, backend="eager")
    assert policy.model.config.text_config._attn_implementation == NAME
    assert batch.pixels is not None
    assert batch.grids is not None
    with torch.no_grad():
        policy.adapter.vision(batch.pixels, batch.grids)
    before = counters["stats"]["unique_graphs"]
    rows = hidden(policy, batch).flatten(0, 1)[batch.predictor]
    torch.testing.assert_close(rows, want.hidden, atol=1e-5, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == before + 1, "one graph for all layers"
    for _ in range(3):
        hidden(policy, batch)
    assert counters["stats"]["unique_graphs"] == before + 1, "and none for a new mask"
    masses = MassReadout(batch.predictor[None], torch.ones(1, 1, batch.ids.shape[1]), [1])
    read = hidden(policy, batch, readout=masses, layout=TreeLayout(batch.end)).flatten(0, 1)[batch.predictor]
    torch.testing.assert_close(read, want.hidden, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masses.mean(), torch.ones_like(masses.mean()))
    torch._dynamo.reset()


def test_layers_that_run_as_written_call_the_compiled_kernel() -> None:
    """A frozen copy of a compiled policy is not compiled; FlexAttention by itself would fill in all pairs."""
    called = []

    def kernel(*_: object, **given: object) -> tuple[torch.Tensor, None]:
        called.append(given["layout"])
        return torch.zeros(1), None

    inputs = [torch.randn(1, 2, 9, 16) for _ in range(3)]
    in_graph(kernel)(None, *inputs, block_mask(torch.full((1, 9), 9)), scaling=1.0, layout="layout")
    assert called == ["layout"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["checkpointing", "lora"])
@pytest.mark.filterwarnings("ignore")
def test_recomputed_and_adapted_layers_have_the_same_gradient(checkpoints: dict[str, Path], how: str) -> None:
    lora = LoraSettings(rank=4) if how == "lora" else None
    policy = load_policy(checkpoints["qwen2_5_vl"], checkpointing=how == "checkpointing", lora=lora)
    policy.model.train()
    batch, found = batch_of(policy, 0), []
    torch._dynamo.reset()
    for is_compiled in (False, True):
        if is_compiled:
            compile_blocks(policy.adapter, backend="eager")
        policy.module(batch).logprobs.sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
        policy.model.zero_grad(set_to_none=True)
    assert float(found[0].norm()) > 0
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_of_a_compiled_policy_is_the_policy(
    checkpoints: dict[str, Path], family: str, tmp_path: Path
) -> None:
    """Names, widths and values: padding happens within the compiled code alone. A frozen copy is not compiled."""
    plain, policy = load_policy(checkpoints[family]), load_policy(checkpoints[family])
    compile_blocks(policy.adapter)
    save_policy(policy, tmp_path)
    again = load_policy(tmp_path)
    assert again.model.config.text_config._attn_implementation != NAME
    for other in (policy, again):
        pairs = zip(plain.model.state_dict().items(), other.model.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    copied = copy.deepcopy(policy.module)
    assert not any(getattr(m, "_compiled_call_impl", None) for m in copied.modules())
    assert any(getattr(m, "_compiled_call_impl", None) for m in policy.module.modules())
