"""What a person would rather see: the report as one HTML page with its pictures, or the pictures as one PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.doctor.examine import Examination
from sightline.doctor.finding import Finding, Picture
from sightline.doctor.probes import PROBES
from sightline.errors import UserError
from sightline.images import image_ref, open_image
from sightline.types import Box

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_page", "write_page"]

SUFFIXES = (".html", ".png")
SIDE = 420
"""Longest side of a picture as it is shown, px."""
LEAST = 160
GAP = 14


def check_page(path: Path) -> None:
    """Refuses a name before anything is loaded.

    Raises:
        UserError: it ends in neither .html nor .png, or its folder does not exist.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"a page is called {' or '.join('*' + s for s in SUFFIXES)}", where=f"--page {path}")
    if not path.parent.is_dir():
        raise UserError("no such folder", where=f"--page {path}", hint=f"mkdir -p {path.parent}")


def write_page(path: Path, examined: Mapping[str, Examination], title: str) -> Path:
    """Writes the page.

    Args:
        path: `.html`: the table and all pictures; `.png`: the pictures alone.
        examined: by arm; "" for a recipe without arms.
        title: of the page.
    """
    if path.suffix == ".png":
        found = [p for one in examined.values() for finding in one.findings.values() for p in finding.pictures]
        if not found:
            raise UserError("no probe that ran has pictures", where=f"--page {path}", hint="--only coordinates")
        _sheet(found).save(path)
        return path
    from sightline.report.environment import digest, environment, source

    css = source("overlay.css", "doctor.css")
    page = environment().get_template("doctor.html.jinja")
    parts = [_part(name, one) for name, one in examined.items()]
    path.write_text(page.render(title=title, css=css, css_digest=digest(css), parts=parts), encoding="utf-8")
    return path


def _part(name: str, one: Examination) -> dict[str, Any]:
    return {
        "name": name,
        "counts": {level: one.count(level) for level in ("pass", "warn", "fail")},
        "rows": [_row(probe, found) for probe, found in one.findings.items()],
        "not_run": [(PROBES[probe].title, why) for probe, why in one.not_run.items()],
    }


def _row(probe: str, found: Finding) -> dict[str, Any]:
    return {
        "level": found.level, "title": PROBES[probe].title, "what": found.what, "meaning": found.meaning,
        "command": found.command, "is_typed": found.is_typed,
        "details": found.details, "pictures": [_picture(p) for p in found.pictures],
    }  # fmt: skip


def _picture(picture: Picture) -> dict[str, Any]:
    from sightline.report.overlay import STYLES

    width, height = picture.image.size
    scale = _scale(width, height)
    buffer = io.BytesIO()
    open_image(picture.image).save(buffer, format="PNG")
    shapes = [
        {"x": round(box.x1, 2), "y": round(box.y1, 2), "width": round(max(box.width, 0), 2),
         "height": round(max(box.height, 0), 2), "label": label, "style": STYLES[style], "key": style}
        for box, label, style in zip(picture.boxes, picture.labels, picture.styles, strict=True)
    ]  # fmt: skip
    return {
        "title": picture.title, "note": picture.note, "width": width, "height": height, "shapes": shapes,
        "shown": max(1, round(width * scale)),
        "source": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
    }  # fmt: skip


def _scale(width: int, height: int) -> float:
    """Large pictures are shown smaller, small ones enlarged."""
    longest = max(width, height)
    return min(SIDE / longest, max(1.0, LEAST / longest))


def _sheet(pictures: list[Picture]) -> Image.Image:
    """All pictures with their titles and notes, two in a row."""
    from PIL import Image, ImageDraw, ImageFont

    from sightline.report.overlay import draw

    font, line = ImageFont.load_default(size=14), 20
    tiles = []
    for picture in pictures:
        plain = open_image(picture.image)
        scale = _scale(*plain.size)
        shown = plain.resize((max(1, round(plain.width * scale)), max(1, round(plain.height * scale))))
        boxes = [Box(*(edge * scale for edge in box)) for box in picture.boxes]
        tiles.append(draw(image_ref(shown), boxes, styles=picture.styles))
    rows = [range(i, min(i + 2, len(tiles))) for i in range(0, len(tiles), 2)]
    heights = [max(tiles[i].height for i in row) + 2 * line + GAP for row in rows]
    sheet = Image.new("RGB", (2 * SIDE + 3 * GAP, sum(heights) + GAP), "#ffffff")
    pen, top = ImageDraw.Draw(sheet), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (SIDE + GAP)
            pen.text((left, top), pictures[i].title[:60], fill="#1d2129", font=font)
            sheet.paste(tiles[i], (left, top + line))
            pen.text((left, top + line + tiles[i].height + 2), pictures[i].note[:60], fill="#6b7280", font=font)
        top += height
    return sheet
