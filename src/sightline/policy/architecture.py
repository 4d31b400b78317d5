"""The dimensions of a checkpoint as its config tells them, and how many parameters they make.

Nothing here loads a weight or needs torch: FLOPs (`policy/flops.py`) and bytes (`policy/memory.py`) follow from these
numbers alone. Both key layouts of the published configs are read: the text model's values under `text_config`, or at
the top level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline.errors import UserError

__all__ = ["Architecture", "Matrix", "Text", "Tower", "architecture"]

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear map of so many inputs to so many outputs."""

    inputs: int
    outputs: int
    has_bias: bool = False

    @property
    def size(self) -> int:
        """Numbers in the matrix, without the bias."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        return self.size + self.outputs * self.has_bias

    def adapter(self, rank: int) -> int:
        """Numbers in the two low-rank factors that LoRA puts beside the matrix."""
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The language model."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int
    has_bias: bool
    has_head_norms: bool
    is_tied: bool

    @property
    def matrices(self) -> dict[str, Matrix]:
        """The linear maps of one decoder layer, by the name of their module."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": Matrix(self.width, queries, self.has_bias),
            "k_proj": Matrix(self.width, keys, self.has_bias),
            "v_proj": Matrix(self.width, keys, self.has_bias),
            "o_proj": Matrix(queries, self.width),
            "gate_proj": Matrix(self.width, self.inner),
            "up_proj": Matrix(self.width, self.inner),
            "down_proj": Matrix(self.inner, self.width),
        }

    @property
    def layer_parameters(self) -> int:
        norms = 2 * self.width + 2 * self.head_width * self.has_head_norms
        return sum(m.parameters for m in self.matrices.values()) + norms

    @property
    def embedding(self) -> int:
        """Numbers in the input embeddings, and in the output head where it is a matrix of its own."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        """Embeddings, decoder layers, last norm; the output head too unless it is tied."""
        return self.layers * self.layer_parameters + self.width + self.embedding * (1 if self.is_tied else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """The vision tower: patches in, visual tokens of the language model's width out.

    `window` is the side of an attention window in merged cells (0: every layer is full), `full` how many layers attend
    to the whole image, `mergers` the main one and those of deepstack, `positions` rows of learned position embeddings.
    """

    width: int
    inner: int
    layers: int
    heads: int
    patch: int
    frames: int
    channels: int
    merge: int
    out: int
    is_gated: bool
    window: int
    full: int
    mergers: int
    positions: int

    @property
    def patch_embedding(self) -> Matrix:
        return Matrix(self.channels * self.frames * self.patch**2, self.width, not self.is_gated)

    @property
    def matrices(self) -> dict[str, Matrix]:
        """The linear maps of one block."""
        found = {"qkv": Matrix(self.width, 3 * self.width, True), "proj": Matrix(self.width, self.width, True)}
        up = Matrix(self.width, self.inner, True)
        return {
            **found,
            **({"gate_proj": up} if self.is_gated else {}),
            "up": up,
            "down": Matrix(self.inner, self.width, True),
        }

    @property
    def merger(self) -> tuple[Matrix, Matrix]:
        """Both linear maps of a merger, applied once per visual token."""
        wide = self.width * self.merge**2
        return Matrix(wide, wide, True), Matrix(wide, self.out, True)

    @property
    def norm(self) -> int:
        """Numbers of a norm: RMSNorm has a scale, LayerNorm a shift as well."""
        return self.width if self.is_gated else 2 * self.width

    @property
    def block_parameters(self) -> int:
        return sum(m.parameters for m in self.matrices.values()) + 2 * self.norm

    @property
    def parameters(self) -> int:
        mergers = self.mergers * sum(m.parameters for m in self.merger)
        # the mergers of deepstack normalise after the patches of a cell are put side by side
        norms = self.norm * (1 + (self.mergers - 1) * self.merge**2)
        fixed = self.patch_embedding.parameters + self.positions * self.width
        return fixed + self.layers * self.block_parameters + mergers + norms

    def cells(self, grids: tuple[tuple[int, int, int], ...]) -> int:
        """Visual tokens of images given as (frames, rows, columns) of patches."""
        return sum(math.prod(grid) for grid in grids) // self.merge**2

    def pairs(self, grids: tuple[tuple[int, int, int], ...]) -> tuple[int, int]:
        """Visible pairs of patches in a layer with full attention, and in one with windows."""
        full = sum(t * (h * w) ** 2 for t, h, w in grids)
        if not self.window:
            return full, full
        unit = self.merge**4
        return full, sum(
            t * unit * _squares(h // self.merge, self.window) * _squares(w // self.merge, self.window)
            for t, h, w in grids
        )


def _squares(length: int, window: int) -> int:
    """Sum of the squared sizes of the windows that a side is cut into; the last may be smaller."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Both halves of a checkpoint."""

    family: str
    text: Text
    vision: Tower

    @property
    def parameters(self) -> int:
        return self.text.parameters + self.vision.parameters

    @property
    def linear(self) -> dict[str, Matrix]:
        """Every linear layer but the output matrix, by the name of its module."""
        tower, gated = self.vision, self.vision.is_gated
        kind = {"qkv": "attn", "proj": "attn"}
        own = {"up": "up_proj" if gated else "linear_fc1", "down": "down_proj" if gated else "linear_fc2"}
        found = {
            f"model.visual.blocks.{i}.{kind.get(name, 'mlp')}.{own.get(name, name)}": matrix
            for i in range(tower.layers) for name, matrix in tower.matrices.items()
        }  # fmt: skip
        places = ["merger", *(f"deepstack_merger_list.{i}" for i in range(tower.mergers - 1))]
        ends = ("mlp.0", "mlp.2") if gated else ("linear_fc1", "linear_fc2")
        found |= {f"model.visual.{p}.{e}": m for p in places for e, m in zip(ends, tower.merger, strict=True)}
        return found | {
            f"model.language_model.layers.{i}.{'mlp' if name in FEED_FORWARD else 'self_attn'}.{name}": matrix
            for i in range(self.text.layers) for name, matrix in self.text.matrices.items()
        }  # fmt: skip


