"""The adapter that a folder holds, told from its `adapter_config.json` alone, in the terms of a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.hub import checkpoint_folder
from sightline.policy.processors import read_json

__all__ = ["adapter_settings", "base_folder", "check_same"]

T = TypeVar("T", Path, Path | None)
SHAPE = ("rank", "alpha", "dora", "quantise")


def adapter_settings(folder: Path, linear: Collection[str] = ()) -> Lora | None:
    """What `model.lora` would say of the adapter in a folder; None where there is none.

    Args:
        folder: of a checkpoint.
        linear: names of the linear layers of its base; `targets` then are the adapted ones, by their whole names.

    Raises:
        UserError: it is no LoRA adapter, or damaged.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        return None
    raw = read_json(path)
    if (kind := raw.get("peft_type")) != "LORA":
        raise UserError(f"an adapter of kind {kind} is not supported", where=str(folder), hint="LORA is")
    notes = read_json(folder / "lora.json") if (folder / "lora.json").exists() else {}
    names = tuple(n for n in linear if _is_adapted(n, raw.get("target_modules") or ()))
    try:
        return Lora(
            rank=raw["r"], alpha=float(raw["lora_alpha"]), dropout=float(raw.get("lora_dropout") or 0.0),
            dora=bool(raw.get("use_dora")), targets=names or "language", quantise=notes.get("quantise"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the adapter cannot be read: {' '.join(str(error).split())}", where=str(path)) from error


def base_folder(name: str, folder: Path, find: Callable[[str], T] = checkpoint_folder) -> T:
    """The folder of the base that the adapter in a folder names.

    Args:
        name: of the base.
        folder: of the adapter.
        find: leads from a name to a folder.

    Raises:
        UserError: there is none.
    """
    try:
        return find(name)
    except UserError as error:
        raise UserError(
            f"the base of this adapter, {name}, is not to be had: {error.what}",
            where=str(folder / "adapter_config.json"),
            hint="put it back, or write its new place there as base_model_name_or_path",
        ) from error  # fmt: skip


def check_same(found: Lora, wanted: Lora, folder: Path) -> None:
    """A folder's adapter is trained on as it is.

    Raises:
        UserError: a recipe asks for one of another shape.
    """
    other = [
        f"{n} {getattr(found, n)}, not {getattr(wanted, n)}" for n in SHAPE if getattr(found, n) != getattr(wanted, n)
    ]
    if other:
        raise UserError(
            f"the adapter of {folder} has {', '.join(other)}", where="model.lora",
            hint="leave model.lora out to train it on, or merge it first: sightline export RUN --merged",
        )  # fmt: skip


def _is_adapted(name: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == t or name.endswith(f".{t}") for t in targets)
