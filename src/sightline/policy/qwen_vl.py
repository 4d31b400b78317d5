"""The Qwen-VL family: Qwen2.5-VL (absolute pixels) and Qwen3-VL (0-1000 grid, deepstack)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sightline.policy.adapter import Vision
from sightline.policy.attention import switch_attention
from sightline.policy.compiled import uncompiled
from sightline.policy.towers import prepared, switch_tower

__all__ = ["FAMILIES", "QwenVL"]

FAMILIES: dict[str, Literal["absolute", "relative_1000"]] = {"qwen2_5_vl": "absolute", "qwen3_vl": "relative_1000"}


class QwenVL:
    """`ModelAdapter` for both families on stock transformers classes.

    Calls the inner models directly, so that positions and masks are ours (computed at collation, without per-sample
    loops on the device) and each image is encoded once however many tokens refer to it. A model that is wrapped for
    LoRA trains through its wrapper and runs by the stock model inside.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._stock: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.family: str = self.model.config.model_type
        self.convention: Literal["absolute", "relative_1000"] = FAMILIES[self.family]
        switch_attention(self._stock)

    def placeholders(self) -> tuple[int, tuple[int, ...]]:
        config = self.model.config
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        banned = {getattr(config, name) for name in names if getattr(config, name, None) is not None}
        return config.image_token_id, tuple(sorted(banned))

    def vision(self, pixels: Float[Tensor, "patches patch_width"], grids: Int[Tensor, "images 3"]) -> Vision:
        tower = self._stock.model.visual
        more: dict[str, Any] = {}
        if pixels.is_cuda:
            switch_tower(tower)
            more = prepared(tower, grids.cpu(), pixels.device)
        out = tower(pixels.type(tower.dtype), grid_thw=grids, return_dict=True, **more)
        return Vision(out.pooler_output, tuple(getattr(out, "deepstack_features", None) or ()))

    def text(
        self,
        ids: Int[Tensor, "rows tokens"],
        positions: Int[Tensor, "3 rows tokens"],
        mask: Any,
        visual: tuple[Vision, Tensor, Tensor] | None = None,
        stops_at: int | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows tokens width"]:
        language = self._stock.model.language_model
        embeds = language.embed_tokens(ids)
        if visual is not None:
            vision, at, source = visual
            flat = embeds.reshape(-1, embeds.shape[-1])
            embeds = flat.index_copy(0, at, vision.features[source].to(flat.dtype)).view_as(embeds)
            if vision.deepstack:
                # the text model adds deepstack features in row-major order of the marked positions
                order = torch.argsort(at)
                marked = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device).index_fill_(0, at, True)
                kwargs["visual_pos_masks"] = marked.view_as(ids)
                kwargs["deepstack_visual_embeds"] = [layer[source[order]] for layer in vision.deepstack]
                if ids.is_cuda:
                    language._deepstack_process = _added
                    kwargs["visual_pos_masks"] = at[order]
        if self.family == "qwen2_5_vl":
            mask = {"full_attention": mask, "sliding_attention": mask}
        with _stopped(language, stops_at), uncompiled() if "past_key_values" in kwargs else nullcontext():
            out = language(inputs_embeds=embeds, position_ids=positions, attention_mask=mask, use_cache=False, **kwargs)
        return out.last_hidden_state

    def logits(self, hidden: Float[Tensor, "scored width"]) -> Float[Tensor, "scored vocab"]:
        return self._stock.lm_head(hidden)


def _added(hidden: Tensor, at: Int[Tensor, "visual"], features: Float[Tensor, "visual width"]) -> Tensor:
    """Deepstack features onto the tokens at flat positions. The stock method asks the device how many are marked."""
    return hidden.reshape(-1, hidden.shape[-1]).index_add(0, at, features.to(hidden.dtype)).view_as(hidden)


@contextmanager
def _stopped(language: Any, stops_at: int | None) -> Iterator[None]:
    """Hides the decoder layers above `stops_at` from the stock forward, which runs through the list it finds."""
    layers = language.layers
    if stops_at is not None:
        language.layers = layers[: stops_at + 1]
    try:
        yield
    finally:
        language.layers = layers
