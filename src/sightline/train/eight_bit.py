"""AdamW whose moment estimates take one byte per parameter, by torchao (blocks of 256, dynamic tree code)."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from sightline.errors import UserError

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["eight_bit_adamw"]


def eight_bit_adamw(groups: Any, *, lr: float, betas: tuple[float, float], rounds: bool) -> Optimizer:
    """torchao's AdamW8bit; tensors below 4096 numbers keep fp32 moments.

    Args:
        groups: parameter groups.
        lr: learning rate, held as a tensor.
        betas: decay of the two moment estimates.
        rounds: bfloat16 parameters are rounded at random.

    Raises:
        UserError: torchao is missing.
    """
    try:
        with _quiet():
            from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "8-bit optimiser states need the library torchao", where="optim.states",
            hint="pip install 'sightline[gpu]'",
        ) from error  # fmt: skip

    class EightBit(AdamW8bit):
        """torchao keeps the moments of small tensors in the parameter's format, where bfloat16 ones would stall."""

        def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
            out = super()._new_buffer(p, signed)
            return out.float() if type(out) is torch.Tensor else out

    return EightBit(groups, lr=lr, betas=betas, bf16_stochastic_round=rounds)


@contextlib.contextmanager
def _quiet() -> Any:
    """torchao reports kernels that this machine cannot load, none of which is used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
