"""Writing a policy as a folder that this library, transformers and serving engines load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.policy.processors import PROCESSOR_FILES
from sightline.policy.weights import INDEX

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.policy.load import Policy

__all__ = ["SHARD", "copy_processor", "save_policy", "write_weights"]

SHARD = 5 * 10**9
"""Bytes of one weight file; more than that is cut into shards with an index."""


def save_policy(policy: Policy, folder: Path, *, state: Mapping[str, Tensor] | None = None, shard: int = SHARD) -> None:
    """Writes weights, config and the processor files of the source checkpoint, these unchanged.

    A policy with an adapter writes the adapter and the name of its base instead of the weights.

    Args:
        policy: what to write.
        folder: where; made if need be.
        state: the tensors of the model by name, where its parameters are sharded.
        shard: bytes of one weight file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if policy.lora:
        from sightline.policy.lora import save_adapter

        save_adapter(policy, folder, state)
    else:
        # a shared parameter comes once, by its first name
        write_weights(dict(policy.model.named_parameters()) if state is None else state, folder, shard=shard)
        policy.model.config.save_pretrained(folder)
    copy_processor(policy, folder)


def write_weights(tensors: Mapping[str, Tensor], folder: Path, *, shard: int = SHARD) -> None:
    """One safetensors file, or shards of at most so many bytes with an index; one shard at a time is on the CPU.

    Weight files of an earlier save in the same folder go away, so that none is taken for these.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    for old in [*folder.glob("model.safetensors"), *folder.glob("model-*-of-*.safetensors"), *folder.glob(INDEX)]:
        old.unlink()
    plan = split_torch_state_dict_into_shards(
        dict(tensors), max_shard_size=shard, filename_pattern="model{suffix}.safetensors"
    )
    for name, keys in plan.filename_to_tensors.items():
        part = {key: tensors[key].detach().contiguous().cpu() for key in keys}
        save_file(part, folder / name, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def copy_processor(policy: Policy, folder: Path) -> None:
    """Copies the source's processor files; a tokenizer that has taken tokens on is written out."""
    for name in PROCESSOR_FILES:
        if (policy.source / name).exists() and policy.source.resolve() != folder.resolve():
            shutil.copyfile(policy.source / name, folder / name)
    if policy.added:
        policy.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
