"""Where a reply looked: attention as colours over the picture, of the whole reply as pixels, of each token as a page.

A visual cell is a rectangle of the original image: cell (i, j) of a grid of R rows and C columns covers x from j W / C
to (j + 1) W / C and y from i H / R to (i + 1) H / R, whatever resize the policy's frame did.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.images import image_ref, open_image
from sightline.report.colours import ramp, ramp_codes
from sightline.report.maps import pack_map
from sightline.report.overlay import STYLES, Style, draw
from sightline.types import Box, ImageRef, Rollout

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from PIL import Image

    from sightline.geometry.frames import Frame

__all__ = ["OPACITY", "heat_map", "heat_page", "mean_maps", "side_by_side"]

OPACITY = 0.64
"""Of the colours over the picture, which is shown in grey."""

_MOST_VALUES = 8_000_000  # about ten megabytes in a page


def heat_map(
    image: Image.Image | ImageRef | str | Path,
    weights: Float[np.ndarray, "rows columns"],
    boxes: Sequence[Box] = (),
    labels: Sequence[str] = (),
    styles: Sequence[str | Style] = (),
) -> Image.Image:
    """The picture in grey under the colours of its cells, at its own resolution, with boxes drawn on it.

    Args:
        image: any picture; EXIF rotation is applied and transparency laid on white.
        weights: attention to each visual cell, not negative; the largest takes the brightest colour.
        boxes, labels, styles: as for `overlay.draw`.
    """
    from PIL import Image as Images

    picture = open_image(image if isinstance(image, ImageRef) else image_ref(image))
    values = np.maximum(np.nan_to_num(np.asarray(weights, dtype=np.float64)), 0.0)
    levels = np.round(255 * values / (values.max(initial=0.0) or 1.0)).astype(np.uint8)
    down, across = _cell_of(picture.height, values.shape[0]), _cell_of(picture.width, values.shape[1])
    colours = Images.fromarray(ramp()[levels][down][:, across])
    return draw(Images.blend(picture.convert("L").convert("RGB"), colours, OPACITY), boxes, labels, styles)


def mean_maps(
    rollout: Rollout, weights: Float[np.ndarray, "tokens visual"], frame: Frame
) -> list[Float[np.ndarray, "rows columns"]]:
    """The mean over the sampled tokens, one map for each image of the prompt."""
    mean = weights[rollout.sampled].mean(axis=0) if rollout.sampled.any() else np.zeros(weights.shape[1])
    grids = [frame.cells(image.size) for image in rollout.prompt.images]
    ends = np.cumsum([rows * columns for rows, columns in grids])
    return [part.reshape(grid) for part, grid in zip(np.split(mean, ends[:-1]), grids, strict=True)]


def side_by_side(*pictures: Image.Image) -> Image.Image:
    """Pictures in a row, their tops level, on white."""
    from PIL import Image as Images

    gap = max(2, round(max(max(picture.size) for picture in pictures) / 60))
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Images.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        canvas.paste(picture, (x, 0))
        x += picture.width + gap
    return canvas


def heat_page(
    rollout: Rollout,
    weights: Float[np.ndarray, "tokens visual"],
    pieces: Sequence[str],
    frame: Frame,
    *,
    boxes: Sequence[Box] = (),
    labels: Sequence[str] = (),
    styles: Sequence[str | Style] = (),
    image: int = 0,
    title: str = "sightline ask",
    texts: Sequence[tuple[str, str]] = (),
) -> str:
    """One HTML page, no network: the pictures, and the reply whose words show, under the pointer, where they looked.

    Args:
        rollout: what was asked and answered.
        weights: attention of each token of `rollout.ids` to the visual tokens of the prompt's images.
        pieces: the text of each token.
        frame: knows the grid of each image.
        boxes, labels, styles: as for `overlay.draw`, on image number `image` of the prompt.
        title, texts: head of the page, and (name, text) lines below it.
    """
    from sightline.report.environment import digest, environment, json_block, source

    style, script = source("overlay.css", "look.css"), source("dom.js", "heat.js", "look.js")
    grids = [frame.cells(image.size) for image in rollout.prompt.images]
    data = {
        "images": [_picture(image) for image in rollout.prompt.images],
        "map": pack_map(np.where(rollout.sampled[:, None], weights, 0.0), grids, _MOST_VALUES),
        "tokens": list(pieces),
        "turns": _turns(rollout),
        "boxes": [
            {"box": [float(side) for side in box], "label": labels[i] if i < len(labels) else "", **_stroke(styles, i)}
            for i, box in enumerate(boxes)
        ],
        "boxed": image,
        "ramp": ramp_codes(),
    }
    template = environment().get_template("look.html.jinja")
    return template.render(
        title=title,
        texts=texts,
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
        data=json_block(data),
    )


def _cell_of(pixels: int, cells: int) -> Int[np.ndarray, "pixels"]:
    """The cell that holds the centre of each pixel."""
    return ((np.arange(pixels) + 0.5) * cells / pixels).astype(np.int64)


def _picture(image: ImageRef) -> dict[str, Any]:
    buffer = io.BytesIO()
    open_image(image).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"source": source, "width": image.size.width, "height": image.size.height}


def _turns(rollout: Rollout) -> list[dict[str, Any]]:
    """Tokens of the policy's turns; a turn of the user by its text and the images it added."""
    if not rollout.turns:
        return [{"role": "assistant", "span": [0, len(rollout.ids)], "text": "", "images": []}]
    images = (*rollout.prompt.images, *rollout.images)
    return [
        {
            "role": turn.role,
            "span": list(turn.span),
            "text": turn.text,
            "images": [_picture(images[index]) for index in turn.images],
        }
        for turn in rollout.turns
    ]


def _stroke(styles: Sequence[str | Style], i: int) -> dict[str, Any]:
    style = styles[i] if i < len(styles) else "predicted"
    known = style if isinstance(style, Style) else STYLES[style]
    return {"colour": known.colour, "width": 1.5 * known.width, "dash": 1.5 * known.dash}