def architecture(config: Any) -> Architecture:
    """Reads the dimensions from a transformers config object or from the content of a `config.json`.

    Raises:
        UserError: an unknown family, or a dimension that is missing.
    """
    raw: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    family = str(raw.get("model_type", ""))
    if family not in ("qwen2_5_vl", "qwen3_vl"):
        raise UserError(f"model type '{family}' is not supported", where="config.json",
                        hint="supported: qwen2_5_vl, qwen3_vl")  # fmt: skip
    try:
        return Architecture(family=family, text=_text(raw, family), vision=_vision(raw["vision_config"], family))
    except (KeyError, TypeError) as error:
        raise UserError(f"a dimension of the model is missing: {error}", where="config.json") from error


def _text(raw: Mapping[str, Any], family: str) -> Text:
    inner = raw.get("text_config") or raw
    old = family == "qwen2_5_vl"
    heads = int(inner["num_attention_heads"])
    return Text(
        width=int(inner["hidden_size"]),
        inner=int(inner["intermediate_size"]),
        layers=int(inner["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(inner.get("num_key_value_heads") or heads),
        head_width=int(inner["hidden_size"]) // heads if old else int(inner.get("head_dim") or 128),
        vocab=int(inner["vocab_size"]),
        has_bias=old or bool(inner.get("attention_bias", False)),
        has_head_norms=not old,
        is_tied=bool(raw.get("tie_word_embeddings", inner.get("tie_word_embeddings", False))),
    )


def _vision(raw: Mapping[str, Any], family: str) -> Tower:
    old = family == "qwen2_5_vl"
    patch, merge, layers = int(raw["patch_size"]), int(raw.get("spatial_merge_size", 2)), int(raw["depth"])
    window = int(raw.get("window_size", 112)) // patch // merge if old else 0
    full = len(set(raw.get("fullatt_block_indexes", (7, 15, 23, 31))) & set(range(layers))) if old else layers
    return Tower(
        width=int(raw["hidden_size"]),
        inner=int(raw["intermediate_size"]),
        layers=layers,
        heads=int(raw["num_heads"]),
        patch=patch,
        frames=int(raw.get("temporal_patch_size", 2)),
        channels=int(raw.get("in_channels", raw.get("in_chans", 3))),
        merge=merge,
        out=int(raw["out_hidden_size"]),
        is_gated=old,
        window=window,
        full=full,
        mergers=1 + (0 if old else len(raw.get("deepstack_visual_indexes", (8, 16, 24)))),
        positions=0 if old else int(raw.get("num_position_embeddings", 2304)),
    )
