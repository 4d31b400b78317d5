"""The optimiser of a policy: AdamW over fp32 masters, gradient clipping, and what a checkpoint must keep of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sightline.errors import UserError
from sightline.train.masters import MasterWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sightline.config.sections import Optim

__all__ = ["Optimiser"]


class Optimiser:
    """AdamW with decoupled decay of the matrices; vectors are never decayed.

    Args:
        parameters: trained parameters.
        optim: optimiser settings.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optim: Optim) -> None:
        if not parameters:
            raise UserError("nothing is trained", where="model", hint="every parameter of the policy is frozen")
        self.clip_norm = optim.clip_norm
        self.weights = MasterWeights(parameters)
        matrices = [p for p in self.weights.masters if p.ndim >= 2]
        vectors = [p for p in self.weights.masters if p.ndim < 2]
        self.adamw = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=optim.lr, betas=optim.betas,
        )  # fmt: skip

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next steps."""
        for group in self.adamw.param_groups:
            group["lr"] = lr

    def restart(self) -> None:
        """Forgets the moment estimates."""
        self.adamw.state.clear()

    def collect(self) -> None:
        """Adds the gradients of one micro-batch to what the next step takes."""
        self.weights.collect()

    def apply(self, *, decays: bool = True) -> float:
        """Clips the gradient and takes one step; returns the norm before clipping.

        Args:
            decays: with weight decay.

        Raises:
            FloatingPointError: the gradient is not finite; no weight has changed.
        """
        norm = float(nn.utils.clip_grad_norm_(self.weights.masters, self.clip_norm))
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}; lower optim.lr or check the rewards")
        decay = [group["weight_decay"] for group in self.adamw.param_groups]
        for group in self.adamw.param_groups:
            group["weight_decay"] *= decays
        self.adamw.step()
        for group, value in zip(self.adamw.param_groups, decay, strict=True):
            group["weight_decay"] = value
        self.adamw.zero_grad(set_to_none=True)
        self.weights.publish()
        return norm

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights."""
        return {"optimizer": self.adamw.state_dict(), "masters": self.weights.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        self.adamw.load_state_dict(state["optimizer"])
        self.weights.load_state(state["masters"])
