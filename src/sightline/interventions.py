"""Changes to images that ask what depends on them, each with a record of what was done where.

A change happens on the image as the model sees it, after the resize to its grid, so that the number of visual tokens
and their positions stay the same and log-probs of the same tokens can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Intervention", "Kind"]

Kind = Literal[
    "patch_blacken",
    "gray",
    "noise",
    "blur",
    "blank",
    "swap",
    "region_mask",
    "region_keep",
    "random_region",
    "text_only",
    "attn_block",
]


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is done to the images of a Record.

    Attributes:
        kind: `patch_blacken` fills each square patch with `probability`; `gray` 128 everywhere; `noise` adds Gaussian
            noise; `blur` Gaussian blur; `blank` fills everything; `swap` another image of the batch; `region_mask`
            fills the regions, `region_keep` everything else, `random_region` as much elsewhere; `text_only` drops the
            images; `attn_block` keeps them but hides them from the reply.
        probability: of each patch (PAPO .6, VPPO .5).
        patch: side of a patch, px of the resized image.
        sigma: standard deviation of the noise, grey levels (VPPO 189).
        radius: of the blur, px of the resized image.
        fill: grey level of what is filled.
    """

    kind: Kind = "patch_blacken"
    probability: float = 0.6
    patch: int = 14
    sigma: float = 189.0
    radius: float = 6.0
    fill: int = 0
