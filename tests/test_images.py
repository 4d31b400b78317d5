"""Opening images of every odd kind, and crops that never leave them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.errors import UserError
from sightline.geometry.boxes import clamp
from sightline.images import crop, crop_box, image_ref, open_image, resample
from sightline.types import Box, ImageRef, Size

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def saved(path: Path, image: PIL.Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_file_reads_back_with_its_size_and_digest(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(PIXELS))
    ref = image_ref(path)
    assert (ref.size, ref.path, ref.pixels) == (Size(40, 24), str(path), None)
    assert np.array_equal(np.asarray(open_image(ref)), PIXELS)
    assert ref.digest == image_ref(path.read_bytes()).digest
    assert image_ref(str(path)) == ref


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name in ("turned.jpg", "turned.png"):
        path = saved(tmp_path / name, PIL.Image.fromarray(PIXELS), exif=exif)
        ref = image_ref(path)
        assert ref.size == (Size(24, 40) if orientation >= 5 else Size(40, 24))
        assert open_image(ref).size == ref.size
        assert image_ref(path.read_bytes()).size == ref.size
    turned = np.asarray(open_image(image_ref(tmp_path / "turned.png")))
    expected = {1: PIXELS, 3: PIXELS[::-1, ::-1], 6: np.rot90(PIXELS, -1), 8: np.rot90(PIXELS)}
    if orientation in expected:
        assert np.array_equal(turned, expected[orientation])


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = PIL.Image.fromarray(PIXELS[..., 0])
    opened = np.asarray(open_image(image_ref(saved(tmp_path / "g.png", grey))))
    assert np.array_equal(opened, np.repeat(PIXELS[..., :1], 3, axis=2))
    bits = open_image(image_ref(saved(tmp_path / "b.png", grey.convert("1"))))
    assert bits.mode == "RGB"
    assert set(np.unique(np.asarray(bits))) == {0, 255}


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 24).reshape(24, 40).astype(np.uint16)
    opened = np.asarray(open_image(image_ref(saved(tmp_path / "deep.png", PIL.Image.fromarray(ramp)))))
    assert opened[0, 0, 0] == 0
    assert opened[-1, -1, 0] == 255
    assert np.abs(opened[..., 0].astype(float) - ramp / 257).max() <= 0.51


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    rgba = np.dstack([PIXELS, np.zeros((24, 40), np.uint8)])
    rgba[:12, :, 3] = 255
    for name, image in (
        ("rgba.png", PIL.Image.fromarray(rgba)),
        ("la.png", PIL.Image.fromarray(rgba).convert("LA")),
    ):
        opened = np.asarray(open_image(image_ref(saved(tmp_path / name, image))))
        assert (opened[12:] == 255).all()
        assert not (opened[:12] == 255).all()
    assert (np.asarray(open_image(image_ref(rgba)))[12:] == 255).all()


def test_palette_with_transparency_is_on_white(tmp_path: Path) -> None:
    image = PIL.Image.new("P", (4, 2), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((3, 1), 1)
    path = saved(tmp_path / "p.png", image, transparency=0)
    opened = np.asarray(open_image(image_ref(path)))
    assert opened[0, 0].tolist() == [255, 255, 255]
    assert opened[1, 3].tolist() == [200, 10, 10]


def test_one_pixel_wide(tmp_path: Path) -> None:
    ref = image_ref(saved(tmp_path / "thin.png", PIL.Image.fromarray(PIXELS[:, :1])))
    assert ref.size == Size(1, 24)
    assert crop(ref, Box(0, 3, 1, 4), min_side=8).size == Size(1, 8)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif"])
def test_truncated_file_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, PIL.Image.fromarray(PIXELS))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=name):
        open_image(image_ref(path))
    with pytest.raises(UserError, match="image data"):
        image_ref(path.read_bytes())


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some of the damage
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    random, refused = np.random.default_rng(1), 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        PIL.Image.fromarray(PIXELS).save(buffer, kind)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for at in random.integers(0, len(data), 6):
                data[at] = int(random.integers(0, 256))
            path = tmp_path / f"damaged.{kind.lower()}"
            path.write_bytes(bytes(data))
            try:
                ref = image_ref(path)
                assert open_image(ref).size == ref.size
            except UserError:
                refused += 1
    assert refused > 20


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.png: the image does not exist"):
        image_ref(tmp_path / "absent.png")
    with pytest.raises(UserError, match="cannot be read"):
        image_ref(tmp_path)
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(UserError, match=r"words\.png: the file is not an image"):
        image_ref(tmp_path / "words.png")
    (tmp_path / "none.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none\.png"):
        image_ref(tmp_path / "none.png")
    path = saved(tmp_path / "a.png", PIL.Image.fromarray(PIXELS))
    wrong = ImageRef(size=Size(41, 24), digest="x", path=str(path))
    with pytest.raises(UserError, match=r"a\.png: the image is 40x24 pixels, expected 41x24"):
        open_image(wrong)
    with pytest.raises(UserError, match="path or pixels"):
        open_image(ImageRef(size=Size(4, 4), digest="x"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with PIL.Image.open(path) as unread, pytest.raises(UserError, match=r"a\.png"):
        crop(unread, Box(0, 0, 4, 4))


def test_the_bomb_guard_stays_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "large.png", PIL.Image.fromarray(PIXELS))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png: the image is too large"):
        image_ref(path)


@pytest.mark.parametrize(
    "array", [PIXELS.astype(float), PIXELS[..., :2], PIXELS[0, 0], np.zeros((0, 4, 3), np.uint8)], ids=str
)
def test_arrays_that_are_no_images(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="not an image"):
        image_ref(array)


def test_pixels_in_memory() -> None:
    ref = image_ref(PIXELS)
    assert ref.pixels is not None
    assert not ref.pixels.flags.writeable
    assert ref.digest == image_ref(PIL.Image.fromarray(PIXELS)).digest
    assert ref.digest != image_ref(PIXELS.transpose(1, 0, 2)).digest
    assert image_ref(PIXELS[..., 0]).digest == image_ref(PIXELS[..., :1]).digest
    assert open_image(ref).mode == "RGB"


def test_a_crop_holds_the_pixels_of_the_original() -> None:
    assert np.array_equal(crop(image_ref(PIXELS), Box(3, 5, 13, 17), min_side=1).pixels, PIXELS[5:17, 3:13])
    assert crop(PIL.Image.fromarray(PIXELS), Box(3, 5, 13, 17), padding=0.5, min_side=1).size == Size(18, 23)


def test_resample_is_bicubic() -> None:
    image = PIL.Image.fromarray(PIXELS)
    assert resample(image, Size(8, 6)).size == (8, 6)
    assert resample(image, Size(8, 6)).tobytes() == image.resize((8, 6), PIL.Image.Resampling.BICUBIC).tobytes()


def test_the_release_cases_of_ground_r1() -> None:
    size = Size(640, 480)
    corner = crop_box(Box(0, 0, 4, 4), size, min_side=28)
    assert corner == (0, 0, 28, 28)
    inverted = crop_box(Box(300, 200, 100, 50), size, min_side=28)
    assert inverted == (100, 50, 300, 200)


coordinate = st.floats(-1e6, 1e6) | st.floats(-20, 700) | st.sampled_from([0.0, 1.0, 640.0, float("nan"), float("inf")])


@settings(deadline=None, derandomize=True)
@given(
    st.tuples(coordinate, coordinate, coordinate, coordinate),
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.floats(0, 4),
    st.integers(0, 64),
)
def test_crop_geometry_stays_inside(
    numbers: tuple[float, float, float, float], sides: tuple[int, int], padding: float, min_side: int
) -> None:
    size, box = Size(*sides), Box(*numbers)
    x1, y1, x2, y2 = crop_box(box, size, padding, min_side)
    assert all(v == int(v) for v in (x1, y1, x2, y2))
    assert 0 <= x1 < x2 <= size.width
    assert 0 <= y1 < y2 <= size.height
    assert x2 - x1 >= min(min_side, size.width)
    assert y2 - y1 >= min(min_side, size.height)
    if not np.isnan(box).any():
        left, right = sorted(numbers[0::2])
        top, bottom = sorted(numbers[1::2])
        inner = clamp(Box(left, top, right, bottom), size)
        assert x1 <= inner.x1
        assert inner.x2 <= x2
        assert y1 <= inner.y1
        assert inner.y2 <= y2
