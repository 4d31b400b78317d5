"""The ramp of heat-maps: even to the eye, in order for everybody, and inside sRGB."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.report import colours
from sightline.report.colours import ramp, ramp_codes


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB bytes."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def without_green_cones(rgb: np.ndarray) -> np.ndarray:
    """sRGB bytes as a deuteranope sees them (Viénot, Brettel and Mollon 1999)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    seen = np.clip(linear @ matrix.T, 0, 1)
    return 255 * np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)


def test_equal_steps_look_equally_large() -> None:
    steps = np.linalg.norm(np.diff(colours._path(65), axis=0), axis=1)
    assert steps.max() / steps.min() < 1.1


def test_nothing_is_cut_off_at_the_border_of_srgb() -> None:
    inside = colours._srgb(colours._path(256))
    assert inside.min() > -0.003
    assert inside.max() < 1.003


@pytest.mark.parametrize("seen", [lambda rgb: rgb, without_green_cones])
def test_order_survives_in_grey_and_for_colour_blind_people(seen) -> None:
    levels = lightness(seen(ramp(64).astype(float)))
    assert (np.diff(levels) > 0).all()
    assert levels[0] < 12
    assert levels[-1] > 90


def test_codes_are_the_same_colours() -> None:
    codes = ramp_codes(8)
    assert [tuple(bytes.fromhex(code[1:])) for code in codes] == [tuple(row) for row in ramp(8).tolist()]
