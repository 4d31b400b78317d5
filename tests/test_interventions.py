"""Interventions at odd sizes: same grid, exact shares, equal areas, one draw per key; what was done is on record."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import picture
from sightline.errors import UserError
from sightline.geometry.frames import Frame
from sightline.images import image_ref, open_image
from sightline.interventions import Intervention, Kind, elsewhere, intervene, region_mask, resized_pixels
from sightline.types import Box, ImageRef, Region, Size

FRAME = Frame("relative_1000", 16, 32 * 32, 96 * 96)
PIXEL_KINDS: tuple[Kind, ...] = (
    "patch_blacken", "gray", "noise", "blur", "blank", "swap", "region_mask", "region_keep", "random_region",
)  # fmt: skip
BOX = [Region(box=Box(8.0, 10.0, 40.0, 44.0))]


def pixels(image: ImageRef) -> np.ndarray:
    return np.asarray(open_image(image))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(5, 260), st.integers(5, 260), st.sampled_from(PIXEL_KINDS), st.integers(0, 99),
    st.tuples(*[st.floats(0, 1)] * 4),
)  # fmt: skip
def test_the_grid_stays_at_any_size(width: int, height: int, kind: Kind, seed: int, corners: tuple) -> None:
    image, other = picture(width, height), picture(30, 40, 5)
    x, y = sorted(corners[:2]), sorted(corners[2:])
    box = Box(x[0] * width, y[0] * height, x[1] * width, y[1] * height)
    done = intervene([image], [Region(box=box)], FRAME, Intervention(kind), (seed,), others=[image, other])
    shown = done.images[0]
    assert FRAME.cells(shown.size) == FRAME.cells(image.size)
    assert FRAME.resized(shown.size) == shown.size == FRAME.resized(image.size)
    note = done.provenance[0]
    before = resized_pixels(image, shown.size)
    assert note.changed == pytest.approx((before != pixels(shown)).any(-1).mean())
    assert (note.kind, note.image, note.key) == (kind, 0, (seed,))


@pytest.mark.parametrize("size", [(97, 65), (33, 201), (16, 16), (250, 31), (5, 90)])
def test_the_processor_leaves_the_changed_image_as_it_is(policy: Any, size: tuple[int, int]) -> None:
    """Unchanged but resized pixels give the very patches of the original."""
    image = picture(*size)
    kept = image_ref(resized_pixels(image, policy.frame.resized(image.size)))
    assert np.array_equal(policy.pixels.patches(kept).numpy(), policy.pixels.patches(image).numpy())


def test_a_draw_belongs_to_its_key() -> None:
    image = picture(96, 96)
    first = intervene([image], [], FRAME, Intervention(), (0, 3, "r1"))
    assert first == intervene([image], [], FRAME, Intervention(), (0, 3, "r1"))
    others = [intervene([image], [], FRAME, Intervention(), key) for key in ((0, 4, "r1"), (1, 3, "r1"), (0, 3, "r2"))]
    assert len({first.images[0].digest, *(o.images[0].digest for o in others)}) == 4
    twice = intervene([image, image], [], FRAME, Intervention(), (0,))
    assert twice.images[0].digest != twice.images[1].digest


def test_patches_are_whole_squares_of_the_resized_image() -> None:
    image = image_ref(np.full((90, 93, 3), 200, np.uint8))
    shares = []
    for seed in range(40):
        done = intervene([image], [], FRAME, Intervention(probability=0.6), (seed,))
        black = (pixels(done.images[0]) == 0).all(-1)
        for y, x in itertools.product(range(0, 96, 14), range(0, 96, 14)):
            patch = black[y : y + 14, x : x + 14]
            assert patch.all() or not patch.any()
        shares.append(done.provenance[0].changed)
    assert np.mean(shares) == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_ends_of_the_probability(probability: float) -> None:
    done = intervene([picture(96, 96)], [], FRAME, Intervention(probability=probability), ())
    assert bool((pixels(done.images[0]) == 0).all()) == bool(probability)
    assert done.provenance[0].changed == probability


def test_mask_and_keep_are_complements() -> None:
    image = image_ref(np.random.default_rng(0).integers(1, 256, (64, 96, 3), dtype=np.uint8))
    masked = intervene([image], BOX, FRAME, Intervention("region_mask"))
    kept = intervene([image], BOX, FRAME, Intervention("region_keep"))
    a, b = pixels(masked.images[0]), pixels(kept.images[0])
    assert np.array_equal(a.astype(int) + b, pixels(image))
    assert masked.provenance[0].where == kept.provenance[0].where == (BOX[0].box,)
    assert masked.provenance[0].changed == pytest.approx(32 * 34 / (64 * 96))
    white = intervene([image], BOX, FRAME, Intervention("region_mask", fill=255))
    assert (pixels(white.images[0])[10:44, 8:40] == 255).all()


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 10**6), st.integers(1, 3), st.floats(0.05, 0.5))
def test_the_control_has_the_area_of_the_regions_and_misses_them(seed: int, count: int, side: float) -> None:
    rng = np.random.default_rng(seed)
    size, boxes = Size(96, 80), []
    for _ in range(count):
        w, h = (max(2, int(n * side * rng.uniform(0.3, 1))) for n in size)
        x, y = int(rng.integers(0, size.width - w)), int(rng.integers(0, size.height - h))
        boxes.append(Box(x, y, x + w, y + h))
    mask = region_mask(boxes, size)
    moved, where = elsewhere(mask, rng)
    if mask.mean() < 0.06:
        assert moved.sum() == mask.sum()
        assert not (moved & mask).any()
    assert moved.sum() <= mask.sum()
    assert all(0 <= b.x1 < b.x2 <= size.width and 0 <= b.y1 < b.y2 <= size.height for b in where)
    covered = region_mask(where, size)
    assert covered[moved].all()


def test_every_free_place_is_as_likely() -> None:
    mask = np.zeros((1, 6), bool)
    mask[0, 2] = True
    rng = np.random.default_rng(0)
    found = [int(np.flatnonzero(elsewhere(mask, rng)[0][0])[0]) for _ in range(2000)]
    counts = np.bincount(found, minlength=6)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3, 4, 5]] / 2000 - 0.2).max() < 0.04


def test_without_room_the_overlap_is_on_record() -> None:
    image = image_ref(np.full((96, 96, 3), 200, np.uint8))
    large = [Region(box=Box(0.0, 0.0, 96.0, 72.0))]
    note = intervene([image], large, FRAME, Intervention("random_region")).provenance[0]
    assert note.changed == pytest.approx(0.75)
    assert note.overlap == pytest.approx(2 / 3)
    assert note.where == (Box(0, 24, 96, 96),)


def test_regions_name_their_image() -> None:
    images = [picture(96, 64, 1), picture(64, 64, 2)]
    done = intervene(images, [Region(box=Box(0.0, 0.0, 32.0, 32.0), image=1)], FRAME, Intervention("region_mask"))
    assert [n.changed > 0 for n in done.provenance] == [False, True]
    assert done.images[0].digest == images[0].digest or np.array_equal(pixels(done.images[0]), pixels(images[0]))


def test_swap_takes_other_content_and_keeps_the_grid() -> None:
    image, copy, other = picture(96, 64, 1), picture(96, 64, 1), picture(40, 90, 2)
    done = intervene([image], [], FRAME, Intervention("swap"), others=[copy, other, image])
    assert done.provenance[0].source == other.digest
    assert np.array_equal(pixels(done.images[0]), resized_pixels(other, Size(96, 64)))
    assert done == intervene([image], [], FRAME, Intervention("swap"), others=[other, image])
    with pytest.raises(UserError, match="second image"):
        intervene([image], [], FRAME, Intervention("swap"), others=[copy])


def test_whole_image_kinds() -> None:
    image = picture(96, 96)
    shown = {k: pixels(intervene([image], [], FRAME, Intervention(k)).images[0]) for k in ("gray", "blank", "blur")}
    assert (shown["gray"] == 128).all()
    assert (shown["blank"] == 0).all()
    assert shown["blur"].std() < pixels(image).std() / 4
    strong, weak = (intervene([image], [], FRAME, Intervention("noise", sigma=s)).images[0] for s in (189.0, 1.0))
    assert np.abs(pixels(weak).astype(int) - pixels(image)).max() <= 8
    assert ((pixels(strong) == 0) | (pixels(strong) == 255)).mean() > 0.3


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Intervention("text_only"), "changes no pixels"),
        (Intervention("attn_block"), "changes no pixels"),
        (Intervention("region_mask"), "needs regions"),
    ],
)
def test_what_cannot_be_done_is_refused(what: Intervention, message: str) -> None:
    with pytest.raises(UserError, match=message):
        intervene([picture(64, 64)], [], FRAME, what)


@pytest.mark.parametrize(
    "wrong",
    [
        {"probability": 1.2}, {"probability": math.nan}, {"patch": 0}, {"sigma": -1.0}, {"sigma": math.nan},
        {"radius": math.inf}, {"fill": 300},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="an intervention needs"):
        Intervention(**wrong)
    with pytest.raises(UserError, match="no intervention is called 'grey'"):
        Intervention("grey")  # type: ignore[arg-type]


def test_another_grid_is_an_error() -> None:
    class Wandering(Frame):
        """Resizes what it resized before."""

        def resized(self, size: Size) -> Size:
            return Size(64, 64) if size != (64, 64) else Size(32, 32)

    with pytest.raises(ValueError, match="has another"):
        intervene([picture(90, 90)], [], Wandering("relative_1000", 16, 256, 9216), Intervention("gray"))
