"""Frozen linear layers in four bits: NormalFloat 4 with quantised block constants, as in QLoRA (arXiv 2305.14314)."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any

from torch import nn

from sightline.errors import UserError

__all__ = ["bitsandbytes", "quantise", "unpack"]

BLOCK = 64


def quantise(model: Any, targets: str | Collection[str]) -> None:
    """Stores the weights of the target layers in four bits; products are computed in the format they had.

    Args:
        model: a transformers model without adapter.
        targets: an expression for whole names, or names of layers, as peft takes them.

    Raises:
        UserError: bitsandbytes is missing, or a layer's width does not fit its blocks.
    """
    library = bitsandbytes("four-bit weights", where="model.lora.quantise")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and _is_target(name, targets):
            if layer.in_features % BLOCK:
                # on CPU the library unpacks rows that end within a block wrongly
                raise UserError(
                    f"{name} has {layer.in_features} inputs, and four bits need a multiple of {BLOCK}",
                    where="model.lora.quantise", hint="name other layers in model.lora.targets",
                )  # fmt: skip
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _in_four_bits(layer, library))
    model.is_loaded_in_4bit = True  # peft asks for it


def unpack(model: Any) -> None:
    """Turns layers in four bits into ordinary ones, which hold the rounded weights in the format they compute in."""
    library = bitsandbytes("four-bit weights", where="model.lora.quantise")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, library.nn.Linear4bit):
            weight = library.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
            plain.bias = layer.bias
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, plain)
    model.is_loaded_in_4bit = False


def bitsandbytes(what: str, *, where: str) -> Any:
    """The library.

    Args:
        what: needs it.
        where: key of the recipe that asks.

    Raises:
        UserError: it is missing.
    """
    # without CUDA it warns at import of a faster kernel that is not there
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
        import bitsandbytes.functional
    except ImportError as error:
        raise UserError(
            f"{what} need the library bitsandbytes", where=where, hint="pip install 'sightline[gpu]'"
        ) from error
    return bitsandbytes


def _is_target(name: str, targets: str | Collection[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)


def _in_four_bits(layer: nn.Linear, library: Any) -> nn.Module:
    weight = layer.weight.data
    packed = library.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=weight.dtype,
        compress_statistics=True, quant_type="nf4", device="meta",
    )  # fmt: skip
    # on some CPUs it would repack the weights in eval mode, for a product in bf16 that sampling alone would see
    packed.support_avx512bf16_for_cpu = False
    packed.weight = library.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=packed
    )
    if layer.bias is not None:
        packed.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return packed.to(weight.device)
