"""Pictures inside a page: thumbnails as data URIs, re-encoded only as far as a budget of bytes asks for."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

__all__ = ["data_uri", "data_uris"]

_ATTEMPTS = ((640, 85), (480, 80), (360, 75), (256, 65), (160, 55))


def data_uris(paths: Mapping[str, Path], budget: int) -> dict[str, str]:
    """All pictures in `budget` bytes, as far as that is possible; what a small one leaves, the larger ones share."""
    found = {}
    left = budget
    order = sorted(paths, key=lambda key: paths[key].stat().st_size)
    for i, key in enumerate(order):
        share = max(0, left) // (len(order) - i)
        picture = data_uri(paths[key], share)
        if picture:
            found[key] = picture
            left -= len(picture) * 3 // 4
    return {key: found[key] for key in paths if key in found}


def data_uri(path: Path, budget: int) -> str | None:
    """The picture as a data URI: the PNG itself if it fits into `budget` bytes, else the best JPEG that does.

    The smallest attempt is taken even if it does not fit; None if the file is no picture.
    """
    data = path.read_bytes()
    if len(data) <= budget:
        return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    data = _smaller(data, budget)
    return None if data is None else "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _smaller(data: bytes, budget: int) -> bytes | None:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None
    best = b""
    for side, quality in _ATTEMPTS:
        small = picture.copy()
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=quality, optimize=True)
        best = buffer.getvalue()
        if len(best) <= budget:
            break
    return best
