"""A policy without its weights: dimensions, tokenizer and resize rule, enough to count what a run would compute.

Nothing is downloaded. A name on the Hub that is not in the local cache stands for the dimensions that were recorded of
it (`policy/published.py`); its tokenizer is then missing, and words are counted by their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.policy.architecture import Architecture, architecture
from sightline.policy.encode import Encoded, encode_prompt, encode_turn
from sightline.policy.processors import image_processor, read_json, tokenizer_and_template
from sightline.policy.published import PROCESSORS, PUBLISHED, published_config
from sightline.policy.tree import TreeRules

if TYPE_CHECKING:
    from sightline.config.sections import Model
    from sightline.types import ImageRef, ImageSlot, Prompt

__all__ = ["Outline", "open_outline"]

LETTERS = 4
"""Letters per token where there is no tokenizer."""
MARKS = 12
"""Tokens of the chat format around a message: roles, ends of turns, opening of the reply."""


@dataclass(kw_only=True)
class Outline:
    """What can be known of a policy before its weights are read.

    Attributes:
        name: as it was asked for.
        model: its dimensions.
        frame: the resize rule and the coordinates.
        style: wording of its prompts.
        image_token: id of one visual token.
        tokenizer, template: None where no files are here.
        adapter: the folder of the adapter that it has.
    """

    name: str
    model: Architecture
    frame: Frame
    style: Literal["full", "compact"]
    image_token: int
    tokenizer: Any = None
    template: str = ""
    adapter: Path | None = None

    def grid(self, image: ImageRef) -> tuple[int, int]:
        """Rows and columns of visual tokens of an image."""
        return self.frame.cells(image.size)

    @cached_property
    def rules(self) -> TreeRules:
        return TreeRules(self.image_token, self.grid)

    def encode(self, prompt: Prompt) -> Encoded:
        """Ids of a prompt; of recorded dimensions, as many ids as it would have."""
        if self.tokenizer is not None:
            return encode_prompt(prompt, self.tokenizer, self.template, self.image_token, self.grid)
        parts = [part for message in prompt.messages for part in message.content]
        return self._stand_in(parts, prompt.images, MARKS * len(prompt.messages) + len(prompt.forced_prefix) // LETTERS)

    def encode_turn(self, content: Sequence[str | ImageSlot], images: tuple[ImageRef, ...] = ()) -> Encoded:
        """Ids of what the user adds between two replies."""
        if self.tokenizer is not None:
            return encode_turn(content, images, self.tokenizer, self.template, self.image_token, self.grid)
        return self._stand_in(list(content), images, MARKS)

    def _stand_in(self, parts: Sequence[str | ImageSlot], images: tuple[ImageRef, ...], marks: int) -> Encoded:
        """Ids of the right number: 0 for words, the placeholder for images."""
        pieces = [np.zeros(marks, np.int64)]
        for part in parts:
            if isinstance(part, str):
                pieces.append(np.zeros(-(-len(part) // LETTERS), np.int64))
            else:
                rows, columns = self.grid(images[part.index])
                pieces.append(np.full(rows * columns, self.image_token, np.int64))
                pieces.append(np.zeros(1, np.int64))
        return Encoded(np.concatenate(pieces), images)


def open_outline(model: Model) -> Outline:
    """The policy that a recipe names, without weights and without a download.

    Raises:
        UserError: the name leads nowhere here and is not recorded, or files are missing or damaged.
    """
    folder = _folder(model.name)
    if folder is None:
        return _recorded(model)
    config = read_json(folder / "config.json")
    dimensions = architecture(config)
    tower = SimpleNamespace(
        patch_size=dimensions.vision.patch, spatial_merge_size=dimensions.vision.merge,
        temporal_patch_size=dimensions.vision.frames,
    )  # fmt: skip
    processor = image_processor(folder, model.min_pixels, model.max_pixels, tower)
    tokenizer, template = tokenizer_and_template(folder)
    card = read_json(folder / "card.json") if (folder / "card.json").exists() else {}
    limits = (processor.size["shortest_edge"], processor.size["longest_edge"])
    return Outline(
        name=model.name, model=dimensions, frame=_frame(dimensions, *limits), style=card.get("prompt_style", "full"),
        image_token=int(config["image_token_id"]), tokenizer=tokenizer, template=template,
        adapter=own if ((own := Path(model.name).expanduser()) / "adapter_config.json").exists() else None,
    )  # fmt: skip


def _folder(name: str) -> Path | None:
    """A local folder with the files that are needed, None where there is none of a name on the Hub.

    Raises:
        UserError: a folder without a config, or a name that neither the disk nor the Hub can have.
    """
    from sightline.policy.hub import checkpoint_folder

    path = Path(name).expanduser()
    if name.startswith(("embedded:", ".", "~", "/")) or path.is_dir() or name.count("/") != 1:
        return _base(checkpoint_folder(name))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except HFValidationError:
        return checkpoint_folder(name)  # which says what is wrong with it
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder is not None and (folder / "tokenizer_config.json").exists() else None


def _base(folder: Path) -> Path:
    """The folder itself, or that of the base of the adapter in it."""
    from sightline.policy.adapted import base_folder
    from sightline.policy.load import adapter_base

    base = adapter_base(folder)
    if base is None:
        return folder
    found = base_folder(base, folder, _folder)
    if found is None:
        raise UserError(f"the base of the adapter, {base}, is not here", where=str(folder),
                        hint=f"hf download {base}")  # fmt: skip
    return found


def _recorded(model: Model) -> Outline:
    name = model.name.partition("@")[0]
    if name not in PUBLISHED:
        raise UserError(
            f"'{name}' is not here, and its dimensions are not recorded", where="model.name",
            hint=f"hf download {name} --include '*.json' is enough for this; recorded: {', '.join(PUBLISHED)}",
        )  # fmt: skip
    raw = published_config(name)
    dimensions, rule = architecture(raw), PROCESSORS[PUBLISHED[name].family]
    size = rule.get("size", {})
    least, most = rule.get("min_pixels") or size["shortest_edge"], rule.get("max_pixels") or size["longest_edge"]
    return Outline(
        name=model.name, model=dimensions, style="full", image_token=int(raw["image_token_id"]),
        frame=_frame(dimensions, model.min_pixels or least, model.max_pixels or most),
    )  # fmt: skip


def _frame(model: Architecture, least: int, most: int) -> Frame:
    from sightline.policy.qwen_vl import FAMILIES

    tower = model.vision
    return Frame(FAMILIES[model.family], tower.patch * tower.merge, least, most)
