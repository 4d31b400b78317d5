"""Prompts as token ids: the checkpoint's chat template, with every image placeholder expanded to its visual tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from sightline.types import ImageRef, ImageSlot

if TYPE_CHECKING:
    from sightline.types import Prompt

__all__ = ["Encoded", "encode_prompt", "encode_turn", "expand_images"]

SENTINEL = "\u2063reply\u2063"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a prompt and its images in the order of their placeholders."""

    ids: Int[np.ndarray, "prompt"]
    images: tuple[ImageRef, ...]


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    return environment.from_string(template)


def expand_images(
    ids: list[int], image_token: int, images: tuple[ImageRef, ...], grid: Callable[[ImageRef], tuple[int, int]]
) -> Int[np.ndarray, "tokens"]:
    """Replaces each single placeholder by as many as its image has visual tokens."""
    out: list[int] = []
    remaining = iter(images)
    for token in ids:
        if token == image_token:
            rows, columns = grid(next(remaining))
            out.extend([token] * (rows * columns))
        else:
            out.append(token)
    return np.array(out, np.int64)


def encode_prompt(
    prompt: Prompt,
    tokenizer: Any,
    template: str,
    image_token: int,
    grid: Callable[[ImageRef], tuple[int, int]],
) -> Encoded:
    """Renders the chat template, tokenises it and expands the images; a forced prefix is appended on its own."""
    messages = [{"role": m.role, "content": _parts(m.content)} for m in prompt.messages]
    order = [p.index for m in prompt.messages for p in m.content if isinstance(p, ImageSlot)]
    if order != sorted(order):
        raise ValueError("image slots of a prompt must stand in the order of its images")
    text = _compiled(template).render(messages=messages, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if prompt.forced_prefix:
        ids = ids + tokenizer(prompt.forced_prefix, add_special_tokens=False)["input_ids"]
    images = tuple(prompt.images[i] for i in order)
    return Encoded(expand_images(ids, image_token, images, grid), images)


def encode_turn(
    content: Sequence[str | ImageSlot],
    images: tuple[ImageRef, ...],
    tokenizer: Any,
    template: str,
    image_token: int,
    grid: Callable[[ImageRef], tuple[int, int]],
) -> Encoded:
    """Ids that follow a finished assistant turn: the user's next turn and the opening of the assistant's.

    The text between is what the chat template itself puts there; the end-of-turn id that the policy sampled is not
    repeated.
    """
    empty = [{"type": "text", "text": ""}]
    messages = [
        {"role": "user", "content": empty},
        {"role": "assistant", "content": [{"type": "text", "text": SENTINEL}]},
        {"role": "user", "content": _parts(content)},
    ]
    text = _compiled(template).render(messages=messages, add_generation_prompt=True).split(SENTINEL)[1]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids and ids[0] == tokenizer.eos_token_id:
        ids = ids[1:]
    return Encoded(expand_images(ids, image_token, images, grid), images)


def _parts(content: Sequence[str | ImageSlot]) -> list[dict[str, str]]:
    return [{"type": "image"} if isinstance(p, ImageSlot) else {"type": "text", "text": p} for p in content]
