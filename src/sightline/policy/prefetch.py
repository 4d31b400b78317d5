"""Images prepared ahead by worker threads: decoded, resized and cut into patches while something else runs.

What is prepared is what `Pixels` would prepare itself, by the same code, so results are the same; only the time at
which it happens differs. What is ready goes into the cache of `Pixels` when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.policy.pixels import Pixels
    from sightline.types import ImageRef

__all__ = ["Prefetch"]


class Prefetch:
    """Worker threads in front of `Pixels`.

    Args:
        pixels: whose images are prepared.
        workers: threads; 0 prepares nothing ahead.
    """

    def __init__(self, pixels: Pixels, workers: int) -> None:
        self._pixels = pixels
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pixels") if workers else None

    @property
    def is_on(self) -> bool:
        """Whether there are threads."""
        return self._pool is not None

    def start(self, images: Iterable[ImageRef]) -> int:
        """Begins with the distinct images that are neither ready nor under way.

        The cache grows to hold them and as many more, within its limit; no more is begun than half of it holds.

        Returns:
            How many were begun.
        """
        if self._pool is None:
            return 0
        begun, distinct = 0, list({image.digest: image for image in images}.values())
        self._pixels.reserve(distinct)
        for image in distinct:
            if not self._pixels.has_room(image):
                break
            if self._pixels.expects(image):
                continue
            self._pixels.expect(image, self._pool.submit(self._pixels.prepared, image))
            begun += 1
        return begun

    def close(self) -> None:
        """Ends the threads; what has not begun is prepared where it is used."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
