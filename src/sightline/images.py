"""Images: opening them safely, and cutting crops that always lie inside.

An `ImageRef` is an image before it is opened. What is opened is RGB, turned upright by its EXIF orientation, with
transparent parts on white; 16-bit grey is scaled to 8 bits. Pillow's guard against decompression bombs stays on.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from sightline.errors import UserError
from sightline.geometry.boxes import repair
from sightline.types import Box, ImageRef, Size

if TYPE_CHECKING:
    import PIL.Image

__all__ = [
    "MIN_SIDE",
    "blank",
    "crop",
    "crop_box",
    "cut_out",
    "fitted",
    "image_ref",
    "image_size",
    "open_image",
    "resample",
]

MIN_SIDE = 28
"""Default least side of a crop, in original pixels: one visual token of Qwen2.5-VL."""

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders raise on damaged files, by format."""

_WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def open_image(ref: ImageRef) -> PIL.Image.Image:
    """The upright RGB image.

    Raises:
        UserError: names the path if the file is missing, damaged, too large, or of another size than the ref says.
    """
    import PIL.Image

    if ref.pixels is not None:
        return PIL.Image.fromarray(ref.pixels)
    if ref.path is None:
        raise UserError("an image needs a path or pixels", where=f"image {ref.digest}")
    image = _decode(ref.path, ref.path)
    if image.size != tuple(ref.size):
        raise UserError(
            f"the image is {image.width}x{image.height} pixels, expected {ref.size[0]}x{ref.size[1]}",
            where=ref.path,
            hint="boxes refer to the expected size; correct the declared size or restore the file",
        )
    return image


