"""AdamW for weights and moment estimates that take less than four bytes each. Every step is computed in fp32.

bfloat16 weights are rounded at random. Moments are fp32, or one byte per number: blocks of 256 share a scale, codes
follow a dynamic tree (arXiv 2110.02861), by bitsandbytes. Moments in bfloat16 are not offered: rounded to nearest, a
second moment with beta2 = 0.999 stops moving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from sightline.errors import UserError
from sightline.policy.quantise import bitsandbytes
from sightline.train.rounding import local, pieces, stochastic_round

__all__ = ["SmallAdamW"]

BLOCK = 256
LEAST = 4096
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
"""Name of a moment estimate -> whether it is signed."""


class SmallAdamW(torch.optim.Optimizer):
    """AdamW as torch takes it, on weights and moments in small formats.

    Args:
        params: groups of parameters, bfloat16 or float32.
        lr: learning rate.
        betas: decay of the two moment estimates.
        eps: added to the root of the second.
        weight_decay: decoupled.
        codes: moments of tensors of at least 4096 numbers in 8 bits.

    Raises:
        UserError: 8 bits without bitsandbytes, or for weights that several processes share.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        codes: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.code = _Code() if codes else None
        sharded = any(hasattr(p, "to_local") for group in self.param_groups for p in group["params"])
        if codes and sharded:
            raise UserError(
                "8-bit states cannot be sharded", where="optim.states", hint="use fp32, or train.parallel ddp"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, kept = self.state[parameter], local(parameter)
        code = self.code if kept.numel() >= LEAST else None
        if not state:
            state["step"] = torch.tensor(0.0)
            for name, is_signed in MOMENTS.items():
                start = torch.zeros_like(parameter, dtype=torch.float32)
                state.update(code.packed(name, start, is_signed) if code else {name: start})
        moments = [
            code.unpacked(name, state, is_signed) if code else local(state[name]) for name, is_signed in MOMENTS.items()
        ]
        done = state["step"]
        for part, slope, *estimates in pieces(kept, local(grad), *moments):
            state["step"] = done.clone()
            _stepped(part, slope, estimates, state["step"], group)
        if code:
            for (name, is_signed), moment in zip(MOMENTS.items(), moments, strict=True):
                state.update(code.packed(name, moment, is_signed))


def _stepped(kept: Tensor, grad: Tensor, moments: list[Tensor], step: Tensor, group: dict[str, Any]) -> None:
    """One step in fp32 of a weight, or a piece of it, and of its moments and count, in place."""
    weight = kept.float()
    adamw(
        [weight], [grad.float()], [moments[0]], [moments[1]], [], [step], foreach=False,
        amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
        weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
    )  # fmt: skip
    if kept.dtype == torch.bfloat16:
        kept.copy_(stochastic_round(weight))
    elif weight is not kept:
        kept.copy_(weight)


class _Code:
    """Numbers as bytes: 256 values between -1 and 1 (or 0 and 1), times the largest size in each block."""

    def __init__(self) -> None:
        self.library = bitsandbytes("8-bit states", where="optim.states").functional
        self.values = {s: self.library.create_dynamic_map(signed=s).float() for s in MOMENTS.values()}

    def _at(self, is_signed: bool, device: torch.device) -> Tensor:
        self.values[is_signed] = self.values[is_signed].to(device)
        return self.values[is_signed]

    def packed(self, name: str, value: Tensor, is_signed: bool) -> dict[str, Tensor]:
        values = self._at(is_signed, value.device)
        codes, scale = self.library.quantize_blockwise(value.contiguous(), code=values, blocksize=BLOCK)
        return {name: codes, f"{name}_scale": scale.absmax}

    def unpacked(self, name: str, state: dict[str, Tensor], is_signed: bool) -> Tensor:
        values = self._at(is_signed, state[name].device)
        return self.library.dequantize_blockwise(
            state[name], absmax=state[f"{name}_scale"], code=values, blocksize=BLOCK
        )
