"""Images as servers take them: resized here, by the policy's own image processor, and sent as PNG.

A server resizes with an implementation of its own, whose pixels may differ in the last bit. An image that already has
its final size is left as it is on the way in, so that both sides see the same pixels.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.types import ImageRef

__all__ = ["PictureBook"]


class PictureBook:
    """Data URIs of images, the most recent ones kept; used by many threads.

    Args:
        policy: its image processor resizes.
        capacity: how many megabytes of text to keep.
    """

    def __init__(self, policy: Policy, capacity: float = 256.0) -> None:
        self.policy = policy
        self._capacity = int(capacity * 2**20)
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def uri(self, image: ImageRef) -> str:
        """The image at its final size, as a `data:` address."""
        with self._lock:
            if image.digest in self._kept:
                self._kept.move_to_end(image.digest)
                return self._kept[image.digest]
        found = "data:image/png;base64," + base64.b64encode(self._png(image)).decode("ascii")
        with self._lock:
            if image.digest not in self._kept:
                self._kept[image.digest] = found
                self._bytes += len(found)
            while self._bytes > self._capacity and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return found

    def _png(self, image: ImageRef) -> bytes:
        from PIL.Image import Resampling

        from sightline.images import open_image

        opened = open_image(image)
        size = self.policy.frame.resized(image.size)
        if opened.size != size:
            resample = Resampling(int(self.policy.pixels.processor.resample))
            opened = opened.resize(size, resample)
        out = io.BytesIO()
        opened.save(out, "PNG", compress_level=1)
        return out.getvalue()
