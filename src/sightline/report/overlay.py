"""Boxes drawn on a picture: as pixels with PIL, or as a self-contained HTML page with hover texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.types import Box, ImageRef

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

__all__ = ["STYLES", "Style", "draw", "html"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a box is drawn. Widths and dashes are in units that grow with the picture (1 = about 1/250 of its side)."""

    colour: str
    width: float = 1.5
    dash: float = 0.0


STYLES: dict[str, Style] = {
    "predicted": Style("#0d9488", width=1.6),
    "gold": Style("#e0a100", width=0.8),
    "reference": Style("#a855f7", width=1.2, dash=4),
}


def draw(
    image: Image.Image | ImageRef | str | Path,
    boxes: Sequence[Box],
    labels: Sequence[str] = (),
    styles: Sequence[str | Style] = (),
) -> Image.Image:
    """The picture, upright, in RGB and at its own resolution, with boxes drawn on it.

    Args:
        image: any picture; EXIF rotation is applied and transparency laid on white.
        boxes: in pixels of the upright picture; parts outside are cut off.
        labels: one short text per box, or none.
        styles: a name out of `STYLES` or a `Style` per box; `predicted` where none is given.
    """
    from PIL import ImageDraw

    canvas = _opened(image).copy()
    pen = ImageDraw.Draw(canvas)
    unit = max(1.0, min(max(canvas.size) / 250, min(canvas.size) / 20))
    for i, box in enumerate(boxes):
        style = _style(styles, i)
        _outline(pen, box, style, unit)
    for i, box in enumerate(boxes):
        if i < len(labels) and labels[i]:
            _tag(pen, box, labels[i], _style(styles, i), unit, canvas.size)
    return canvas


def html(
    image: Image.Image | ImageRef | str | Path,
    boxes: Sequence[Box],
    labels: Sequence[str] = (),
    styles: Sequence[str | Style] = (),
    *,
    title: str = "sightline ask",
    texts: Sequence[tuple[str, str]] = (),
    crops: Sequence[tuple[str, ImageRef]] = (),
) -> str:
    """One HTML page, no network: the picture at its own resolution, boxes with hover texts.

    Args:
        image, boxes, labels, styles: as for `draw`.
        title: of the page.
        texts: (name, text) pairs above the picture.
        crops: (label, pixels) pairs shown beside it; a crop and the box with the same label point at each other.
    """
    from sightline.report.environment import digest, environment, source

    canvas = _opened(image)
    style = source("overlay.css")
    anchors = {label: f"crop-{number}" for number, (label, _) in enumerate(crops, start=1)}
    shapes = [
        _shape(Box(*box), labels[i] if i < len(labels) else "", _style(styles, i), anchors)
        for i, box in enumerate(boxes)
    ]
    return (
        environment()
        .get_template("overlay.html.jinja")
        .render(
            title=title,
            css=style,
            css_digest=digest(style),
            picture=_png(canvas),
            width=canvas.width,
            height=canvas.height,
            shapes=shapes,
            texts=texts,
            crops=[
                {"anchor": anchors[label], "label": label, "picture": _png(_opened(crop)), "size": crop.size}
                for label, crop in crops
            ],
        )
    )


def _shape(box: Box, label: str, style: Style, anchors: Mapping[str, str]) -> dict[str, Any]:
    """A box as the page draws it, tied to the crop of the same label."""
    width, height = max(box.width, 0.0), max(box.height, 0.0)
    place = {"x": round(box.x1, 2), "y": round(box.y1, 2), "width": round(width, 2), "height": round(height, 2)}
    return {**place, "label": label, "style": style, "anchor": anchors.get(label, "")}


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _opened(image: Any) -> Image.Image:
    from sightline.images import image_ref, open_image

    return open_image(image if isinstance(image, ImageRef) else image_ref(image))


def _style(styles: Sequence[str | Style], i: int) -> Style:
    style = styles[i] if i < len(styles) else "predicted"
    return style if isinstance(style, Style) else STYLES.get(style, STYLES["predicted"])


def _outline(pen: ImageDraw.ImageDraw, box: Box, style: Style, unit: float) -> None:
    x1, y1, x2, y2 = Box(*box)
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    width = max(1, round(style.width * unit))
    halo = width + max(1, round(unit / 2)) * 2 if min(x2 - x1, y2 - y1) > 6 * width else width
    for colour, thick in (("#ffffff", halo), (style.colour, width)):
        if thick == width and colour == "#ffffff":
            continue
        inset = (thick - width) / 2
        if not style.dash or colour == "#ffffff":
            pen.rectangle((x1 - inset, y1 - inset, x2 + inset, y2 + inset), outline=colour, width=thick)
        else:
            _dashed(pen, (x1, y1, x2, y2), style, unit, width)


def _dashed(pen: ImageDraw.ImageDraw, edge: tuple[float, ...], style: Style, unit: float, width: int) -> None:
    x1, y1, x2, y2 = edge
    length = max(2.0, style.dash * unit)
    for (ax, ay), (bx, by) in (
        ((x1, y1), (x2, y1)),
        ((x2, y1), (x2, y2)),
        ((x2, y2), (x1, y2)),
        ((x1, y2), (x1, y1)),
    ):
        side = max(abs(bx - ax), abs(by - ay))
        for k in range(int(side // (2 * length)) + 1):
            start, end = 2 * k * length / max(side, 1e-9), min((2 * k + 1) * length / max(side, 1e-9), 1.0)
            dx, dy = bx - ax, by - ay
            points = (ax + dx * start, ay + dy * start, ax + dx * end, ay + dy * end)
            pen.line(points, fill=style.colour, width=width)


def _tag(pen: ImageDraw.ImageDraw, box: Box, label: str, style: Style, unit: float, size: tuple[int, int]) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=max(8.0, 5 * unit))
    text = "".join(c if c.isprintable() else " " for c in label)[:80]
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(1, round(unit))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    if width > size[0] or height > size[1]:
        return  # no room for a text on so small a picture
    x = min(max(0.0, min(box[0], box[2])), size[0] - width)
    y = min(box[1], box[3]) - height
    y = y if y >= 0 else min(max(0.0, min(box[1], box[3])), size[1] - height)
    pen.rectangle((x, y, x + width, y + height), fill=style.colour)
    pen.text((x + pad - left, y + pad - top), text, fill="#ffffff", font=font)
