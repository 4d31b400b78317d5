"""Adapters: a new one changes nothing, merging changes nothing, gradients are those of the merged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import make_record
from eager import anchoring, batch_of, gradients, relative_difference, visual_keys
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.language.prompts import prompt
from sightline.policy.load import Policy, load_policy
from sightline.policy.lora import merge
from sightline.policy.readout import MapReadout
from sightline.policy.save import save_policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler

pytest.importorskip("peft")
SMALL = Lora(rank=4, alpha=8)
KINDS = {"lora": SMALL, "dora": Lora(rank=4, alpha=8, dora=True), "all": Lora(rank=2, alpha=2, targets="all")}


def adapted(policy: Policy, lora: Lora = SMALL, *, moved: float = 0.0, checkpointing: bool = False) -> Policy:
    """A fresh policy with an adapter of its own; `moved` draws what would start at zero."""
    found = load_policy(policy.source, lora=lora, checkpointing=checkpointing)
    return perturbed(found, moved)


def perturbed(policy: Policy, size: float) -> Policy:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name and size:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * size)
    return policy


def trained(policy: Policy) -> dict[str, Tensor]:
    return {n: p for n, p in policy.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing(policy: Policy, kind: str) -> None:
    fresh = adapted(policy, KINDS[kind])
    assert fresh.lora
    assert not policy.lora
    batch = batch_of(policy)
    torch.testing.assert_close(fresh.module(batch).logprobs, policy.module(batch).logprobs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_adapter_and_off_equals_base(policy: Policy, kind: str) -> None:
    fresh, batch = adapted(policy, KINDS[kind], moved=0.05), batch_of(policy)
    base = policy.module(batch).logprobs
    changed = fresh.module(batch).logprobs
    assert float((changed - base).detach().abs().max()) > 0.01
    with fresh.reference(), torch.no_grad():
        assert torch.equal(fresh.module(batch).logprobs, base)
    assert torch.equal(fresh.module(batch).logprobs, changed)
    assert all(p.requires_grad for p in trained(fresh).values())
    merge(fresh)
    assert not fresh.lora
    assert {n for n, _ in fresh.model.named_parameters()} == {n for n, _ in policy.model.named_parameters()}
    torch.testing.assert_close(fresh.module(batch).logprobs, changed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_merged_weights(policy: Policy, checkpointing: bool) -> None:
    """W' = W + s B A, so dL/dA = s B^T dL/dW' and dL/dB = s dL/dW' A^T; the loss reads attention as well."""
    fresh = adapted(policy, moved=0.05, checkpointing=checkpointing)
    fresh.model.train()
    batch = batch_of(policy)

    def backward(one: Policy) -> dict[str, Tensor]:
        request = MapReadout(batch.predictor[None], visual_keys(one, batch), (0, 2))
        out = one.module(batch, readout=request)
        (anchoring(list(request.maps.values())) - out.logprobs.sum()).backward()
        return gradients(one)

    factors = {n: p.detach().clone() for n, p in trained(fresh).items()}
    found = backward(fresh)
    assert found.keys() == factors.keys()
    merge(fresh)
    fresh.model.requires_grad_(True)
    whole = backward(fresh)
    expected, scale = {}, SMALL.alpha / SMALL.rank
    for name in found:
        layer = name.removeprefix("base_model.model.").split(".lora_")[0]
        gradient = scale * whole[f"{layer}.weight"]
        other = factors[name.replace("lora_A", "lora_B") if "lora_A" in name else name.replace("lora_B", "lora_A")]
        expected[name] = other.T @ gradient if "lora_A" in name else gradient @ other.T
    assert relative_difference(found, expected) < 1e-5


def test_only_the_language_model_is_adapted_unless_asked(policy: Policy) -> None:
    names = list(trained(adapted(policy)))
    assert names
    assert all("language_model.layers" in n and "lora_" in n for n in names)
    layers = policy.model.config.text_config.num_hidden_layers
    assert len(names) == layers * 7 * 2
    vision = [n for n in trained(adapted(policy, KINDS["all"])) if ".visual." in n]
    assert {"attn.qkv", "attn.proj"} <= {".".join(n.split(".lora_")[0].split(".")[-2:]) for n in vision}
    some = trained(adapted(policy, Lora(rank=2, targets=("q_proj", "v_proj"))))
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in some} == {"q_proj", "v_proj"}


