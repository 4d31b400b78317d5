"""Rounding at random: bfloat16 weights that take their steps in place, without fp32 copies.

fp32 x lies between two neighbouring bfloat16 numbers a < b; x becomes b with probability (x - a) / (b - a), else a, so
that the expectation is x and steps far below the spacing add up. Moments stay in fp32: rounded to nearest, a second
moment with beta2 = 0.999 would stop moving.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

__all__ = ["RoundedAdamW", "add_rounded", "local", "stochastic_round"]


def stochastic_round(value: Tensor) -> Tensor:
    """fp32 -> bfloat16, unbiased: random bits are added below the last kept bit, and cut off.

    Draws from the default generator of the tensor's device. Infinities and NaN stay what they are.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device)
    bits = (value.contiguous().view(torch.int32) + noise) & -(1 << 16)
    return torch.where(value.isfinite(), bits.view(torch.float32), value).to(torch.bfloat16)


def local(value: Tensor) -> Tensor:
    """This process's share of a sharded tensor, with the same storage."""
    return value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]


def add_rounded(total: Tensor, value: Tensor) -> None:
    """total += value in place; the sum is rounded at random."""
    kept = local(total)
    kept.copy_(stochastic_round(kept.float() + local(value).float()))


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW on bfloat16 parameters: each step is taken in fp32, as torch takes it, and rounded at random.

    Args:
        params: parameters or groups of them, bfloat16 or float32.
        lr: learning rate.
        betas: decay of the two moment estimates, which are fp32.
        eps: added to the root of the second.
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        kept, weight = local(parameter), local(parameter).float()
        moments = [local(state[name]) for name in ("exp_avg", "exp_avg_sq")]
        assert parameter.grad is not None
        adamw(
            [weight], [local(parameter.grad).float()], [moments[0]], [moments[1]], [], [state["step"]], foreach=False,
            amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        if kept.dtype == torch.bfloat16:
            kept.copy_(stochastic_round(weight))
        elif weight is not kept:
            kept.copy_(weight)
