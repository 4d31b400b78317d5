"""The embedded world: procedural images whose answer hangs on a small detail, and a policy that trains in minutes."""

from sightline.scenes.stream import record_at, stream
from sightline.scenes.truth import claims, right_region

__all__ = ["claims", "record_at", "right_region", "stream"]
