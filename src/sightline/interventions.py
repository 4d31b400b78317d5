"""Changes to images that ask what depends on them, each with a record of what was done where.

A change happens on the image as the model sees it, after the resize to its grid, so that the number of visual tokens
and their positions stay the same and log-probs of the same tokens can be compared::

    changed = intervene(record.images, record.regions, frame, Intervention("region_mask"), key=(seed, step, record.id))
    changed.images          # one image of the same grid for each
    changed.provenance      # what was done where, and to which share of the pixels

All chance comes from `key`: the same key gives the same change, whoever asks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.images import image_ref, open_image, resample
from sightline.types import Box, ImageRef, Region, Size

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8

__all__ = ["Intervened", "Intervention", "Kind", "Provenance", "elsewhere", "intervene", "region_mask"]

Kind = Literal[
    "patch_blacken",
    "gray",
    "noise",
    "blur",
    "blank",
    "swap",
    "region_mask",
    "region_keep",
    "random_region",
    "text_only",
    "attn_block",
]
REGIONAL = ("region_mask", "region_keep", "random_region")
BEYOND_PIXELS = ("text_only", "attn_block")
GRAY = 128


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is done to the images of a Record.

    Attributes:
        kind: `patch_blacken` fills each square patch with `probability`; `gray` 128 everywhere; `noise` adds Gaussian
            noise; `blur` Gaussian blur; `blank` fills everything; `swap` another image of the batch; `region_mask`
            fills the regions, `region_keep` everything else, `random_region` as much elsewhere; `text_only` drops the
            images; `attn_block` keeps them but hides them from the reply.
        probability: of each patch (PAPO .6, VPPO .5).
        patch: side of a patch, px of the resized image.
        sigma: standard deviation of the noise, grey levels (VPPO 189).
        radius: of the blur, px of the resized image.
        fill: grey level of what is filled.

    Raises:
        UserError: an unknown kind, or a value out of range.
    """

    kind: Kind = "patch_blacken"
    probability: float = 0.6
    patch: int = 14
    sigma: float = 189.0
    radius: float = 6.0
    fill: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"no intervention is called {self.kind!r}", hint=", ".join(get_args(Kind)))
        if not 0 <= self.probability <= 1 or not 0 <= self.fill <= 255:
            raise UserError("an intervention needs a probability in [0, 1] and a fill in [0, 255]", where=self.kind)
        if self.patch < 1 or not (0 <= self.sigma < math.inf and 0 <= self.radius < math.inf):
            raise UserError(
                "an intervention needs a patch of at least 1 px, and a finite sigma and radius from 0 on",
                where=self.kind,
            )

    @property
    def is_regional(self) -> bool:
        """It needs gold regions."""
        return self.kind in REGIONAL

    @property
    def changes_pixels(self) -> bool:
        """False where the images stay as they are and the sequence or its mask changes (`text_only`, `attn_block`)."""
        return self.kind not in BEYOND_PIXELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What was done to one image.

    Attributes:
        kind: of the intervention.
        image: index of the image.
        where: boxes that were filled or, for `region_keep`, kept, in original pixels; empty for the whole image.
        changed: share of the pixels of the resized image that differ.
        source: digest of the image that was put in its place (`swap`).
        overlap: share of the filled pixels that lie in a gold region (`random_region`; 0 where there was room).
        key: what the draw was keyed by.
    """

    kind: Kind
    image: int
    where: tuple[Box, ...] = ()
    changed: float = 0.0
    source: str | None = None
    overlap: float = 0.0
    key: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True)
class Intervened:
    """The changed images, in the order given and of the same grids, and what was done to each."""

    images: tuple[ImageRef, ...]
    provenance: tuple[Provenance, ...]


def intervene(
    images: Sequence[ImageRef],
    regions: Sequence[Region],
    frame: Frame,
    intervention: Intervention,
    key: tuple[Hashable, ...] = (),
    *,
    others: Sequence[ImageRef] = (),
) -> Intervened:
    """Changes images after their resize to the model's grid.

    Args:
        images: as a Prompt shows them.
        regions: gold boxes in original pixels, with the index of their image.
        frame: says how the model resizes.
        intervention: what is done.
        key: decides every draw, e.g. (seed, step, record id); each image has a draw of its own.
        others: images of the batch, among which `swap` chooses one with other content.

    Raises:
        UserError: `swap` without another image, a regional kind without regions, or a kind that changes no pixels.
        ValueError: the model would resize the changed image to another grid.

    Example:
        >>> image = image_ref(np.full((30, 70, 3), 200, np.uint8))
        >>> frame = Frame("relative_1000", 16, 256, 9216)
        >>> box = Region(box=Box(0, 0, 35, 30))
        >>> done = intervene([image], [box], frame, Intervention("region_mask"))
        >>> done.images[0].size, done.provenance[0].changed
        (Size(width=64, height=32), 0.5)
    """
    if not intervention.changes_pixels:
        raise UserError(f"'{intervention.kind}' changes no pixels", hint="it changes the sequence that a policy sees")
    if intervention.is_regional and not regions:
        raise UserError(f"'{intervention.kind}' needs regions, and the record has none")
    done = [_intervened(image, index, regions, frame, intervention, key, others) for index, image in enumerate(images)]
    return Intervened(tuple(image for image, _ in done), tuple(note for _, note in done))


def _intervened(
    image: ImageRef,
    index: int,
    regions: Sequence[Region],
    frame: Frame,
    intervention: Intervention,
    key: tuple[Hashable, ...],
    others: Sequence[ImageRef],
) -> tuple[ImageRef, Provenance]:
    size = frame.resized(image.size)
    before = resized_pixels(image, size)
    boxes = [_scaled(r.box, image.size, size) for r in regions if r.image == index]
    drawn = np.random.default_rng(int.from_bytes(_digest((*key, index)), "little"))
    after, where, source, overlap = _change(before, boxes, intervention, drawn, image, others)
    shown = image_ref(after)
    if frame.cells(shown.size) != frame.cells(image.size) or frame.resized(shown.size) != size:
        raise ValueError(f"an image of {image.size} has the grid {frame.cells(image.size)}, changed it has another")
    return shown, Provenance(
        kind=intervention.kind,
        image=index,
        where=tuple(_scaled(box, size, image.size) for box in where),
        changed=float((before != after).any(axis=-1).mean()),
        source=source,
        overlap=overlap,
        key=key,
    )


def resized_pixels(image: ImageRef, size: Size) -> UInt8[np.ndarray, "height width 3"]:
    """The image as the model's processor resizes it: bicubic, to `size`."""
    return np.asarray(resample(open_image(image), size))


