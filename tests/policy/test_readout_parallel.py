"""Read-outs through wrappers against eager attention: two processes with sharded parameters, and LoRA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sharded
from eager import anchoring, batch_of, dense_attention, gradients, relative_difference, visual_keys
from sightline.policy.attention import NAME
from sightline.policy.forward import PolicyModule
from sightline.policy.load import Policy, load_policy
from sightline.policy.qwen_vl import QwenVL
from sightline.policy.readout import MapReadout


def reference(policy: Policy, layers: tuple[int, ...], seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps of the rows that predict the replies, by eager attention, and the replies' log-probs."""
    batch = batch_of(policy, seed)
    matrices, logprobs = dense_attention(policy, batch)
    keys = visual_keys(policy, batch)[0]
    return [matrices[n][:, :, batch.predictor][..., keys] for n in layers], logprobs


@pytest.fixture(scope="session")
def found(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two gloo processes wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    options = [str(folder / "meeting"), str(folder), *map(str, checkpoints.values())]
    started = [
        subprocess.Popen([sys.executable, sharded.__file__, str(rank), *options]) for rank in range(sharded.PROCESSES)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(sharded.PROCESSES)]


@pytest.mark.parametrize("stops_at", [None, max(sharded.LAYERS)], ids=["log-probs", "attention alone"])
def test_two_processes_equal_one(policy: Policy, found: list[dict], stops_at: int | None) -> None:
    """Each process reads its own batch; the gradient is the mean over both. The request survives the wrapping."""
    policy.model.zero_grad()
    total = torch.zeros(())
    for seed, own in enumerate(found):
        maps, logprobs = reference(policy, sharded.LAYERS, seed)
        result = own[policy.source.name, stops_at]
        for n, want in zip(sharded.LAYERS, maps, strict=True):
            torch.testing.assert_close(result["maps"][n], want, atol=1e-6, rtol=0)
            torch.testing.assert_close(result["masses"][n], torch.ones(result["masses"][n].shape), atol=1e-6, rtol=0)
        total = total + anchoring(maps) - (logprobs.sum() if stops_at is None else 0.0)
    (total / len(found)).backward()
    expected = gradients(policy)
    first = found[0][policy.source.name, stops_at]["gradients"]
    # layers that the loss does not reach: zero where sharded, absent elsewhere
    assert all(not g.any() for n, g in first.items() if n not in expected)
    assert all(not g.any() for n, g in expected.items() if n not in first)
    shared = first.keys() & expected.keys()
    ours, theirs = ({n: g[n] for n in shared} for g in (first, expected))
    assert relative_difference(ours, theirs) < 1e-5
    second = found[1][policy.source.name, stops_at]["gradients"]
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks by the old name
@pytest.mark.parametrize("checkpointing", [False, True])
def test_maps_through_lora_equal_eager(policy: Policy, checkpointing: bool) -> None:
    """The adapter is built on the wrapped model; only the added matrices are trained."""
    peft = pytest.importorskip("peft")
    fresh = load_policy(policy.source, checkpointing=checkpointing)
    torch.manual_seed(0)
    names = r".*language_model.*\.(q_proj|k_proj|v_proj|up_proj)"
    wrapped = peft.get_peft_model(fresh.model, peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    fresh.adapter = QwenVL(wrapped)
    fresh.module = PolicyModule(fresh.adapter, fresh.banned)
    assert wrapped.config.text_config._attn_implementation == NAME
    layers = (0, 2)
    maps, logprobs = reference(fresh, layers, seed=0)
    (anchoring(maps) - logprobs.sum()).backward()
    expected = gradients(fresh)
    assert expected.keys() == {n for n, p in wrapped.named_parameters() if p.requires_grad}
    fresh.model.train()
    batch = batch_of(fresh)
    request = MapReadout(batch.predictor[None], visual_keys(fresh, batch), layers)
    outputs = fresh.module(batch, readout=request)
    for n, want in zip(layers, maps, strict=True):
        torch.testing.assert_close(request.maps[n], want, atol=1e-6, rtol=0)
    (anchoring(list(request.maps.values())) - outputs.logprobs.sum()).backward()
    assert relative_difference(gradients(fresh), expected) < 1e-5
