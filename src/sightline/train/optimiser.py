"""The optimiser of a policy: AdamW over master weights, gradient clipping, and what a checkpoint must keep of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from sightline.errors import UserError
from sightline.train.adamw import SmallAdamW
from sightline.train.masters import MasterWeights
from sightline.train.sharding import clip_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sightline.config.sections import Optim

__all__ = ["Optimiser"]


class Optimiser:
    """AdamW with decoupled decay of the matrices; vectors are never decayed.

    Args:
        parameters: trained parameters.
        optim: optimiser settings.
        masters: where bfloat16 weights take their steps (see `MasterWeights`).

    Raises:
        UserError: nothing is trained, a number format that cannot be, or a library is missing.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optim: Optim, masters: Literal["fp32", "stochastic"] = "fp32"
    ) -> None:
        if not parameters:
            raise UserError("nothing is trained", where="model", hint="every parameter of the policy is frozen")
        self.clip_norm = optim.clip_norm
        self.weights = MasterWeights(parameters, masters)
        matrices = [p for p in self.weights.masters if p.ndim >= 2]
        vectors = [p for p in self.weights.masters if p.ndim < 2]
        self.micro_batches = 0
        self.adamw = _adamw(
            [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            optim, rounds=self.weights.rounds,
        )  # fmt: skip

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next steps."""
        for group in self.adamw.param_groups:
            group["lr"] = lr

    @property
    def steps(self) -> int:
        """Steps taken since the moment estimates began."""
        return max((int(state["step"]) for state in self.adamw.state.values()), default=0)

    def master(self, parameter: torch.Tensor) -> torch.Tensor:
        """What is stepped in place of a trained parameter; often the parameter itself."""
        return next(m for p, m in zip(self.weights.parameters, self.weights.masters, strict=True) if p is parameter)

    def restart(self) -> None:
        """Forgets the moment estimates."""
        self.adamw.state.clear()

    def collect(self) -> None:
        """Adds the gradients of one micro-batch to what the next step takes."""
        with self._noise(self.micro_batches):
            self.weights.collect()
        self.micro_batches += 1

    def apply(self, *, decays: bool = True) -> float:
        """Clips the gradient and takes one step; returns the norm before clipping.

        Args:
            decays: with weight decay.

        Raises:
            FloatingPointError: the gradient is not finite; no weight has changed.
        """
        norm = clip_gradients(self.weights.masters, self.clip_norm)
        if not np.isfinite(norm):
            raise FloatingPointError(f"the gradient norm is {norm}; lower optim.lr or check the rewards")
        decay = [group["weight_decay"] for group in self.adamw.param_groups]
        for group in self.adamw.param_groups:
            group["weight_decay"] *= decays
        with self._noise(-1):
            self.adamw.step()
        for group, value in zip(self.adamw.param_groups, decay, strict=True):
            group["weight_decay"] = value
        self.adamw.zero_grad(set_to_none=True)
        self.weights.publish()
        self.micro_batches = 0
        return norm

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights."""
        return {"optimizer": self.adamw.state_dict(), "masters": self.weights.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        own = {"fused": _is_fused(self.weights.masters)}  # a matter of the device, which may be another one
        saved = state["optimizer"]
        groups = [{**group, **own} if "fused" in group else group for group in saved["param_groups"]]
        self.adamw.load_state_dict({**saved, "param_groups": groups})
        for i, parameter in enumerate(p for group in self.adamw.param_groups for p in group["params"]):
            for name, value in state["optimizer"]["state"].get(i, {}).items():
                if self.adamw.state[parameter][name].dtype != value.dtype:
                    # torch has put fp32 moments, or codes, into the format of the parameter
                    self.adamw.state[parameter][name] = value.to(parameter.device, copy=True)
        self.weights.load_state(state["masters"])

    @contextmanager
    def _noise(self, part: int) -> Iterator[None]:
        """Random numbers that depend on the step and the part of it alone, so that a resumed run draws the same."""
        if not self.weights.rounds:
            yield
            return
        device = self.weights.masters[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence([self.steps, part + 1]).generate_state(1)[0]))
            yield


def _adamw(groups: list[dict[str, Any]], optim: Optim, *, rounds: bool) -> torch.optim.Optimizer:
    if rounds or optim.states == "8bit":
        return SmallAdamW(groups, lr=optim.lr, betas=optim.betas, codes=optim.states == "8bit")
    fused = _is_fused([p for group in groups for p in group["params"]])
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused)


def _is_fused(parameters: Sequence[torch.Tensor]) -> bool | None:
    """One kernel for a whole step on CUDA; torch's other form there holds the roots of all second moments at once."""
    return True if all(p.is_cuda for p in parameters) else None
