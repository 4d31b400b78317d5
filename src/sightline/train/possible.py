"""What a recipe asks of its policy and cannot have, told before weights are read and before `--dry-run` counts them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError
from sightline.policy.adapted import adapter_settings, base_folder, check_same
from sightline.policy.quantise import BLOCK, bitsandbytes
from sightline.policy.targets import chosen

if TYPE_CHECKING:
    import torch

    from sightline.config import Recipe
    from sightline.policy.architecture import Architecture

__all__ = ["check_here", "check_start", "with_adapter"]


def check_start(recipe: Recipe, name: str | Path, device: str) -> bool:
    """Raises for what would fail once the weights are there; says whether they come with an adapter.

    Args:
        recipe: without arms.
        name: of the policy, or the folder of a checkpoint.
        device: where it will be.

    Raises:
        UserError: as `with_adapter` and `check_here`; or there is no such policy.
    """
    from sightline.policy.architecture import architecture
    from sightline.policy.devices import device_named
    from sightline.policy.hub import checkpoint_folder
    from sightline.policy.load import adapter_base
    from sightline.policy.processors import read_json

    given = checkpoint_folder(str(name))
    base = adapter_base(given)
    config = read_json((given if base is None else base_folder(base, given)) / "config.json")
    check_here(with_adapter(recipe, architecture(config), None if base is None else given), device_named(device))
    return base is not None


def with_adapter(recipe: Recipe, model: Architecture, folder: Path | None) -> Recipe:
    """The recipe with the adapter that its policy already has, checked against the policy's dimensions.

    Args:
        recipe: without arms.
        model: the dimensions of its policy.
        folder: that holds an adapter; None where the policy has none.

    Raises:
        UserError: a number format that is not trained, an adapter of another shape than the one in the folder, layers
            that are not there or cannot be packed, or parts that are adapted and frozen at once.
    """
    if recipe.model.dtype == "float16":
        raise UserError("float16 cannot be trained", where="model.dtype", hint="use bfloat16 or float32")
    found = None if folder is None else adapter_settings(folder, list(model.linear))
    if found is not None and folder is not None:
        if recipe.model.lora is not None:
            check_same(found, recipe.model.lora, folder)
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": found})})
    if recipe.model.lora is not None:
        _check_layers(recipe, model)
    return recipe


def check_here(recipe: Recipe, device: torch.device) -> None:
    """Raises for what this machine lacks.

    Raises:
        UserError: a library, or the device that kernels need.
    """
    from sightline.policy.liger import check_kernels

    own = recipe.model
    if own.lora is not None:
        from sightline.policy.lora import peft_library

        peft_library()
        if own.lora.quantise is not None:
            bitsandbytes("four-bit weights", where="model.lora.quantise")
    if recipe.optim.states == "8bit":
        bitsandbytes("8-bit states", where="optim.states")
    if own.kernels == "liger":
        check_kernels(device)
    if own.compile and device.type != "cuda":
        raise UserError("layers are compiled on CUDA only", where="model.compile",
                        hint="leave it out, or --model.device cuda")  # fmt: skip


def _check_layers(recipe: Recipe, model: Architecture) -> None:
    lora, layers = recipe.model.lora, model.linear
    assert lora is not None
    names = chosen(list(layers), lora.targets)
    if not recipe.model.train_vision and any(".visual." in name for name in names):
        raise UserError("these names adapt the vision tower, which model.train_vision: false freezes",
                        where="model.lora.targets", hint="leave its layers out")  # fmt: skip
    wide = [name for name in names if layers[name].inputs % BLOCK]
    if lora.quantise is not None and wide:
        raise UserError(
            f"{wide[0]} has {layers[wide[0]].inputs} inputs, and four bits need a multiple of {BLOCK}",
            where="model.lora.quantise", hint="name other layers in model.lora.targets",
        )  # fmt: skip
