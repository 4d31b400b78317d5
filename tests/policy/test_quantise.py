"""Frozen weights in four bits: what the library makes of them, trained adapters beside, kept across a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from eager import batch_of
from sightline.config import Optim
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import merge
from sightline.policy.save import save_policy
from sightline.train.learner import Learner
from sightline.train.reference import keep_reference
from stock import groups_of, make_method

SMALL = Lora(rank=4, alpha=8, quantise="nf4")


@pytest.fixture(params=["qwen3_vl", "qwen2_5_vl"])
def name(request: pytest.FixtureRequest) -> str:
    """Layers of the embedded policies fill whole blocks, as those of published checkpoints do."""
    return f"embedded:{request.param}"


@pytest.fixture
def packed(name: str) -> Policy:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    return load_policy(name, lora=SMALL)


def test_products_are_those_of_the_unpacked_weights(name: str, packed: Policy) -> None:
    import bitsandbytes

    policy, unpacked = load_policy(name), load_policy(name)
    layers = {n: m for n, m in packed.model.get_base_model().named_modules() if hasattr(m, "quant_state")}
    names = {n.removesuffix(".base_layer") for n in layers}
    assert names == {
        n for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear) and "language_model" in n
    }
    for name, layer in layers.items():
        weight = unpacked.model.get_submodule(name.removesuffix(".base_layer")).weight
        value = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == weight.numel() / 2
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert 0 < float((value - weight).detach().abs().mean() / weight.detach().abs().mean()) < 0.1
        with torch.no_grad():
            weight.copy_(value)
    batch = batch_of(policy)
    torch.testing.assert_close(packed.module(batch).logprobs, unpacked.module(batch).logprobs, atol=1e-4, rtol=0)
    assert float((packed.module(batch).logprobs - policy.module(batch).logprobs).detach().abs().max()) > 1e-3


def test_only_the_adapter_is_trained_and_a_step_moves_it(packed: Policy) -> None:
    method = make_method(kl=0.1)
    groups = groups_of(packed, method)
    learner = Learner(packed, Optim(lr=1e-2), steps=4)
    learner.reference = keep_reference(packed, lambda: packed)
    before = {n: p.detach().clone() for n, p in packed.model.named_parameters()}
    for step in range(2):
        metrics = learner.step(groups, method, step).metrics
        assert metrics["update/grad_norm"] > 0
    assert metrics["policy/kl"] > 0
    moved = {n for n, p in packed.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".lora_" in n}


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_are_those_that_were_trained(name: str, dora: bool) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    policy = load_policy(name, lora=Lora(rank=4, alpha=8, quantise="nf4", dora=dora))
    with torch.no_grad():
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.add_(0.02)
    batch = batch_of(policy)
    before = policy.module(batch).logprobs.detach()
    merge(policy)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert {n for n, _ in policy.model.named_parameters()} == {n for n, _ in load_policy(name).model.named_parameters()}
    torch.testing.assert_close(policy.module(batch).logprobs.detach(), before, atol=2e-4, rtol=0)


def test_a_checkpoint_packs_its_base_again(packed: Policy, tmp_path: Path) -> None:
    with torch.no_grad():
        for name, parameter in packed.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.02)
    save_policy(packed, tmp_path)
    whole = sum(p.numel() * 4 for n, p in packed.model.named_parameters() if ".lora_" not in n)
    assert sum(p.stat().st_size for p in tmp_path.glob("*.safetensors")) < whole / 4
    again, batch = load_policy(tmp_path), batch_of(packed)
    assert again.model.is_loaded_in_4bit
    assert torch.equal(again.module(batch).logprobs, packed.module(batch).logprobs)


def test_widths_that_do_not_fit_are_named(policy: Policy) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj has 48 inputs, .* multiple of 64"):
        load_policy(policy.source, lora=SMALL)


def test_the_library_is_asked_for(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"model\.lora\.quantise: four-bit weights need the library bitsandbytes"):
        load_policy(policy.source, lora=SMALL)
