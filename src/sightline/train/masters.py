"""Master weights: what the optimiser steps where the policy computes in bfloat16.

A bfloat16 number has 8 significant bits: an update of 1e-6 on a weight of 0.02 lies far below its spacing and would be
rounded away. Either the optimiser steps fp32 copies, gradients are summed over micro-batches in fp32, and the policy's
own weights are the rounded copies (6 bytes more per weight); or steps and sums are rounded at random, which is right in
expectation and needs no copy. An fp32 policy is its own master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sightline.errors import UserError
from sightline.train.rounding import add_rounded

__all__ = ["MasterWeights"]


class MasterWeights:
    """Pairs every trained parameter with the tensor that the optimiser owns.

    Args:
        parameters: trained parameters, float32 or bfloat16.
        kind: `fp32` copies, or `stochastic`: the master of a bfloat16 parameter is the parameter's own storage.

    Raises:
        UserError: float16 parameters, whose gradients underflow without a loss scale.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], kind: Literal["fp32", "stochastic"] = "fp32") -> None:
        if any(p.dtype == torch.float16 for p in parameters):
            raise UserError("float16 cannot be trained", where="model.dtype", hint="use bfloat16 or float32")
        self.rounds = kind == "stochastic"
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else self._master(p) for p in self.parameters]
        self._pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        value = parameter.detach()
        return nn.Parameter(value if self.rounds else value.float())

    def collect(self) -> None:
        """Moves the gradients of one micro-batch to the masters, where they add up in fp32 or rounded at random."""
        for p, m in self._pairs:
            if p.grad is None:
                continue
            if m.grad is None:
                m.grad = p.grad if self.rounds else p.grad.float()
            elif self.rounds:
                add_rounded(m.grad, p.grad)
            else:
                m.grad.add_(p.grad)
            p.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the stepped masters into the policy's weights."""
        if not self.rounds:
            for p, m in self._pairs:
                p.copy_(m)

    def state(self) -> list[Tensor]:
        """The masters that differ from the saved weights; empty for an fp32 policy and where steps are rounded."""
        return [] if self.rounds else [m.detach() for _, m in self._pairs]

    @torch.no_grad()
    def load_state(self, state: Sequence[Tensor]) -> None:
        """Continues from `state`."""
        for (_, m), saved in zip([] if self.rounds else self._pairs, state, strict=True):
            m.copy_(saved)
