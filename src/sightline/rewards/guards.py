"""Signs that a policy games its reward. Metrics and alarms count them (`train/health.py`); no reward reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sightline.answers.extract import final_answer
from sightline.geometry.boxes import has_duplicates
from sightline.types import ImageRef, ReadBox, Reading, Record

__all__ = ["is_box_spam", "is_empty_answer", "is_full_image"]


def is_empty_answer(reading: Reading) -> bool:
    """The reply gives no answer, or an answer without a letter or digit.

    Example:
        >>> is_empty_answer(Reading(text="<answer> </answer>", answer="")), is_empty_answer(Reading(text="red"))
        (True, False)
    """
    return re.search(r"\w", final_answer(reading)) is None


def is_full_image(box: ReadBox, images: Sequence[ImageRef], share: float = 0.9) -> bool:
    """The box covers at least `share` of its image (original pixels), so it points at nothing.

    Args:
        box: as read; its image is a place in `images`.
        images: those of the prompt, then those added later.
        share: in [0, 1].

    Example:
        >>> from sightline.types import Box, Size, Span
        >>> whole = ReadBox(box=Box(0, 0, 10, 9.5), written=(0, 0, 10, 9), span=Span(0, 1))
        >>> is_full_image(whole, [ImageRef(size=Size(10, 10), digest="")]), is_full_image(whole, [])
        (True, False)
    """
    if not 0 <= box.image < len(images):
        return False
    size = images[box.image].size
    return box.box.area >= share * size.width * size.height


def is_box_spam(reading: Reading, record: Record, factor: int = 4, duplicate_iou: float = 0.9) -> bool:
    """The reply holds more than `factor` boxes per gold region (of at least one), or the same box twice.

    Example:
        >>> from sightline.types import Box, Span
        >>> box = ReadBox(box=Box(0, 0, 10, 10), written=(0, 0, 10, 10), span=Span(0, 1))
        >>> record = Record(id="a", question="?", answer="x")
        >>> is_box_spam(Reading(text="", boxes=(box,)), record), is_box_spam(Reading(text="", boxes=(box,) * 2), record)
        (False, True)
    """
    if len(reading.boxes) > factor * max(1, len(record.regions)):
        return True
    valid = [box for box in reading.boxes if box.is_valid]
    by_image = [[box.box for box in valid if box.image == image] for image in {box.image for box in valid}]
    return any(has_duplicates(boxes, duplicate_iou) for boxes in by_image)
