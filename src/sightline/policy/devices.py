"""Devices and number formats by name."""

from __future__ import annotations

import torch

from sightline.errors import UserError

__all__ = ["device_named", "dtype_named"]

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = "auto, cpu, cuda, cuda:N or mps"


def dtype_named(name: str) -> torch.dtype:
    """The number format of weights.

    Raises:
        UserError: it is none of float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise UserError(f"unknown number format {name!r}", where="dtype", hint=f"one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def device_named(name: str | torch.device) -> torch.device:
    """The device by name, once it is known to be there; `auto` takes the first of cuda, mps, cpu that is.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}", where="device", hint=DEVICES) from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count() if has_cuda else 0, "mps": int(has_mps)}
    if device.type not in there:
        raise UserError(f"device {str(name)!r} is not supported", where="device", hint=DEVICES)
    if (device.index or 0) >= there[device.type]:
        raise UserError(f"device {str(name)!r} is not there on this machine", where="device", hint="cpu always is")
    return device
