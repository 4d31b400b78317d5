"""An answered question for people: coloured text, one JSON row, a picture with the boxes drawn on it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sightline.errors import UserError
from sightline.types import Box

if TYPE_CHECKING:
    from rich.text import Text

    from sightline.sampling.modes import ModeResult

__all__ = ["Marks", "file_stems", "marks", "printable", "result_row", "save_picture", "verdict"]


def printable(text: str) -> str:
    """The text without the control characters that a terminal would obey.

    Example:
        >>> printable("a\\x1b[2Jb\\n")
        'a[2Jb\\n'
    """
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def verdict(result: ModeResult) -> Text:
    """The answer, the boxes in pixels of the original image, and what went differently than asked."""
    from rich.text import Text

    said = printable(result.answer)
    shown = Text.assemble(("answer: ", "bold"), (said or "none", "bold green"))
    for number, found in enumerate(result.boxes, start=1):
        state = "" if found.is_valid else "  (not a box inside the image)"
        shown.append(f"\nbox {number}: {[round(side, 1) for side in found.box]} px{state}", "cyan")
    for name, crop in zip(_crop_names(result), result.crops, strict=True):
        shown.append(f"\n{name}: {[round(side) for side in crop.box]} px", "magenta")
    if result.note:
        shown.append(f"\nnote: {result.note}", "yellow")
    return shown


def result_row(result: ModeResult, seconds: float) -> dict[str, Any]:
    """The result as data: boxes and crops in pixels of the original images."""
    return {
        "id": result.record.id,
        "question": result.record.question,
        "mode": result.mode,
        "answer": result.answer,
        "texts": [turn.text for reading in result.readings for turn in (reading.turns or (reading,))],
        "boxes": [
            {"box": [round(side, 2) for side in b.box], "image": b.image, "is_valid": b.is_valid} for b in result.boxes
        ],
        "crops": [{"box": list(c.box), "image": c.image, "turn": c.turn, "is_union": c.is_union} for c in result.crops],
        "note": result.note,
        "seconds": round(seconds, 3),
    }


def file_stems(ids: Iterable[str]) -> list[str]:
    """A file name without suffix for each id, all different; an id is data and may not lead out of the folder.

    Example:
        >>> file_stems(["kitchen-17", "../evil", "a/b", "a b"])
        ['kitchen-17', 'evil', 'a-b', 'a-b-2']
    """
    stems: list[str] = []
    taken: set[str] = set()
    for identity in ids:
        plain = stem = re.sub(r"[^\w.-]+", "-", identity, flags=re.ASCII).strip(".-")[:100] or "record"
        number = 1
        while stem.lower() in taken:
            number += 1
            stem = f"{plain}-{number}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems


class Marks(NamedTuple):
    """What is drawn on the first image: boxes solid, crops dashed."""

    boxes: list[Box]
    labels: list[str]
    styles: list[str]


def marks(result: ModeResult) -> Marks:
    """The boxes of a reply and the rectangles that were cut out, on the first image.

    Raises:
        UserError: the record has no image.
    """
    if not result.record.images:
        raise UserError("there is no image to draw on", where=f"record {result.record.id}")
    boxes = [found.box for found in result.boxes if found.is_valid and found.image == 0]
    crops = [(name, crop) for name, crop in zip(_crop_names(result), result.crops, strict=True) if crop.image == 0]
    labels = [*(f"box {i}" for i, _ in enumerate(boxes, start=1)), *(name for name, _ in crops)]
    styles = ["predicted"] * len(boxes) + ["reference"] * len(crops)
    return Marks([*boxes, *(crop.box for _, crop in crops)], labels, styles)


def save_picture(result: ModeResult, path: Path) -> Path:
    """Draws boxes (solid) and crops (dashed) on the first image; `.html` also holds the texts and the crops' pixels."""
    from sightline.report.overlay import draw, html

    drawn = marks(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        replies = [turn.text for reading in result.readings for turn in (reading.turns or (reading,))]
        texts = [("question", result.record.question), *(("reply", text) for text in replies)]
        texts += [("answer", result.answer or "none"), *([("note", result.note)] if result.note else [])]
        cut = [(name, crop.pixels) for name, crop in zip(_crop_names(result), result.crops, strict=True)]
        page = html(result.record.images[0], *drawn, texts=texts, crops=cut)
        path.write_text(page, encoding="utf-8")
    else:
        draw(result.record.images[0], *drawn).save(path)
    return path


def _crop_names(result: ModeResult) -> list[str]:
    """A short name for each crop: its number, and its image where that is not the first."""
    names = ["union" if crop.is_union else f"crop {number}" for number, crop in enumerate(result.crops, start=1)]
    return [
        name if crop.image == 0 else f"{name} of image {crop.image + 1}"
        for name, crop in zip(names, result.crops, strict=True)
    ]