def test_a_layer_that_is_not_there_is_named(policy: Policy) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.targets: no linear layer is called wq \(layers here: .*q_proj"):
        load_policy(policy.source, lora=Lora(targets=("q_proj", "wq")))


def test_the_sampler_writes_what_the_learner_scores(policy: Policy) -> None:
    fresh = adapted(policy, moved=0.05)
    shown = prompt(make_record(), "textual", "textual", "compact")
    [rollouts] = LocalSampler(fresh).sample([Request(shown, (3,))], SamplingSettings(max_new_tokens=8), seed=0, step=0)
    from sightline.policy.packing import Packer
    from sightline.types import Group

    group = Group(record=make_record(), rollouts=tuple(rollouts), readings=())
    [packed] = Packer(fresh).groups([group])
    with torch.no_grad():
        scored = packed.batch.scatter(fresh.module(packed.batch).logprobs)[0]
    for rollout, values in zip(rollouts, scored, strict=True):
        torch.testing.assert_close(torch.from_numpy(values), torch.from_numpy(rollout.logprobs), atol=1e-5, rtol=0)


def test_random_numbers_of_the_run_are_left_alone(policy: Policy) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    load_policy(policy.source, lora=SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_the_adapter_and_the_name_of_its_base(
    policy: Policy, kind: str, dtype: str, tmp_path: Path
) -> None:
    fresh = perturbed(load_policy(policy.source, lora=KINDS[kind], dtype=dtype), 0.05)
    assert {p.dtype for p in trained(fresh).values()} == {getattr(torch, dtype)}
    save_policy(fresh, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(policy.source)
    again = load_policy(tmp_path, dtype=dtype)
    ours, theirs = trained(fresh), trained(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    batch = batch_of(policy)
    assert torch.equal(fresh.module(batch).logprobs, again.module(batch).logprobs)


def test_an_adapter_that_peft_saved_for_use_is_trained_on(policy: Policy, tmp_path: Path) -> None:
    save_policy(adapted(policy), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inference_mode": True}))
    assert trained(load_policy(tmp_path)).keys() == trained(adapted(policy)).keys()


def test_peft_itself_loads_the_checkpoint(policy: Policy, tmp_path: Path) -> None:
    import warnings

    import peft

    fresh = adapted(policy, moved=0.05)
    save_policy(fresh, tmp_path)
    other = load_policy(policy.source)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = peft.PeftModel.from_pretrained(other.model, str(tmp_path))
    other.adapter = type(other.adapter)(wrapped)
    other.module = type(other.module)(other.adapter, other.banned)
    batch = batch_of(policy)
    assert torch.equal(other.module(batch).logprobs, fresh.module(batch).logprobs)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "unreadable", "kind"])
def test_a_wrong_adapter_fails_with_the_name(policy: Policy, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    save_policy(adapted(policy), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "layers.1.mlp.up_proj.lora_A" in n)
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors["extra.lora_A.weight"] = tensors[name].clone()
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path)
    if damage == "unreadable":
        path.write_bytes(path.read_bytes()[:100])
    if damage == "kind":
        config = {"peft_type": "IA3", "base_model_name_or_path": str(policy.source)}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    said = {
        "missing": r"missing: .*layers\.1\.mlp\.up_proj\.lora_A", "unexpected": r"unexpected: extra\.lora_A",
        "shape": r"layers\.1\.mlp\.up_proj\.lora_A.* is \(4, 47\), not \(4, 48\)",
        "unreadable": "the adapter cannot be read", "kind": "is not supported",
    }  # fmt: skip
    with pytest.raises(UserError, match=said[damage]):
        load_policy(tmp_path)


def test_dropout_acts_in_updates_only(policy: Policy) -> None:
    fresh, batch = adapted(policy, Lora(rank=4, dropout=0.5), moved=0.05), batch_of(policy)
    fresh.model.eval()
    assert torch.equal(fresh.module(batch).logprobs, fresh.module(batch).logprobs)
    fresh.model.train()
    assert not torch.equal(fresh.module(batch).logprobs, fresh.module(batch).logprobs)
