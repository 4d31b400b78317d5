"""fp32 master weights for policies that compute in bfloat16.

A bfloat16 number has 8 significant bits: an update of 1e-6 on a weight of 0.02 lies far below its spacing and would be
rounded away. The optimiser therefore steps fp32 copies, gradients are summed over micro-batches in fp32, and the
policy's own weights are the rounded copies. An fp32 policy is its own master.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sightline.errors import UserError

__all__ = ["MasterWeights"]


class MasterWeights:
    """Pairs every trained parameter with the fp32 tensor that the optimiser owns.

    Args:
        parameters: trained parameters, float32 or bfloat16.

    Raises:
        UserError: float16 parameters, whose gradients underflow without a loss scale.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        if any(p.dtype == torch.float16 for p in parameters):
            raise UserError("float16 cannot be trained", where="model.dtype", hint="use bfloat16 or float32")
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]
        self._pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]

    def collect(self) -> None:
        """Moves the gradients of one micro-batch to the masters, where they add up in fp32."""
        for p, m in self._pairs:
            if p.grad is not None:
                m.grad = p.grad.float() if m.grad is None else m.grad.add_(p.grad)
                p.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the stepped masters into the policy's weights."""
        for p, m in self._pairs:
            p.copy_(m)

    def state(self) -> list[Tensor]:
        """The masters that differ from the saved weights; empty for an fp32 policy."""
        return [m.detach() for _, m in self._pairs]

    @torch.no_grad()
    def load_state(self, state: Sequence[Tensor]) -> None:
        for (_, m), saved in zip(self._pairs, state, strict=True):
            m.copy_(saved)
