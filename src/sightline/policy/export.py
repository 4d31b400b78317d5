"""A policy as a folder for others: what `from_pretrained` of transformers, peft and serving engines load.

`merged` holds whole weights under the key names of the published files; `adapter` the low-rank matrices in peft's
layout with the name of their base. What was written is loaded again and must compute the same logits.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sightline.errors import SightlineError, UserError
from sightline.policy.layouts import released_name
from sightline.policy.save import SHARD, copy_processor, write_weights

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = [
    "Kind", "Verified", "adapter_limits", "empty_folder", "export_adapter", "export_merged", "name_base",
    "prompt_logits", "verify",
]  # fmt: skip

Kind = Literal["merged", "adapter"]
LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit, between what was written and what it was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What loading the written folder again has shown.

    Attributes:
        tokens: positions of the prompt, all of whose logits were compared.
        difference: largest difference of a logit; 0 if the computation repeats bit by bit.
        largest: largest logit, for scale.
    """

    tokens: int
    difference: float
    largest: float

    def describe(self) -> str:
        """One line for people."""
        return (
            f"loaded again: logits of {self.tokens} positions of a prompt with an image differ by at most "
            f"{self.difference:.2g} (largest {self.largest:.3g})"
        )


def empty_folder(folder: Path) -> None:
    """Makes the folder; one that holds anything is refused.

    Raises:
        UserError: it is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("is not empty: nothing is ever overwritten", where=f"--out {folder}", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)


def export_merged(policy: Policy, folder: Path, *, dtype: str, shard: int = SHARD) -> Float[Tensor, "tokens vocab"]:
    """Writes whole weights; the policy in memory becomes what was written, adapter merged and weights rounded.

    Args:
        policy: what to export. Its adapter, if it has one, is added to the weights in their own number format first.
        folder: an empty folder.
        dtype: number format of the files, e.g. `bfloat16`.
        shard: bytes of one weight file.

    Returns:
        The logits of the check prompt, to be compared after loading.
    """
    if policy.lora:
        from sightline.policy.lora import merge

        merge(policy)
    target = getattr(torch, dtype)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.data = parameter.data.to(target)
    family = policy.family
    tensors = {released_name(name, family): p for name, p in policy.model.named_parameters()}
    write_weights(tensors, folder, shard=shard)
    _write_config(policy.model.config, target, folder)
    _copy_beside(policy, folder)
    return prompt_logits(policy)


def export_adapter(policy: Policy, folder: Path) -> Float[Tensor, "tokens vocab"]:
    """Writes the adapter in peft's layout.

    Args:
        policy: a policy with an adapter.
        folder: an empty folder.

    Returns:
        The logits of the check prompt.

    Raises:
        UserError: the policy has no adapter.
    """
    if not policy.lora:
        raise UserError("the run trained whole weights: there is no adapter", where="--adapter", hint="--merged")
    from sightline.policy.lora import save_adapter

    logits = prompt_logits(policy)
    save_adapter(policy, folder)
    _copy_beside(policy, folder)
    return logits


def verify(
    folder: Path, expected: Tensor, *, dtype: str, device: str | torch.device = "cpu",
    min_pixels: int | None = None, max_pixels: int | None = None,
) -> Verified:  # fmt: skip
    """Loads what was written, as it was loaded before it was written, and compares its logits on the check prompt.

    Raises:
        SightlineError: they differ by more than rounding explains.
    """
    from sightline.policy.load import load_policy

    found = prompt_logits(load_policy(folder, dtype=dtype, device=device, min_pixels=min_pixels, max_pixels=max_pixels))
    if found.shape != expected.shape:
        raise SightlineError(
            f"{folder}: loaded again it has logits of {tuple(found.shape)}, not {tuple(expected.shape)}"
        )
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise SightlineError(
            f"{folder}: loaded again it computes other logits, by up to {difference:.3g} of {largest:.3g}"
        )
    return Verified(tokens=len(expected), difference=difference, largest=largest)


@torch.no_grad()
def prompt_logits(policy: Policy) -> Float[Tensor, "tokens vocab"]:
    """Logits at every position of one prompt with an image, by the stock forward of the model; fp32, on the CPU."""
    from sightline.images import image_ref
    from sightline.language.prompts import prompt
    from sightline.types import Record

    across, down = np.meshgrid(np.linspace(0, 255, 97), np.linspace(0, 255, 61))
    image = image_ref(np.stack([across, down, 255 - across], -1).astype(np.uint8))
    record = Record(id="check", question="What is in the picture?", answer="a gradient", images=(image,))
    encoded = policy.encode(prompt(record, "textual", "textual", policy.style))
    visual = policy.pixels.batch([(image, 0)])
    if visual.pixels is None or visual.grids is None:
        raise SightlineError("the check prompt has no image")
    ids = torch.from_numpy(encoded.ids)[None].to(policy.device)
    was_training = policy.model.training
    policy.model.eval()
    try:
        out = policy.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == policy.image_token).int(),
            pixel_values=visual.pixels.to(policy.device, policy.model.dtype),
            image_grid_thw=visual.grids.to(policy.device),
        )  # fmt: skip
    finally:
        policy.model.train(was_training)
    return out.logits[0].float().cpu()


def adapter_limits(policy: Policy) -> list[str]:
    """What serving engines do not take of an adapter, in words; empty if they take all of it."""
    if not policy.lora:
        return []
    config, limits = policy.model.peft_config["default"], []
    if getattr(config, "use_dora", False):
        limits.append("DoRA: vLLM loads plain LoRA only; export with --merged to serve it")
    if getattr(config, "trainable_token_indices", None):
        limits.append("trained token rows: vLLM does not load them; export with --merged to serve it")
    if config.r > 16:
        limits.append(f"rank {config.r}: start vLLM with --max-lora-rank {config.r} or more")
    return limits


def _write_config(config: Any, dtype: torch.dtype, folder: Path) -> None:
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        if part is not None:
            part.dtype = dtype
    config.save_pretrained(folder)


def _copy_beside(policy: Policy, folder: Path) -> None:
    """Processor files of the source, unchanged, and its license."""
    copy_processor(policy, folder)
    if not any(
        (folder / name).exists() for name in TEMPLATES
    ):  # it stands within the tokenizer; processors want a file
        (folder / TEMPLATES[0]).write_text(policy.template, encoding="utf-8")
    for name in LICENSES:
        if (policy.source / name).is_file():
            shutil.copyfile(policy.source / name, folder / name)


def name_base(folder: Path, base: str) -> None:
    """Writes another name of the base into an exported adapter, e.g. the Hub id of what was loaded from a folder."""
    import json

    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "base_model_name_or_path": base}, indent=2) + "\n", encoding="utf-8")
