"""A contact sheet of a data file: one self-contained HTML page, boxes drawn on the pictures.

Rows are untrusted text: the template escapes everything, the page runs no script and may load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from sightline.types import ImageRef, Record, Size

__all__ = ["preview_html", "write_preview"]

MAX_SIDE = 480
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; background: #f4f4f2; color: #1b1b1b; }
header { padding: 1rem 1.5rem; background: #fff; border-bottom: 1px solid #ddd; }
h1 { font-size: 1.1rem; margin: 0 0 .2rem; } header p { margin: 0; color: #555; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; padding: 1rem 1.5rem; }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .8rem; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; background: #ddd; margin-bottom: .4rem; }
rect { fill: none; vector-effect: non-scaling-stroke; stroke-width: 2px; }
text { paint-order: stroke; stroke: #fff; stroke-width: 3px; font-weight: 600; }
h2 { font-size: .8rem; color: #666; margin: 0 0 .5rem; font-weight: 500; } p { margin: .3rem 0; }
ol { margin: .3rem 0; padding-left: 1.6rem; list-style: upper-alpha; } .answer { font-weight: 650; }
ul { margin: .3rem 0; padding-left: 1.1rem; color: #444; font-size: .85rem; }
"""

TEMPLATE = "preview.html.jinja"


def preview_html(records: Iterable[Record], *, title: str, total: int | None = None) -> str:
    """The page as text. `total` is the number of records in the file, if more than are shown."""
    import jinja2

    cards = [_card(record) for record in records]
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    page = (resources.files("sightline.data") / TEMPLATE).read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(page)
    return template.render(
        cards=cards, title=title, total=len(cards) if total is None else total, style=STYLE, hash=digest
    )


def write_preview(
    records: Iterable[Record], path: str | Path, *, title: str = "records", total: int | None = None
) -> Path:
    """Writes the page and returns its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(preview_html(records, title=title, total=total), encoding="utf-8")
    return target


def _card(record: Record) -> Mapping[str, Any]:
    pictures = [_picture(image, record, number) for number, image in enumerate(record.images)]
    return {
        "id": record.id,
        "kind": record.answer_kind,
        "question": record.question,
        "answer": record.answer,
        "options": record.options,
        "pictures": pictures,
        "regions": [_line(record, index) for index in range(len(record.regions))],
    }


def _line(record: Record, index: int) -> str:
    region = record.regions[index]
    numbers = ", ".join(f"{number:g}" for number in region.box)
    where = f" on image {region.image}" if len(record.images) > 1 else ""
    return f"{index + 1}: [{numbers}] {region.label or ''} ({region.role}){where}"


def _picture(image: ImageRef, record: Record, number: int) -> Mapping[str, Any]:
    return {
        "url": _data_url(image),
        "width": image.size.width,
        "height": image.size.height,
        "font": max(image.size) / 22,
        "marks": _marks(record, number, image.size),
    }


def _marks(record: Record, number: int, size: Size) -> Sequence[Mapping[str, Any]]:
    marks = []
    for index, region in enumerate(record.regions):
        if region.image == number:
            box = region.box
            marks.append(
                {
                    "x": f"{box.x1:.2f}",
                    "y": f"{box.y1:.2f}",
                    "width": f"{max(box.width, 0):.2f}",
                    "height": f"{max(box.height, 0):.2f}",
                    "text_y": f"{max(box.y1 - max(size) / 90, max(size) / 24):.2f}",
                    "color": COLORS[index % len(COLORS)],
                    "number": index + 1,
                    "title": _line(record, index),
                }
            )
    return marks


def _data_url(image: ImageRef) -> str:
    from sightline.images import open_image, resample

    picture = open_image(image)
    scale = min(1.0, MAX_SIDE / max(picture.size))
    if scale < 1:
        picture = resample(picture, Size(max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
