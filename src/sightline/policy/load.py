"""Loading a policy: a folder in the published layout, a hub id, or `embedded:FAMILY` for a shipped one.

Image processor, tokenizer and chat template are read one by one: the combined loader needs packages that are not
required here and reloads custom processors silently as bare tokenizers. Weights load strictly.
"""

from __future__ import annotations

import json
import os
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
from sightline.policy.adapter import ModelAdapter
from sightline.policy.encode import Encoded, encode_prompt, encode_turn
from sightline.policy.forward import PolicyModule
from sightline.policy.pixels import Pixels
from sightline.policy.qwen_vl import QwenVL
from sightline.policy.tree import TreeRules

if TYPE_CHECKING:
    from sightline.policy.lora import LoraSettings
    from sightline.types import ImageRef, ImageSlot, Prompt

__all__ = ["ADAPTERS", "PROCESSOR_FILES", "Policy", "adapter_base", "checkpoint_folder", "load_policy", "save_policy"]

PROCESSOR_FILES = (
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "video_preprocessor_config.json", "processor_config.json", "card.json",
)  # fmt: skip


ADAPTERS: dict[str, tuple[type[ModelAdapter], str]] = {
    "qwen2_5_vl": (QwenVL, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (QwenVL, "Qwen3VLForConditionalGeneration"),
}
"""Model type of a checkpoint -> its adapter and its transformers class."""

DTYPES = ("float32", "bfloat16", "float16")
DEVICES = "auto, cpu, cuda, cuda:N or mps"


@dataclass(kw_only=True)
class Policy:
    """A loaded policy: the root module and everything needed to talk to it.

    Attributes:
        name: what it was loaded by; for an adapter, the name of its base.
        source: the folder that its processor files and its configuration come from.
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


def checkpoint_folder(name: str) -> Path:
    """Resolves a model name to a local folder.

    Raises:
        UserError: an unknown embedded policy, or a name that is neither a folder nor reachable on the hub.
    """
    if name.startswith("embedded:"):
        family = name.removeprefix("embedded:")
        folder = Path(__file__).parent.parent / "scenes" / "checkpoints" / family
        if family not in ADAPTERS or not (folder / "config.json").exists():
            raise UserError(
                f"no embedded policy '{family}'", where="model.name",
                hint="use " + " or ".join(f"embedded:{f}" for f in sorted(ADAPTERS))
                + f", or build one: sightline scenes build-policy --family {family} --out DIR",
            )  # fmt: skip
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if os.sep in name and name.count("/") != 1:
        raise UserError(f"no such folder: {name}", where="model.name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"'{name}' is neither a folder here nor reachable on the hub ({type(error).__name__})", where="model.name",
            hint="give a local folder, or embedded:qwen3_vl",
        ) from error  # fmt: skip


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
    target = _device(device)
    if dtype not in DTYPES:
        raise UserError(f"unknown number format {dtype!r}", where="dtype", hint=f"one of {', '.join(DTYPES)}")
    given = checkpoint_folder(str(name_or_path))
    name = adapter_base(given) or str(name_or_path)
    folder = given if name == str(name_or_path) else checkpoint_folder(name)
    config = _read_json(folder / "config.json")
    family = config.get("model_type", "")
    if family not in ADAPTERS:
        raise UserError(f"model type '{family}' is not supported", where=str(folder / "config.json"),
                        hint="supported: " + ", ".join(ADAPTERS))  # fmt: skip
    make_adapter, class_name = ADAPTERS[family]
    # what an adapter stores in four bits is packed on the way from here to the device
    place = torch.device("cpu") if lora is not None and lora.quantise else target
    adapter = make_adapter(_strict_model(folder, class_name, dtype).to(place))
    if checkpointing:
        adapter.model.activation_checkpointing_enable({"use_reentrant": False})
    tokenizer, template = _tokenizer(folder)
    processor = _image_processor(folder, min_pixels, max_pixels)
    frame = Frame(
        convention=adapter.convention,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
    )
    eos = _eos(folder, tokenizer)
    # the pad id may double as an end-of-text id, which must stay writable
    banned = tuple(i for i in {*adapter.placeholders()[1], int(tokenizer.pad_token_id)} if i not in eos)
    spare = range(len(tokenizer), int(adapter.model.get_output_embeddings().weight.shape[0]))
    card = _read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    policy = Policy(
        name=name, source=folder, adapter=adapter, tokenizer=tokenizer, template=template, frame=frame, eos=eos,
        module=PolicyModule(adapter, (*sorted(banned), *spare)), pixels=Pixels(processor, frame),
        style=card.get("prompt_style", "full"), banned=(*sorted(banned), *spare),
    )  # fmt: skip
    if folder != given or lora is not None:
        from sightline.policy.lora import attach, restore

        if folder != given:
            restore(policy, given, lora)
        elif lora is not None:
            attach(policy, lora)
        policy.module.to(target)
    return policy


def adapter_base(folder: Path) -> str | None:
    """The name of the policy that the adapter in a folder belongs to, or None where there is no adapter.

    Raises:
        UserError: the adapter does not say so.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        return None
    base = _read_json(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError("the adapter does not name its base", where=str(path),
                        hint="set base_model_name_or_path to a folder, a Hub id or embedded:FAMILY")  # fmt: skip
    return base


def _device(name: str | torch.device) -> torch.device:
    """The device by name, once it is known to be there."""
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
        raise UserError(f"device {str(name)!r} is not there on this machine", where="device", hint="e.g. cpu")
    return device


def save_policy(policy: Policy, folder: Path) -> None:
    """Writes weights (bf16 is kept as loaded) and copies the processor files of the source checkpoint unchanged."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    if policy.lora:
        from sightline.policy.lora import save_adapter

        save_adapter(policy, folder)
        return _copy_processor(policy, folder)
    tied = {id(p): n for n, p in reversed(list(policy.model.named_parameters()))}
    tensors = {n: p.detach().contiguous().cpu() for n, p in policy.model.named_parameters() if tied[id(p)] == n}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    policy.model.config.save_pretrained(folder)
    return _copy_processor(policy, folder)


def _copy_processor(policy: Policy, folder: Path) -> None:
    import shutil

    for name in PROCESSOR_FILES:
        if (policy.source / name).exists() and policy.source.resolve() != folder.resolve():
            shutil.copyfile(policy.source / name, folder / name)
    if policy.added:
        policy.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError("file is missing", where=str(path), hint="is this a checkpoint folder?") from None
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error}", where=str(path)) from None


def _strict_model(folder: Path, class_name: str, dtype: str) -> Any:
    import transformers
    from safetensors import SafetensorError

    if not any(folder.glob("*.safetensors")):
        raise UserError("no safetensors weights", where=str(folder), hint="other weight formats are not read")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, class_name).from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True, use_safetensors=True, local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are listed like the others below
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read: {error}", where=str(folder)) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(str(k) for k in sorted(info[kind], key=str)[:8])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(kind)
    ]
    if problems:
        raise UserError("weights do not match the configuration; " + "; ".join(problems), where=str(folder))
    return model


def _tokenizer(folder: Path) -> tuple[Any, str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    template = tokenizer.chat_template
    if template is None and (folder / "chat_template.json").exists():
        template = _read_json(folder / "chat_template.json").get("chat_template")
    if not isinstance(template, str):
        raise UserError("no chat template", where=str(folder), hint="expected chat_template.jinja or .json")
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad token", where=str(folder / "tokenizer_config.json"))
    return tokenizer, template


def _image_processor(folder: Path, min_pixels: int | None, max_pixels: int | None) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    raw = _read_json(folder / "preprocessor_config.json")
    size = raw.get("size") or {}
    shortest = min_pixels or size.get("shortest_edge", raw.get("min_pixels"))
    longest = max_pixels or size.get("longest_edge", raw.get("max_pixels"))
    if shortest is None or longest is None:
        raise UserError("neither size.shortest_edge/longest_edge nor min_pixels/max_pixels is given",
                        where=str(folder / "preprocessor_config.json"))  # fmt: skip
    keys = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "rescale_factor")
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": shortest, "longest_edge": longest}, **{k: raw[k] for k in keys if k in raw}
    )


def _eos(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    raw = _read_json(path).get("eos_token_id") if path.exists() else None
    ids = raw if isinstance(raw, list) else [raw] if raw is not None else [tokenizer.eos_token_id]
    return tuple(int(i) for i in ids)
