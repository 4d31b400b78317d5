"""Rows of Ground-R1 as its authors publish them (JSONL, after Visual-CoT).

Keys: `image` (path), `width`, `height`, `bboxs` (boxes in pixels of the original image), `dataset`, `split`, `problem`,
`solution` (plain text, or `<answer>B</answer>`), `problem_id`. The sizes of the resized image that training rows also
carry are not needed: they follow from the policy. The data set decides the kind of the answer here, once; `dataset`
stays in `meta`, where `answers: release` looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sightline.errors import UserError
from sightline.rewards.ground_r1_release import RELEASE_RULES

__all__ = ["read"]

KINDS: Mapping[str, str] = {"letter": "option", "transcription": "text_ocr", "caption": "free", "math": "math"}
"""Kind of the answers that a released rule scores; where none stands here the answer itself decides."""


def read(row: Mapping[str, Any]) -> dict[str, Any]:
    """Maps one row."""
    for key in ("problem", "solution", "image"):
        if row.get(key) is None:
            raise UserError("missing", where=key)
    answer = _bare(str(row["solution"]))
    dataset = row.get("dataset")
    kind = KINDS.get(RELEASE_RULES.get(str(dataset), "")) or _kind(str(dataset), answer)
    kept = {"dataset": dataset, "split": row.get("split")}
    identity = row.get("id", row.get("problem_id"))
    return {
        **({"id": str(identity)} if identity is not None else {}),
        **({"answer_kind": kind} if kind else {}),
        "question": row["problem"],
        "answer": answer,
        "images": [row["image"]],
        "regions": [{"box": box} for box in _boxes(row.get("bboxs"))],
        "frame": "original_px",
        "meta": {key: value for key, value in kept.items() if value is not None},
    }


def _bare(solution: str) -> str:
    found = re.search(r"<answer>(.*?)</answer>", solution, re.DOTALL)
    return (found[1] if found else solution).strip()


def _kind(dataset: str, answer: str) -> str | None:
    """Of the toolbox set, which mixes kinds: yes or no by the first word, single letters, else sentences."""
    if RELEASE_RULES.get(dataset) != "toolbox":
        return None
    if re.match(r"(?:yes|no)\b", answer, re.IGNORECASE):
        return "yes_no"
    return "option" if re.fullmatch(r"[A-D]", answer) else "free"


def _boxes(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"expected a list of boxes, got {value!r}", where="bboxs")
    return value
