"""Loading a policy: a folder in the published layout, a hub id, or `embedded:FAMILY` for a shipped one.

Weights load strictly (`policy/weights.py`) onto a model built without memory (`policy/skeleton.py`); what stands beside
them is read by `policy/processors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Int

from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.language.spans import byte_pieces
from sightline.policy.adapted import base_folder
from sightline.policy.adapter import ModelAdapter
from sightline.policy.devices import device_named, dtype_named
from sightline.policy.encode import Encoded, encode_prompt, encode_turn
from sightline.policy.forward import PolicyModule
from sightline.policy.hub import checkpoint_folder
from sightline.policy.layouts import current_name
from sightline.policy.pixels import Pixels
from sightline.policy.processors import (
    check_tokens,
    end_ids,
    image_processor,
    prompt_style,
    read_json,
    tokenizer_and_template,
)
from sightline.policy.qwen_vl import QwenVL
from sightline.policy.skeleton import model_config, revive_buffers, skeleton
from sightline.policy.tree import TreeRules
from sightline.policy.weights import read_weights

if TYPE_CHECKING:
    from sightline.policy.lora import LoraSettings
    from sightline.types import ImageRef, ImageSlot, Prompt

__all__ = ["ADAPTERS", "Policy", "adapter_base", "load_policy"]

ADAPTERS: dict[str, tuple[type[ModelAdapter], str]] = {
    "qwen2_5_vl": (QwenVL, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (QwenVL, "Qwen3VLForConditionalGeneration"),
}
"""Model type of a checkpoint -> its adapter and its transformers class."""


@dataclass(kw_only=True)
class Policy:
    """A loaded policy: the root module and everything needed to talk to it.

    Attributes:
        name: what it was loaded by; for an adapter, the name of its base.
        source: the folder that its processor files come from.
    """

    name: str
    source: Path
    adapter: ModelAdapter
    module: PolicyModule
    tokenizer: Any
    pixels: Pixels
    frame: Frame
    template: str
    style: Literal["full", "compact"]
    eos: tuple[int, ...]
    banned: tuple[int, ...]
    added: tuple[str, ...] = ()
    """Tokens that were added to the checkpoint's tokenizer; saving writes them out."""

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.adapter.model

    @property
    def family(self) -> str:
        """The model type in the checkpoint's configuration."""
        return self.model.config.model_type

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained in place of the weights."""
        return hasattr(self.model, "disable_adapter")

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The policy that training started from: within the block the adapter is off.

        Raises:
            ValueError: there is no adapter to switch off.
        """
        if not self.lora:
            raise ValueError("only a policy with an adapter is its own reference")
        with self.model.disable_adapter():
            yield

    @property
    def image_token(self) -> int:
        return self.adapter.placeholders()[0]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @cached_property
    def rules(self) -> TreeRules:
        return TreeRules(self.image_token, self.pixels.grid)

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt with image placeholders expanded."""
        return encode_prompt(prompt, self.tokenizer, self.template, self.image_token, self.pixels.grid)

    def encode_turn(self, content: Sequence[str | ImageSlot], images: tuple[ImageRef, ...] = ()) -> Encoded:
        """Token ids of the user's next turn after a finished reply, up to where the policy writes again."""
        return encode_turn(content, images, self.tokenizer, self.template, self.image_token, self.pixels.grid)

    def decode(self, ids: Int[np.ndarray, "tokens"] | Sequence[int]) -> str:
        """Text of sampled ids without the marks that end a turn."""
        kept = [int(i) for i in ids if int(i) not in self.eos and int(i) != self.pad]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Int[np.ndarray, "tokens"] | Sequence[int]) -> list[bytes]:
        """The bytes of each token within the text that `decode` gives; empty for the marks that end a turn."""
        ends = {*self.eos, self.pad}
        names = self.tokenizer.convert_ids_to_tokens([int(i) for i in ids])
        return [b"" if int(i) in ends else piece for i, piece in zip(ids, byte_pieces(names), strict=True)]

    def piece(self, token: int) -> bytes:
        """The bytes of one token, for displays: unlike in `pieces`, the marks that end a turn are spelt out."""
        return byte_pieces([self.tokenizer.convert_ids_to_tokens(int(token))])[0]


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    checkpointing: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    lora: LoraSettings | None = None,
) -> Policy:
    """Loads a Qwen2.5-VL or Qwen3-VL checkpoint, or an adapter upon the one it names.

    Args:
        name_or_path: `embedded:qwen3_vl`, a folder, or a hub id; a folder with an adapter stands for base and adapter.
        dtype: `float32`, `bfloat16` or `float16`.
        device: where the parameters go; `auto` takes the first of cuda, mps, cpu that is there.
        checkpointing: recompute activations in the backward pass (non-reentrant).
        min_pixels, max_pixels: image area limits after the resize; None keeps the checkpoint's.
        lora: puts a new adapter on the policy; a folder that holds one keeps that one.

    Raises:
        UserError: unknown number format, a device that is not there, unknown model type, missing files, or tensors
            that are missing, unexpected or of another shape.
    """
    target, number_format = device_named(device), dtype_named(dtype)
    given = checkpoint_folder(str(name_or_path))
    base = adapter_base(given)
    folder = given if base is None else _whole(base_folder(base, given), given)
    # what an adapter stores in four bits is packed on the way from here to the device
    place = torch.device("cpu") if lora is not None and lora.quantise else target
    config, adapter_class, class_name = _config(folder)  # this and what follows may fail: before the weights
    tokenizer, template = tokenizer_and_template(folder)
    check_tokens(tokenizer, config, folder)
    eos, style = end_ids(folder, tokenizer), prompt_style(folder)
    processor = image_processor(folder, min_pixels, max_pixels, config.vision_config)
    adapter = adapter_class(_model(folder, config, class_name, number_format, place))
    if checkpointing:
        adapter.model.activation_checkpointing_enable({"use_reentrant": False})
    policy = _assembled(base or str(name_or_path), folder, adapter, tokenizer, template, processor, eos, style)
    if base is not None or lora is not None:
        from sightline.policy.lora import attach

        if base is not None:
            _restored(policy, given, lora)
        elif lora is not None:
            attach(policy, lora)
        policy.module.to(target)
    return policy


