"""The checkpoints that were published, by their names on the Hub: dimensions, and the config each was released with.

Recorded so that memory, time and layouts can be told without a download. What is loaded is always read from the
checkpoint itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sightline.errors import UserError

__all__ = ["PROCESSORS", "PUBLISHED", "Released", "published_config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What tells one size from another.

    Attributes:
        family: `qwen2_5_vl` or `qwen3_vl`.
        width, inner, layers, heads, kv_heads, vocab: of the language model. Rows of the vocabulary beyond the length of
            the tokenizer are spare.
        is_tied: the output head is the embedding matrix, and no tensor of its own.
        tower: width, inner width and blocks of the vision tower.
        parameters: how many numbers the published files hold.
    """

    family: str
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    is_tied: bool
    tower: tuple[int, int, int]
    parameters: int

    def config(self) -> dict[str, Any]:
        """The content of `config.json` as it was released."""
        return _qwen2_5_vl(self) if self.family == "qwen2_5_vl" else _qwen3_vl(self)


SMALL, WIDE = (1280, 3420, 32), (1280, 3456, 32)  # Qwen2.5-VL
LIGHT, FULL = (1024, 4096, 24), (1152, 4304, 27)  # Qwen3-VL

PUBLISHED: Mapping[str, Released] = MappingProxyType({
    "Qwen/Qwen2.5-VL-3B-Instruct": Released(
        family="qwen2_5_vl", width=2048, inner=11008, layers=36, heads=16, kv_heads=2, vocab=151936, is_tied=True,
        tower=SMALL, parameters=3_754_622_976,
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Released(
        family="qwen2_5_vl", width=3584, inner=18944, layers=28, heads=28, kv_heads=4, vocab=152064, is_tied=False,
        tower=SMALL, parameters=8_292_166_656,
    ),
    "Qwen/Qwen2.5-VL-32B-Instruct": Released(
        family="qwen2_5_vl", width=5120, inner=27648, layers=64, heads=40, kv_heads=8, vocab=152064, is_tied=False,
        tower=WIDE, parameters=33_452_718_336,
    ),
    "Qwen/Qwen2.5-VL-72B-Instruct": Released(
        family="qwen2_5_vl", width=8192, inner=29568, layers=80, heads=64, kv_heads=8, vocab=152064, is_tied=False,
        tower=WIDE, parameters=73_410_777_344,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": Released(
        family="qwen3_vl", width=2048, inner=6144, layers=28, heads=16, kv_heads=8, vocab=151936, is_tied=True,
        tower=LIGHT, parameters=2_127_532_032,
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Released(
        family="qwen3_vl", width=2560, inner=9728, layers=36, heads=32, kv_heads=8, vocab=151936, is_tied=True,
        tower=LIGHT, parameters=4_437_815_808,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Released(
        family="qwen3_vl", width=4096, inner=12288, layers=36, heads=32, kv_heads=8, vocab=151936, is_tied=False,
        tower=FULL, parameters=8_767_123_696,
    ),
    "Qwen/Qwen3-VL-32B-Instruct": Released(
        family="qwen3_vl", width=5120, inner=25600, layers=64, heads=64, kv_heads=8, vocab=151936, is_tied=False,
        tower=FULL, parameters=33_357_390_064,
    ),
})  # fmt: skip
"""Name on the Hub -> what was released under it."""

PROCESSORS: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "qwen2_5_vl": {
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    },
    "qwen3_vl": {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2,
        "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor",
    },
})  # fmt: skip
"""Family -> the content of `preprocessor_config.json` as it was released."""

MARKS = {"vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655,
         "video_token_id": 151656}  # fmt: skip
ENDS = {"bos_token_id": 151643, "eos_token_id": 151645}


def published_config(name: str) -> dict[str, Any]:
    """The config that a published checkpoint was released with.

    Raises:
        UserError: the name is not among those recorded.

    Example:
        >>> published_config("Qwen/Qwen2.5-VL-7B-Instruct")["num_key_value_heads"]
        4
    """
    if name not in PUBLISHED:
        raise UserError(f"the dimensions of '{name}' are not recorded", where="model.name",
                        hint="recorded: " + ", ".join(PUBLISHED))  # fmt: skip
    return PUBLISHED[name].config()


def _text(of: Released) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0, **ENDS, "hidden_act": "silu", "hidden_size": of.width, "initializer_range": 0.02,
        "intermediate_size": of.inner, "num_attention_heads": of.heads, "num_hidden_layers": of.layers,
        "num_key_value_heads": of.kv_heads, "rms_norm_eps": 1e-06, "use_cache": True, "vocab_size": of.vocab,
    }  # fmt: skip


def _qwen2_5_vl(of: Released) -> dict[str, Any]:
    """The values of the language model stand at the top level."""
    width, inner, blocks = of.tower
    vision = {
        "depth": blocks, "hidden_act": "silu", "hidden_size": width, "intermediate_size": inner, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": of.width, "patch_size": 14, "spatial_merge_size": 2,
        "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **_text(of), **MARKS,
        "vision_token_id": 151654, "max_position_embeddings": 128000, "max_window_layers": of.layers,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1000000.0,
        "sliding_window": 32768, "use_sliding_window": False, "tie_word_embeddings": of.is_tied,
        "torch_dtype": "bfloat16", "vision_config": vision,
    }  # fmt: skip


def _qwen3_vl(of: Released) -> dict[str, Any]:
    width, inner, blocks = of.tower
    text = {
        **_text(of), "attention_bias": False, "dtype": "bfloat16", "head_dim": 128, "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text", "rope_theta": 5000000, "tie_word_embeddings": of.is_tied,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    }  # fmt: skip
    vision = {
        "deepstack_visual_indexes": [5, 11, 17] if blocks == 24 else [8, 16, 24], "depth": blocks,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": width, "in_channels": 3, "initializer_range": 0.02,
        "intermediate_size": inner, "model_type": "qwen3_vl", "num_heads": 16, "num_position_embeddings": 2304,
        "out_hidden_size": of.width, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **MARKS,
        "text_config": text, "tie_word_embeddings": of.is_tied, "vision_config": vision,
    }  # fmt: skip