def image_ref(source: str | os.PathLike[str] | bytes | np.ndarray | PIL.Image.Image) -> ImageRef:
    """A reference to an image file (by path), to an encoded image (bytes), or to pixels (array or Pillow image).

    A path is read for its digest and size and is not kept in memory; everything else is held as pixels. Arrays are
    uint8 of shape (height, width), (height, width, 1), (height, width, 3) or (height, width, 4).

    Raises:
        UserError: the file is missing or damaged, or the array is not an image.
    """
    if isinstance(source, (str, os.PathLike)):
        return _file_ref(os.path.expanduser(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        pixels = np.asarray(_decode(io.BytesIO(data), "image data"))
        return _held(pixels, hashlib.sha256(data).hexdigest())
    if isinstance(source, np.ndarray):
        pixels = _array_pixels(source)
    else:
        pixels = np.asarray(_loaded(source))
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return _held(pixels, digest.hexdigest())


def image_size(source: str | bytes) -> Size:
    """Width and height as stored (not turned upright), from the header alone: of a file (by path) or encoded image.

    Raises:
        UserError: the file is missing, or is no image that can be opened.
    """
    import PIL.Image

    where = source if isinstance(source, str) else "image data"
    try:
        with PIL.Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
            return Size(*image.size)
    except (PIL.Image.DecompressionBombError, *_DAMAGED) as error:
        _refuse(error, where)


def crop_box(box: Box, size: Size, padding: float = 0.0, min_side: int = MIN_SIDE) -> Box:
    """The integer rectangle to cut out for a box: inside the image, at least `min_side` where the image allows.

    The box is ordered and clamped, widened by `padding` of its side on each side, rounded outwards, and grown about
    its middle to `min_side`; what would stick out is shifted back inside.

    Args:
        box: original pixels, any order, any place.
        size: original size of the image.
        padding: margin on each side as a share of that side of the box.
        min_side: least width and height, px.

    Example:
        >>> crop_box(Box(0, 0, 4, 4), Size(640, 480), padding=0.1, min_side=28)
        Box(x1=0, y1=0, x2=28, y2=28)
    """
    x1, y1, x2, y2 = repair(box, size).box
    left, right = _interval(x1, x2, size[0], padding, min_side)
    top, bottom = _interval(y1, y2, size[1], padding, min_side)
    return Box(left, top, right, bottom)


def crop(image: PIL.Image.Image | ImageRef, box: Box, padding: float = 0.0, min_side: int = MIN_SIDE) -> ImageRef:
    """The part of the original image that `crop_box` names, held in memory."""
    opened = open_image(image) if isinstance(image, ImageRef) else _loaded(image)
    left, top, right, bottom = crop_box(box, Size(*opened.size), padding, min_side)
    return image_ref(opened.crop((int(left), int(top), int(right), int(bottom))))


def cut_out(image: PIL.Image.Image | ImageRef, box: Box, size: Size | None = None) -> ImageRef:
    """The part of the original image in a rectangle of whole pixels, held in memory.

    Args:
        image: the original.
        box: whole pixels; what lies beyond the border is black.
        size: the size to resample the part to; None keeps it.
    """
    opened = open_image(image) if isinstance(image, ImageRef) else _loaded(image)
    left, top, right, bottom = (int(side) for side in box)
    part = opened.crop((left, top, right, bottom))
    return image_ref(part if size is None else resample(part, size))


def blank(size: Size) -> ImageRef:
    """A grey picture, held in memory.

    Example:
        >>> blank(Size(40, 30)).size
        Size(width=40, height=30)
    """
    return image_ref(np.full((int(size[1]), int(size[0]), 3), 127, dtype=np.uint8))


def fitted(size: Size, min_pixels: int | None = None, max_pixels: int | None = None) -> Size:
    """A size of the same shape whose area lies within the budget, both sides rounded towards it; at least 1 x 1.

    Example:
        >>> fitted(Size(20, 10), min_pixels=800), fitted(Size(300, 100), max_pixels=3000), fitted(Size(20, 10))
        (Size(width=40, height=20), Size(width=94, height=31), Size(width=20, height=10))
    """
    width, height = size
    area = width * height
    if min_pixels is not None and area < min_pixels:
        grow = math.sqrt(min_pixels / area)
        return Size(math.ceil(width * grow), math.ceil(height * grow))
    if max_pixels is not None and area > max_pixels:
        shrink = math.sqrt(max_pixels / area)
        return Size(max(math.floor(width * shrink), 1), max(math.floor(height * shrink), 1))
    return Size(*size)


def resample(image: PIL.Image.Image, size: Size) -> PIL.Image.Image:
    """The image at another size, bicubic."""
    import PIL.Image

    return image.resize((int(size[0]), int(size[1])), PIL.Image.Resampling.BICUBIC)


def _interval(low: float, high: float, limit: int, padding: float, min_side: int) -> tuple[int, int]:
    margin = padding * (high - low)
    first, last = math.floor(max(low - margin, 0.0)), math.ceil(min(high + margin, float(limit)))
    missing = min(max(min_side, 1), limit) - (last - first)
    if missing > 0:
        first -= missing // 2
        last = first + min(max(min_side, 1), limit)
    shift = max(-first, 0) - max(last - limit, 0)
    return first + shift, last + shift


def _file_ref(name: str) -> ImageRef:
    import PIL.Image

    path = Path(name)
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # the latter: a name that no file can have
        _refuse(error, str(path))
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            is_turned = image.getexif().get(_ORIENTATION) in _TURNED
            width, height = image.size
    except (PIL.Image.DecompressionBombError, *_DAMAGED) as error:
        _refuse(error, str(path))
    size = Size(height, width) if is_turned else Size(width, height)
    return ImageRef(size=size, digest=hashlib.sha256(data).hexdigest(), path=str(path))


def _decode(source: str | io.BytesIO, where: str) -> PIL.Image.Image:
    import PIL.Image

    try:
        with PIL.Image.open(source) as image:
            return _upright(image)
    except (PIL.Image.DecompressionBombError, *_DAMAGED) as error:
        _refuse(error, where)


def _loaded(image: PIL.Image.Image) -> PIL.Image.Image:
    """A Pillow image of the caller, which may still have to be read from its file."""
    try:
        return _upright(image)
    except _DAMAGED as error:
        _refuse(error, str(getattr(image, "filename", "") or "image"))


def _refuse(error: Exception, where: str) -> NoReturn:
    import PIL.Image

    if isinstance(error, FileNotFoundError):
        raise UserError("the image does not exist", where=where, hint="check the path and the image root") from error
    if isinstance(error, OSError) and error.strerror:
        raise UserError(f"the image cannot be read: {error.strerror}", where=where) from error
    if "\0" in where:
        raise UserError("the name of the image holds a NUL character", where=repr(where)) from error
    if isinstance(error, PIL.Image.DecompressionBombError):
        raise UserError(f"the image is too large to open safely: {error}", where=where) from error
    if isinstance(error, PIL.UnidentifiedImageError):
        raise UserError("the file is not an image that can be read", where=where) from error
    raise UserError(f"the image is damaged: {error}", where=where, hint="restore or remove the file") from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    import PIL.Image
    import PIL.ImageOps

    image = _eight_bits(PIL.ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", image.size, _WHITE)
        return PIL.Image.alpha_composite(ground, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Grey images of more than 8 bits, scaled; Pillow's own conversion would cut them off at 255."""
    import PIL.Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=255.0, neginf=0.0)
    if image.mode.startswith("I;16") or values.max() > 255:
        values = values / 257.0
    return PIL.Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _array_pixels(array: np.ndarray) -> np.ndarray:
    import PIL.Image

    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not is_image or 0 in array.shape:
        raise UserError(
            f"an array of {array.dtype} and shape {array.shape} is not an image",
            hint="uint8 of shape (height, width, 3)",
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return np.asarray(_upright(PIL.Image.fromarray(np.ascontiguousarray(array))))


def _held(pixels: np.ndarray, digest: str) -> ImageRef:
    pixels = np.ascontiguousarray(pixels).copy()
    pixels.setflags(write=False)
    return ImageRef(size=Size(pixels.shape[1], pixels.shape[0]), digest=digest, pixels=pixels)
