"""Pictures whose every pixel says where it stands, a frame, and reproducible property tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings

from sightline.geometry.frames import Frame
from sightline.images import image_ref
from sightline.types import ImageRef

settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.load_profile("reproducible")


def coordinates(width: int, height: int) -> np.ndarray:
    """Red is the column, green the row (modulo 251), blue 7: no pixel is black."""
    pixels = np.full((height, width, 3), 7, np.uint8)
    pixels[..., 0] = np.arange(width) % 251
    pixels[..., 1] = np.arange(height)[:, None] % 251
    return pixels


@pytest.fixture
def chart() -> ImageRef:
    """640 x 480."""
    return image_ref(coordinates(640, 480))


@pytest.fixture
def frame() -> Frame:
    """Thousandths of the image."""
    return Frame("relative_1000", 32, 65536, 16777216)
