"""Rows of GRIT and its relatives, one JSON object per line.

Columns: `question`, `answer`, `image` (a relative path), `width`, `height`, `bboxs` (a list of `[x1, y1, x2, y2]`,
pixels of the original image; may be missing), `dataset`, `split`, `key_words`.
`dataset` and `split` are kept in `meta`: rewards and metrics go by them row by row. An answer of yes or no, or a
number in a counting set, says how answers are compared. Width and height are read from the image itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.errors import UserError
from sightline.rewards.counting import COUNT_SETS

__all__ = ["read"]


def read(row: Mapping[str, Any]) -> dict[str, Any]:
    """Maps one row.

    Raises:
        UserError: no question, answer or image, or `bboxs` is no list.
    """
    for key in ("question", "answer", "image"):
        if row.get(key) is None:
            raise UserError("missing", where=key)
    boxes = row.get("bboxs")
    if boxes is not None and not isinstance(boxes, list):
        raise UserError(f"expected a list of boxes, got {boxes!r}", where="bboxs")
    kept = {key: row[key] for key in ("dataset", "split", "key_words") if row.get(key) is not None}
    is_count = kept.get("dataset") in COUNT_SETS
    return {
        **({"id": row["id"]} if row.get("id") is not None else {}),
        "question": row["question"],
        "answer": str(row["answer"]),
        **({"answer_kind": "number"} if is_count else {}),
        "images": [row["image"]],
        "regions": [{"box": box} for box in boxes or ()],
        "frame": "original_px",
        "meta": {**kept, **({"type": "count"} if is_count else {})},
    }
