"""The colours of heat-maps: one ramp, even to the eye, that also reads in grey and by colour-blind people.

The ramp is a path through OKLab (Ottosson 2020, a space in which equal distances look equally large): lightness grows
evenly from nearly black to nearly white, which alone carries the order; hue turns from violet over red to yellow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

__all__ = ["ramp", "ramp_codes"]

_LIGHTNESS = (0.18, 0.95)
_HUE = (292.0, 462.0)  # degrees, violet to yellow over red
_CHROMA = 0.16

_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def ramp(steps: int = 256) -> UInt8[np.ndarray, "steps 3"]:
    """The ramp as sRGB bytes, darkest first.

    Example:
        >>> ramp(3).tolist()
        [[19, 12, 37], [204, 52, 76], [252, 242, 158]]
    """
    return np.round(255 * np.clip(_srgb(_path(steps)), 0, 1)).astype(np.uint8)


def ramp_codes(steps: int = 32) -> list[str]:
    """The ramp as hexadecimal colours, for pages; a script interpolates between them."""
    return ["#" + bytes(colour.tolist()).hex() for colour in ramp(steps)]


def _path(steps: int) -> Float[np.ndarray, "steps 3"]:
    """Points of the ramp in OKLab."""
    t = np.linspace(0.0, 1.0, steps)
    hue = np.deg2rad(_HUE[0] + (_HUE[1] - _HUE[0]) * t)
    chroma = 0.05 + (_CHROMA - 0.05) * np.sin(np.pi * t) + 0.055 * t  # inside sRGB all the way
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * t
    return np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)


def _srgb(lab: Float[np.ndarray, "steps 3"]) -> Float[np.ndarray, "steps 3"]:
    linear = (lab @ _LMS.T) ** 3 @ _LINEAR_RGB.T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055)
