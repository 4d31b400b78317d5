"""What stands beside the weights: tokenizer, chat template, image processor, and the ids that end a reply.

They are read one by one. The combined loader of transformers needs packages that are not required here, and reloads
custom processors silently as bare tokenizers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from sightline.errors import UserError

__all__ = [
    "PROCESSOR_FILES", "check_tokens", "end_ids", "image_processor", "prompt_style", "read_json",
    "tokenizer_and_template",
]  # fmt: skip

PROCESSOR_FILES = (
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "video_preprocessor_config.json", "processor_config.json", "card.json",
)  # fmt: skip

PATCHES = {"patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size", "merge_size": "spatial_merge_size"}
"""Key of the image processor -> key of the vision tower: both must cut an image alike."""

LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Key of the image area limits beside `size` -> the same within it."""

MOST_PIXELS = 2**40

MARKS = {
    "image_token_id": "images", "video_token_id": "videos", "vision_start_token_id": "the start of an image",
    "vision_end_token_id": "the end of an image",
}  # fmt: skip
"""Key of the model's configuration -> what the token stands for."""

STEPS: dict[str, tuple[Any, ...]] = {
    "do_resize": (None, True), "do_rescale": (None, True), "do_normalize": (None, True), "resample": (None, 3),
}  # fmt: skip
"""What is done to every image -> the values that say so; 3 is bicubic."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: no such file, not JSON, or no object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("file is missing", where=str(path), hint="is this a checkpoint folder?") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise UserError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(raw, dict):
        raise UserError(f"a JSON object is expected, not {type(raw).__name__}", where=str(path))
    return raw


def tokenizer_and_template(folder: Path) -> tuple[Any, str]:
    """The tokenizer and the chat template. Code that lies in the folder is never run.

    A template in a file of its own is that of the processor, which knows about images; it goes before the tokenizer's.

    Raises:
        UserError: files are missing or damaged, or there is no template or no pad token.
    """
    from transformers import AutoTokenizer

    files = "tokenizer.json, or vocab.json and merges.txt"
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"no tokenizer: {files}", where=str(folder), hint="is the download complete?")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library of tokenizers raises nothing more special
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the tokenizer cannot be read: {reason}", where=str(folder), hint=f"expected {files}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no pad token", where=str(folder / "tokenizer_config.json"))
    return tokenizer, _template(folder, tokenizer.chat_template)


def check_tokens(tokenizer: Any, config: Any, folder: Path) -> None:
    """Whether tokenizer and model can belong together.

    Raises:
        UserError: a placeholder is no token, or there are more tokens than rows for them.
    """
    words, rows = len(tokenizer), config.get_text_config().vocab_size
    hint = "are these the files of another model?"
    if words > rows:
        raise UserError(f"{words} tokens, but the model has rows for {rows}", where=str(folder), hint=hint)
    for key, what in MARKS.items():
        mark = getattr(config, key, None)
        if mark is not None and not 0 <= mark < words:
            raise UserError(f"no token {mark}, which stands for {what} in the model's configuration",
                            where=str(folder), hint=hint)  # fmt: skip


def _template(folder: Path, of_tokenizer: Any) -> str:
    old_file = folder / "chat_template.json"
    found = of_tokenizer
    if not (folder / "chat_template.jinja").exists() and old_file.exists():
        found = read_json(old_file).get("chat_template")
    if isinstance(found, dict):  # several by name
        found = found.get("default")
    if not isinstance(found, str):
        raise UserError("no chat template", where=str(folder), hint="expected chat_template.jinja or .json")
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        ImmutableSandboxedEnvironment().parse(found)
    except TemplateSyntaxError as error:
        raise UserError(f"the chat template is damaged: line {error.lineno}: {error.message}", where=str(folder),
                        hint="compare it with the published one") from error  # fmt: skip
    return found


def image_processor(folder: Path, min_pixels: int | None, max_pixels: int | None, tower: Any) -> Any:
    """The image processor in its version without torchvision, with the checkpoint's area limits or the ones given.

    Published are three forms: limits as `min_pixels` and `max_pixels`, as edges of `size` (which hold areas in spite of
    their names), and all of it nested in `processor_config.json`. Where several are there, the one holds that
    transformers takes: nested before flat, `min_pixels` before `size`.

    Args:
        folder: the checkpoint.
        min_pixels, max_pixels: image area limits in pixels; None keeps the checkpoint's.
        tower: config of the vision tower, whose patches must be those of the processor.

    Raises:
        UserError: no limits, patches that the vision tower does not take, or another preparation than resizing
            (bicubic), rescaling and normalising.
    """
    from transformers import Qwen2VLImageProcessorPil

    path, raw = _image_config(folder)
    size = raw.get("size") or {}
    if not isinstance(size, dict):
        raise UserError(f"size is {size!r}, where limits are expected", where=str(path))
    given = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    limits = {}
    for flat, nested in LIMITS.items():
        value = next((v for v in (given[flat], raw.get(flat), size.get(nested), size.get(flat)) if v is not None), None)
        if type(value) is not int or not 1 <= value <= MOST_PIXELS:
            raise UserError(f"neither {flat} nor size.{nested} is a number of pixels", where=str(path))
        limits[nested] = value
    for key, of_tower in PATCHES.items():
        if raw.get(key, getattr(Qwen2VLImageProcessorPil, key)) != getattr(tower, of_tower):
            raise UserError(
                f"{key} is {raw.get(key)}, but the vision tower takes {getattr(tower, of_tower)}", where=str(path),
                hint="are these the processor files of another model?",
            )  # fmt: skip
    _check_steps(raw, path)
    keys = (*PATCHES, "image_mean", "image_std", "rescale_factor")
    return Qwen2VLImageProcessorPil(size=limits, **{k: raw[k] for k in keys if raw.get(k) is not None})


def _check_steps(raw: dict[str, Any], path: Path) -> None:
    """What is done to the numbers of an image is what is known here; engines would do what the file says."""
    for key, known in STEPS.items():
        if raw.get(key) not in known:
            raise UserError(f"{key} is {raw[key]!r}, where {known[-1]} is expected", where=str(path))
    for key, count in (("image_mean", 3), ("image_std", 3), ("rescale_factor", 1)):
        value = raw.get(key)
        numbers: list[Any] = value if isinstance(value, list) and count > 1 else [value]
        is_sound = len(numbers) == count and all(
            type(n) in (int, float) and math.isfinite(n) and (n > 0 or key == "image_mean") for n in numbers
        )
        if value is not None and not is_sound:
            kind = "a number above 0" if count == 1 else "a number for each of three colours"
            raise UserError(f"{key} is {value!r}, where {kind} is expected", where=str(path))


def _image_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    nested = folder / "processor_config.json"
    if nested.exists():
        found = read_json(nested).get("image_processor")
        if isinstance(found, dict):
            return nested, found
    flat = folder / "preprocessor_config.json"
    return flat, read_json(flat)


def end_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a reply: those of the generation config, else the tokenizer's.

    Raises:
        UserError: there is none, or it is no token.
    """
    path = folder / "generation_config.json"
    raw = read_json(path).get("eos_token_id") if path.exists() else None
    where = str(folder / "tokenizer_config.json" if raw is None else path)
    ids = raw if isinstance(raw, list) else [tokenizer.eos_token_id if raw is None else raw]
    if not ids or any(type(i) is not int or not 0 <= i < len(tokenizer) for i in ids):
        raise UserError(f"a reply would end with {raw if raw is not None else ids[0]!r}, which is no token",
                        where=where, hint="eos_token_id is the id of a token, or a list of them")  # fmt: skip
    return tuple(ids)


def prompt_style(folder: Path) -> Literal["full", "compact"]:
    """The wording of prompts that a shipped policy was taught; full for all others.

    Raises:
        UserError: its card names another.
    """
    path = folder / "card.json"
    style = read_json(path).get("prompt_style", "full") if path.exists() else "full"
    if style not in ("full", "compact"):
        raise UserError(f"prompt_style is {style!r}", where=str(path), hint="full or compact")
    return style
