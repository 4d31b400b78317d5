"""The reference by every route: the same log-probs, the start's weights, and nothing left on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eager import batch_of
from sightline.config import Optim
from sightline.config.sections import Lora
from sightline.policy.batch import Batch
from sightline.policy.load import Policy, load_policy
from sightline.policy.save import save_policy
from sightline.train.learner import Learner
from sightline.train.reference import AdapterOff, CpuCopy, FrozenCopy, _on_cpu, keep_reference
from stock import groups_of, make_method


@pytest.fixture
def fresh(policy: Policy) -> Policy:
    return load_policy(policy.source)


def disturb(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)


def test_a_copy_stays_where_training_started(policy: Policy, fresh: Policy) -> None:
    batch = batch_of(policy)
    expected = policy.module(batch, temperature=0.7).logprobs.detach()
    reference = keep_reference(fresh, lambda: fresh)
    disturb(fresh)
    found = reference.logprobs(batch, 0.7)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not torch.equal(fresh.module(batch, temperature=0.7).logprobs, expected)


def test_a_policy_that_was_opened_for_it_is_not_copied_again(policy: Policy, fresh: Policy) -> None:
    start = load_policy(policy.source)
    reference = keep_reference(fresh, lambda: start)
    assert isinstance(reference, FrozenCopy)
    assert reference.module is start.module
    assert not any(p.requires_grad for p in start.module.parameters())


def test_layers_that_visit_compute_the_same_and_go_home(fresh: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of a copy on the CPU, with this CPU in place of the device; every move makes a copy."""
    batch = batch_of(fresh)
    expected = fresh.module(batch).logprobs.detach()
    reference = CpuCopy(_on_cpu(fresh.module), torch.device("cpu"))
    parameters = list(reference.module.parameters())
    home = [p.data_ptr() for p in parameters]
    assert not {p.data_ptr() for p in fresh.module.parameters()} & set(home)
    original, visitors = torch.Tensor.to, [0]

    def to(value: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if not options.get("non_blocking"):
            return original(value, *args, **options)
        away = sum(p.numel() for p, at in zip(parameters, home, strict=True) if p.data_ptr() != at)
        visitors.append(away + value.numel())
        return value.clone()

    monkeypatch.setattr(torch.Tensor, "to", to)
    for _ in range(2):
        assert torch.equal(reference.logprobs(batch, 1.0), expected)
        assert [p.data_ptr() for p in parameters] == home
    most, total = max(visitors), sum(p.numel() for p in parameters)
    resting = sum(p.numel() for p in reference.rest.parameters)
    lists = [m for m in reference.module.modules() if isinstance(m, torch.nn.ModuleList)]
    assert most == resting + max(sum(p.numel() for p in layer.parameters()) for layers in lists for layer in layers)
    assert most < total


def test_weights_go_home_when_the_pass_fails(fresh: Policy) -> None:
    batch = batch_of(fresh)
    reference = CpuCopy(_on_cpu(fresh.module), torch.device("meta"))
    home = [p.device for p in reference.module.parameters()]
    with pytest.raises((RuntimeError, NotImplementedError)):
        reference.logprobs(batch, 1.0)
    assert [p.device for p in reference.module.parameters()] == home


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_copy_on_the_cpu_serves_the_device(policy: Policy) -> None:
    there = load_policy(policy.source, device="cuda")
    batch = replace_device(batch_of(policy), "cuda")
    on_device, on_cpu = (keep_reference(there, lambda: there, place) for place in ("device", "cpu"))
    assert isinstance(on_cpu, CpuCopy)
    assert {p.device.type for p in on_cpu.module.parameters()} == {"cpu"}
    assert torch.equal(on_cpu.logprobs(batch, 1.0), on_device.logprobs(batch, 1.0))


def replace_device(batch: Batch, device: str) -> Batch:
    tensors = {n: v.to(device) for n in batch.__slots__ if isinstance(v := getattr(batch, n), torch.Tensor)}
    return replace(batch, **{**tensors, "grids": batch.grids})


def test_with_an_adapter_the_reference_is_the_adapter_off(policy: Policy) -> None:
    pytest.importorskip("peft")
    adapted = load_policy(policy.source, lora=Lora(rank=4))

    def start() -> Policy:
        raise AssertionError("nothing needs to be opened")

    reference = keep_reference(adapted, start)
    assert isinstance(reference, AdapterOff)
    disturb(adapted)
    batch = batch_of(policy)
    assert torch.equal(reference.logprobs(batch, 1.0), policy.module(batch).logprobs)
    assert any(p.requires_grad for p in adapted.model.parameters())


def test_an_adapter_that_was_there_belongs_to_the_start(policy: Policy, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    earlier = load_policy(policy.source, lora=Lora(rank=4))
    disturb(earlier)
    save_policy(earlier, tmp_path)
    trained, batch = load_policy(tmp_path), batch_of(policy)
    expected = trained.module(batch).logprobs.detach()
    reference = keep_reference(trained, lambda: trained, is_adapted=True)
    disturb(trained)
    assert torch.equal(reference.logprobs(batch, 1.0), expected)
    assert not torch.equal(trained.module(batch).logprobs, expected)
    assert any(p.requires_grad for p in trained.model.parameters())


@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_what_is_not_needed_is_not_computed(checkpoints: dict[str, Path], kl: float, inner_steps: int) -> None:
    """Forwards of an update: one per micro-batch, and one of the reference with KL; old log-probs only off-policy."""
    method, policy = make_method(kl=kl), load_policy(checkpoints["qwen3_vl"])
    learner = Learner(policy, Optim(inner_steps=inner_steps), steps=1)
    counted = {"policy": 0, "reference": 0}
    policy.module.register_forward_hook(lambda *_: counted.update(policy=counted["policy"] + 1))
    if kl:
        reference = keep_reference(policy, lambda: policy)
        assert isinstance(reference, FrozenCopy)
        reference.module._forward_hooks.clear()
        reference.module.register_forward_hook(lambda *_: counted.update(reference=counted["reference"] + 1))
        learner.reference = reference
    groups = groups_of(policy, method)
    counted.update(policy=0)
    learner.step(groups, method, 0)
    assert counted == {"policy": inner_steps, "reference": inner_steps if kl else 0}
