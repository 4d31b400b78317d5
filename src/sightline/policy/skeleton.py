"""A model without weights: built on the meta device, where tensors have shapes and no memory."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import UserError

__all__ = ["model_config", "revive_buffers", "skeleton"]


def model_config(folder: Path, class_name: str) -> Any:
    """The transformers config of a checkpoint folder; code that lies there is never run.

    Raises:
        UserError: the values do not make a config, or the weights are quantised.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    where = str(folder / "config.json")
    try:
        config = getattr(transformers, class_name).config_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"not a configuration of {class_name}: {' '.join(str(error).split())}", where=where) from error
    config._name_or_path = str(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("quantised weights can be neither trained nor scored", where=where,
                        hint="take the checkpoint that they were made from")  # fmt: skip
    return config


def skeleton(config: Any, class_name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The transformers model of a config, parameters and buffers on the meta device, shared ones shared.

    The configs say `dtype` from here on, as they do after transformers' own loading.

    Raises:
        UserError: the values of the config make no model.
    """
    import transformers

    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if part is not None:
            part.dtype = dtype
    try:
        with torch.device("meta"):
            return getattr(transformers, class_name)(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        where = str(Path(config.name_or_path) / "config.json") if config.name_or_path else class_name
        raise UserError(f"the values make no model: {type(error).__name__}: {reason}", where=where) from error


def revive_buffers(model: nn.Module, device: torch.device) -> None:
    """Computes the buffers that no checkpoint holds (rotary frequencies) as their modules do when they are built.

    Raises:
        TypeError: a module has such a buffer and is not built from its config alone.
    """
    for name, module in model.named_modules():
        lost = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not lost:
            continue
        arguments = inspect.signature(type(module)).parameters
        if "config" not in arguments or not hasattr(module, "config"):
            raise TypeError(f"the buffers {lost} of {name} ({type(module).__name__}) cannot be computed anew")
        fresh = type(module)(config=module.config)
        for key in lost:
            setattr(module, key, getattr(fresh, key).to(device))
