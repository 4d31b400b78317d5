"""Vision towers on CUDA: what follows from the grids is computed on the CPU, and attention has one call per layer.

The stock tower reads sizes back from the device and attends image by image, window by window. The images of a batch
stand in one sequence, so one variable-length call does for all of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from sightline.kernels import within_segments
from sightline.policy.batch import sent

__all__ = ["NAME", "embedded", "prepared", "switch_tower"]

NAME = "sightline_flash"
"""transformers hands lengths to attention functions whose name says flash; to others it hands one window at a time."""

HALF = (torch.float16, torch.bfloat16)


def switch_tower(tower: Any) -> None:
    """Puts a tower that stands on CUDA in half precision on variable-length attention; any other keeps its own.

    Its first layer is a convolution whose stride is its window, which is a matrix product; the convolution is slower
    and rounds fp32 to ten bits.
    """
    here = tower.patch_embed.proj.weight
    if here.is_cuda:
        tower.patch_embed.forward = partial(embedded, tower.patch_embed.proj)
    if here.is_cuda and here.dtype in HALF and tower.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(NAME, within_segments)
        tower.config._attn_implementation = NAME


def embedded(convolution: Any, patches: Tensor) -> Tensor:
    """Patches through a convolution that covers each of them whole."""
    weight = convolution.weight
    return functional.linear(patches.to(weight.dtype), weight.flatten(1), convolution.bias)


def prepared(tower: Any, grids: Int[Tensor, "images 3"], device: torch.device) -> dict[str, Any]:
    """Keywords of the tower's call that it would otherwise derive from the grids on the device, waiting for it."""
    config = tower.config
    merge = config.spatial_merge_size
    lengths = get_vision_cu_seqlens(grids)
    found: dict[str, Any] = {"position_ids": get_vision_position_ids(grids, merge), "cu_seqlens": lengths}
    found["max_seqlen"] = int(lengths.diff().max())
    if hasattr(config, "fullatt_block_indexes"):
        order, windows = get_vision_window_index(grids, merge, config.window_size, config.patch_size)
        found |= {"window_index": order, "cu_window_seqlens": windows}
        found["max_window_seqlen"] = int(windows.diff().max())
    else:
        at, weight = get_vision_interpolation_indices_and_weights(
            grids, tower.num_grid_per_side, mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners, spatial_merge_size=merge,
        )  # fmt: skip
        found |= {"interp_indices": at, "interp_weights": weight}
    return {k: sent(v, device) if isinstance(v, Tensor) else v for k, v in found.items()}