def _restored(policy: Policy, folder: Path, lora: LoraSettings | None) -> None:
    """The policy with the adapter of a folder; peft looks at the values of its files only in passing."""
    from sightline.policy.lora import restore

    try:
        restore(policy, folder, lora)
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"the adapter does not fit its base: {reason}", where=str(folder)) from error


def _whole(base: Path, adapter: Path) -> Path:
    if adapter_base(base) is not None:
        raise UserError("the base of this adapter is an adapter, too", where=str(adapter / "adapter_config.json"),
                        hint="name whole weights: sightline export RUN --merged --out FOLDER")  # fmt: skip
    return base


def _config(folder: Path) -> tuple[Any, Any, str]:
    """The config of a checkpoint, the adapter of its family and the name of its transformers class."""
    family = read_json(folder / "config.json").get("model_type", "")
    if not isinstance(family, str) or family not in ADAPTERS:
        raise UserError(f"model type '{family}' is not supported", where=str(folder / "config.json"),
                        hint="supported: " + ", ".join(ADAPTERS))  # fmt: skip
    adapter_class, class_name = ADAPTERS[family]
    return model_config(folder, class_name), adapter_class, class_name


def _model(folder: Path, config: Any, class_name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The transformers model with the weights of a folder, as its own loading would give it."""
    import transformers

    model = skeleton(config, class_name, dtype)
    read_weights(model, folder, dtype=dtype, device=device, rename=current_name)
    revive_buffers(model, device)
    model.config._name_or_path = model.name_or_path = str(folder)
    if (folder / "generation_config.json").exists():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _assembled(
    name: str, folder: Path, adapter: ModelAdapter, tokenizer: Any, template: str, processor: Any,
    eos: tuple[int, ...], style: Literal["full", "compact"],
) -> Policy:  # fmt: skip
    frame = Frame(
        convention=adapter.convention,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
    )
    # the pad id may double as an end-of-text id, which must stay writable
    marks = sorted(i for i in {*adapter.placeholders()[1], int(tokenizer.pad_token_id)} if i not in eos)
    spare = range(len(tokenizer), int(adapter.model.get_output_embeddings().weight.shape[0]))
    banned = (*marks, *spare)
    return Policy(
        name=name, source=folder, adapter=adapter, tokenizer=tokenizer, template=template, frame=frame, eos=eos,
        module=PolicyModule(adapter, banned), pixels=Pixels(processor, frame),
        style=style, banned=banned,
    )  # fmt: skip


def adapter_base(folder: Path) -> str | None:
    """The name of the policy that the adapter in a folder belongs to, or None where there is no adapter.

    Raises:
        UserError: the adapter does not say so.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        return None
    base = read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError("the adapter does not name its base", where=str(path),
                        hint="set base_model_name_or_path to a folder, a Hub id or embedded:FAMILY")  # fmt: skip
    return base