def region_mask(boxes: Sequence[Box], size: Size) -> Bool[np.ndarray, "height width"]:
    """Pixels of an image that some box covers at least in part.

    Example:
        >>> region_mask([Box(0.5, 0, 2, 1)], Size(4, 2)).astype(int).tolist()
        [[1, 1, 0, 0], [0, 0, 0, 0]]
    """
    out = np.zeros((size[1], size[0]), bool)
    for box in boxes:
        x1, y1, x2, y2 = _outwards(box, size)
        out[y1:y2, x1:x2] = True
    return out


def elsewhere(
    mask: Bool[np.ndarray, "height width"], rng: np.random.Generator
) -> tuple[Bool[np.ndarray, "height width"], tuple[Box, ...]]:
    """The same shapes at other places: equal in area, drawn uniformly from the places that meet neither the mask nor
    a shape placed before.

    Boxes that touch one another move as one shape. A shape for which no free place is left takes one of those where
    its rectangle meets least.

    Returns:
        The moved mask, and the rectangle around each shape.

    Example:
        >>> mask = np.zeros((4, 8), bool)
        >>> mask[:, :4] = True
        >>> elsewhere(mask, np.random.default_rng(0))[1]
        (Box(x1=4, y1=0, x2=8, y2=4),)
    """
    from scipy import ndimage

    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(mask, structure=np.ones((3, 3))))
    shapes = [_trimmed(labels == n) for n in range(1, count + 1)]
    # a place that meets a shape placed before counts as worse than any that meets only the mask: the area stays
    moved, taken, boxes = np.zeros_like(mask), mask.astype(np.int64), []
    for shape in sorted(shapes, key=lambda s: -s.size):  # the largest first, while there is room
        height, width = shape.shape
        table = np.pad(taken.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        met = table[height:, width:] - table[:-height, width:] - table[height:, :-width] + table[:-height, :-width]
        best = np.argwhere(met == met.min())
        y, x = (int(v) for v in best[rng.integers(len(best))])
        moved[y : y + height, x : x + width] |= shape
        taken[y : y + height, x : x + width] += mask.size * shape
        boxes.append(Box(x, y, x + width, y + height))
    return moved, tuple(boxes)


def _trimmed(mask: np.ndarray) -> np.ndarray:
    """The part of a mask within the rectangle around it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _change(
    before: np.ndarray,
    boxes: Sequence[Box],
    intervention: Intervention,
    rng: np.random.Generator,
    image: ImageRef,
    others: Sequence[ImageRef],
) -> tuple[np.ndarray, tuple[Box, ...], str | None, float]:
    """Pixels after the change, where it was made, what was put in, and how much of it lies in a region."""
    kind, size = intervention.kind, Size(before.shape[1], before.shape[0])
    if kind in REGIONAL:
        mask, where, overlap = region_mask(boxes, size), tuple(boxes), 0.0
        if kind == "random_region":
            own = mask
            mask, where = elsewhere(own, rng)
            overlap = float((mask & own).sum() / max(mask.sum(), 1))
        filled = ~mask if kind == "region_keep" else mask
        return np.where(filled[..., None], np.uint8(intervention.fill), before), where, None, overlap
    if kind == "patch_blacken":
        rows, columns = (-(-n // intervention.patch) for n in before.shape[:2])
        patches = rng.random((rows, columns)) < intervention.probability
        filled = patches.repeat(intervention.patch, 0).repeat(intervention.patch, 1)[: size.height, : size.width]
        return np.where(filled[..., None], np.uint8(intervention.fill), before), (), None, 0.0
    if kind == "swap":
        other = _other(image, others, rng)
        return resized_pixels(other, size), (), other.digest, 0.0
    return _everywhere(before, intervention, rng), (), None, 0.0


def _everywhere(before: np.ndarray, intervention: Intervention, rng: np.random.Generator) -> np.ndarray:
    """A change of the whole image that needs nothing but the image."""
    if intervention.kind == "noise":
        noisy = before + rng.normal(0.0, intervention.sigma, before.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    if intervention.kind == "blur":
        import PIL.Image
        import PIL.ImageFilter

        return np.asarray(PIL.Image.fromarray(before).filter(PIL.ImageFilter.GaussianBlur(intervention.radius)))
    return np.full_like(before, GRAY if intervention.kind == "gray" else intervention.fill)


def _other(image: ImageRef, others: Sequence[ImageRef], rng: np.random.Generator) -> ImageRef:
    """Another image of the batch: distinct ones in the order of their digests, so that the batch's order is free."""
    pool = {other.digest: other for other in others if other.digest != image.digest}
    if not pool:
        raise UserError("'swap' needs a second image in the batch", hint="take more records per step")
    return pool[sorted(pool)[int(rng.integers(len(pool)))]]


def _digest(key: tuple[Hashable, ...]) -> bytes:
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


def _scaled(box: Box, source: Size, target: Size) -> Box:
    across, down = target[0] / source[0], target[1] / source[1]
    return Box(box[0] * across, box[1] * down, box[2] * across, box[3] * down)


def _outwards(box: Box, size: Size) -> tuple[int, int, int, int]:
    """Whole pixels around a box, clamped; a box without area still takes the pixel it lies in."""
    edges = []
    for low, high, limit in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        # a little tolerance, so that an edge scaled there and back does not take one pixel more
        first = min(max(int(np.floor(low + 1e-6)), 0), limit - 1)
        edges.append((first, min(max(int(np.ceil(high - 1e-6)), first + 1), limit)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]
