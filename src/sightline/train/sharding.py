"""How the weights of a policy lie on several processes: whole on each (`ddp`), or a share on each (`fsdp`).

With `fsdp` every decoder layer and vision block, and what is left at the root, is gathered when it is computed and
given up afterwards. The shares are fp32 masters; what is computed with has the number format of the recipe. Nothing is
averaged: losses are parts of one sum over all processes, so gradients add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sightline.errors import UserError
from sightline.policy.features import tower

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from sightline.policy.load import Policy
    from sightline.train.distributed import World

__all__ = [
    "clip_gradients",
    "forget_unreached",
    "full_state",
    "is_sharded",
    "laid_out",
    "shard",
    "sharing",
    "sum_gradients",
    "whole",
]

SMALL = 500_000_000
"""Parameters up to which `auto` keeps whole copies: weights, gradients and optimiser then fit on every card."""
BUCKET = 2**25  # numbers that travel together


def sharing(
    wanted: Literal["auto", "fsdp", "ddp"], policy: Policy, world: World, *, states: str = "fp32"
) -> Literal["one", "ddp", "fsdp"]:
    """How this run shares its weights. `auto` shards what is large, trained as a whole, and can be cut.

    Args:
        wanted: what the recipe asks for.
        policy: loaded, not yet cut.
        world: the processes.
        states: number format of the optimiser's moments.

    Raises:
        UserError: weights or moments whose format cannot be cut.
    """
    if world.size == 1:
        return "one"
    trained = sum(p.numel() for p in policy.module.parameters() if p.requires_grad)
    is_packed = any(not p.dtype.is_floating_point for p in policy.module.parameters())
    if wanted == "auto":
        wanted = "fsdp" if trained > SMALL and states == "fp32" and not is_packed else "ddp"
    if wanted == "fsdp" and states == "8bit":
        raise UserError(
            "8-bit moments cannot be sharded", where="optim.states", hint="use fp32, or train.parallel: ddp"
        )
    if wanted == "fsdp" and is_packed:
        raise UserError("quantised weights cannot be sharded", where="train.parallel", hint="use ddp")
    return wanted


def shard(policy: Policy, world: World, *, masters: bool = True) -> None:
    """Cuts the weights of a policy over all processes.

    A frozen vision tower stays whole: it is small, and a process without images then has nothing to wait for.

    Args:
        policy: on the device of this process, the same in all of them.
        masters: keep the shares of what is trained in fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from sightline.train.lockstep import idle_batch

    dtype, vision = _dtype(policy), tower(policy)
    rules: dict[str, Any] = {
        "mesh": init_device_mesh(policy.device.type, (world.size,)),
        # inputs keep their format: rotary angles of the vision tower are fp32 on one process too
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    }
    frozen = set() if any(p.requires_grad for p in vision.parameters()) else set(vision.parameters())
    blocks = [] if frozen else list(vision.blocks)
    for unit in [*_stock(policy).model.language_model.layers, *blocks, policy.module]:
        if masters:
            _widen(unit, frozen)
        fully_shard(unit, **rules, ignored_params=frozen)
    with torch.no_grad():
        policy.module(idle_batch(policy))  # the first forward decides which module is the root
    for part in units(policy.module):
        part.reshard()


def _stock(policy: Policy) -> Any:
    return policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model


def _dtype(policy: Policy) -> torch.dtype:
    found = {p.dtype for p in policy.model.parameters() if p.dtype.is_floating_point}
    return torch.bfloat16 if torch.bfloat16 in found else next(iter(found))


def _widen(unit: nn.Module, frozen: set[nn.Parameter]) -> None:
    """fp32 for what the optimiser will step; layers are widened one by one, so that no whole fp32 copy exists."""
    for parameter in unit.parameters():
        if not isinstance(parameter, DTensor) and parameter not in frozen and parameter.requires_grad:
            parameter.data = parameter.data.float()


def units(module: nn.Module) -> list[FSDPModule]:
    """The parts that are gathered one at a time, the root first."""
    from torch.distributed.fsdp import FSDPModule

    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    return bool(units(module))


@contextmanager
def whole(policy: Policy) -> Iterator[None]:
    """Gathers all weights once, so that what happens inside (sampling, measuring) exchanges nothing.

    Every process must enter; inside, each works at its own pace. Nothing may be trained in here.
    """
    parts = units(policy.module)
    if not parts or not any(isinstance(p, DTensor) for p in policy.module.parameters()):
        yield
        return
    parts[0].set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not parts[0], recurse=False)


def full_state(policy: Policy, world: World, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights by name, whole and on the CPU, in the main process; nothing in the others, which must call it too.

    Tied weights stand once, and beside an adapter only what is trained. Tensor by tensor, so that no accelerator ever
    holds more than one of them whole.

    Args:
        policy: sharded or not.
        world: the processes.
        dtype: number format to round to; None keeps that of the shares.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in policy.model.named_parameters():
        if policy.lora and not parameter.requires_grad:
            continue
        value = parameter.detach()
        value = value.full_tensor() if isinstance(value, DTensor) else value
        if world.is_main:
            found[name] = (value if dtype is None else value.to(dtype)).contiguous().cpu()
    return found


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, on the device and in the layout of `like`; no exchange.

    What is a share already stays as it is.
    """
    if isinstance(value, DTensor):
        return value
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def sum_gradients(world: World, parameters: Sequence[Tensor]) -> None:
    """Adds up the gradients of whole copies. A parameter that no process reached keeps none."""
    if world.size == 1:
        return
    reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    held = [p for p, n in zip(parameters, world.sum(reached).tolist(), strict=True) if n]
    for parameter in held:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([p.grad for p in held if p.grad is not None]):
        flat = world.sum(torch.cat([grad.reshape(-1) for grad in bucket]))
        for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


def _buckets(grads: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for grad in grads:
        if bucket and (bucket[0].dtype != grad.dtype or sum(g.numel() for g in bucket) + grad.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket


def forget_unreached(world: World, parameters: Sequence[Tensor]) -> None:
    """Takes away gradients that are zero in every process: shares of what the loss did not reach get zeros.

    Without a gradient the optimiser leaves a parameter alone; with a zero it would decay it.
    """
    held = [p for p in parameters if p.grad is not None]
    flags = torch.tensor([bool(_local(p.grad).any()) for p in held if p.grad is not None], dtype=torch.int32)
    for parameter, count in zip(held, world.sum(flags).tolist() if held else [], strict=True):
        if not count:
            parameter.grad = None


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> float:
    """Scales gradients down to a norm, that of all processes' shares together; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value
