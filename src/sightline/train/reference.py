"""The policy that training started from, which the KL term holds on to: a new adapter switched off, or a frozen copy.

A copy takes the weights' memory a second time: on the device, or on the CPU, from where each layer visits the device
while it is computed. The device then holds embeddings, output matrix and norms during a pass, and one layer at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

if TYPE_CHECKING:
    from sightline.policy.batch import Batch
    from sightline.policy.forward import PolicyModule
    from sightline.policy.load import Policy

__all__ = ["AdapterOff", "CpuCopy", "FrozenCopy", "Reference", "keep_reference"]


class Reference(Protocol):
    """Log-probs of the policy as it was at the start."""

    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        """log pi_ref of the scored tokens of a batch, without gradient."""
        ...


class AdapterOff:
    """The trained policy itself, without its adapter; costs no memory.

    Args:
        policy: has an adapter that changed nothing at the start.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        with self.policy.reference():
            return self.policy.module(batch, temperature=temperature).logprobs


class FrozenCopy:
    """A second set of weights on the policy's device.

    Args:
        module: is kept as it is and never trained.
    """

    def __init__(self, module: PolicyModule) -> None:
        self.module = module.eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        return self.module(batch, temperature=temperature).logprobs


class CpuCopy(FrozenCopy):
    """A second set of weights in the memory of the CPU, pinned where there is CUDA.

    Args:
        module: its parameters are on the CPU, its buffers on the device.
        device: where it is computed.
    """

    def __init__(self, module: PolicyModule, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        if device.type == "cuda":
            for parameter in module.parameters():
                parameter.data = parameter.data.pin_memory()
        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        layers = [layer for one in lists for layer in one]
        moving = {id(p) for layer in layers for p in layer.parameters()}
        self.rest = _Visit([p for p in module.parameters() if id(p) not in moving], device)
        for layer in layers:
            visit = _Visit(list(layer.parameters()), device)
            layer.register_forward_pre_hook(visit.arrive)
            layer.register_forward_hook(visit.leave, always_call=True)

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        self.rest.arrive()
        try:
            return super().logprobs(batch, temperature)
        finally:
            self.rest.leave()


class _Visit:
    """Brings parameters to the device; afterwards they are where they were, without a copy back."""

    def __init__(self, parameters: list[nn.Parameter], device: torch.device) -> None:
        self.parameters, self.device = parameters, device
        self.home: list[Tensor] = []

    def arrive(self, *_: object) -> None:
        self.home = [p.data for p in self.parameters]
        for parameter in self.parameters:
            parameter.data = parameter.data.to(self.device, non_blocking=True)

    def leave(self, *_: object) -> None:
        for parameter, value in zip(self.parameters, self.home, strict=True):
            parameter.data = value
        self.home = []


def keep_reference(
    policy: Policy,
    start: Callable[[], Policy],
    place: Literal["auto", "device", "cpu"] = "auto",
    *,
    is_adapted: bool = False,
) -> Reference:
    """The reference of a run.

    Args:
        policy: the policy that is trained.
        start: opens the policy as training started from it, or gives `policy` itself where no step has been taken.
        place: where a copy lives; `auto` needs none for a policy with an adapter, else it is on the device.
        is_adapted: training started from an adapter, so that the policy without it is not the start.
    """
    if policy.lora and not is_adapted:
        return AdapterOff(policy)
    first = start()
    if place != "cpu" or policy.device.type == "cpu":
        return FrozenCopy(copy.deepcopy(first.module) if first is policy else first.module)
    return CpuCopy(_on_cpu(first.module), policy.device)


def _on_cpu(module: PolicyModule) -> PolicyModule:
    """A copy whose parameters are on the CPU; the device never holds a second set."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False) for p in module.parameters()
    }
    return copy.deepcopy(module, memo)
