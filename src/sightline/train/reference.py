"""The policy that training started from, which the KL term holds on to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sightline.policy.batch import Batch
    from sightline.policy.load import Policy

__all__ = ["FrozenCopy", "Reference", "keep_reference"]


class Reference(Protocol):
    """Log-probs of the policy as it was at the start."""

    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        """log pi_ref of the scored tokens of a batch, without gradient."""
        ...


class FrozenCopy:
    """A second set of weights on the policy's device.

    Args:
        start: the policy to copy; it stays as it is.
    """

    def __init__(self, start: Policy) -> None:
        self.module = copy.deepcopy(start.module).eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, batch: Batch, temperature: float) -> Float[Tensor, "scored"]:
        return self.module(batch, temperature=temperature).logprobs


def keep_reference(policy: Policy, start: Callable[[], Policy]) -> Reference:  # noqa: ARG001
    """The reference of a run.

    Args:
        policy: the policy that is trained.
        start: opens the policy as training started from it, or is `policy` where no step has been taken.
    """
    return FrozenCopy(start())
