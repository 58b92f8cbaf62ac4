"""Pictures of every kind into one stored form."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pairmill.crawl.decode import Picture, decode_image, quiet_decoders
from pairmill.crawl.pdq import pdq_hash
from pairmill.recipe import Fetch


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_decoders(Fetch())


def gradient(width: int = 400, height: int = 300) -> np.ndarray:
    """(H, W, 3): red grows to the right, green downwards; a blue square lies in the upper left."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 250, width).astype(np.uint8)
    rgb[..., 1] = np.linspace(0, 250, height).astype(np.uint8)[:, None]
    rgb[: height // 4, : width // 4] = (0, 0, 255)
    return rgb


def packed(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if form == "JPEG":
        options = {"quality": 95} | options
    image.save(buffer, form, **options)
    return buffer.getvalue()


PLAIN = Image.fromarray(gradient())


def shown(picture: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.data)).convert("RGB")).astype(int)


def check_colours(picture: Picture, tolerance: int = 14) -> None:
    """The stored picture is the gradient, upright."""
    stored = shown(picture)
    height, width = stored.shape[:2]
    want = cv2.resize(gradient(), (width, height), interpolation=cv2.INTER_AREA).astype(int)
    inner = np.abs(stored - want)
    inner = np.delete(inner, np.arange(height // 4 - 4, height // 4 + 4), axis=0)
    inner = np.delete(inner, np.arange(width // 4 - 4, width // 4 + 4), axis=1)
    assert np.percentile(inner, 99) <= tolerance


@pytest.mark.parametrize(
    ("form", "options", "name"),
    [
        ("JPEG", {}, "jpeg"),
        ("JPEG", {"progressive": True}, "jpeg"),
        ("JPEG", {"subsampling": 0}, "jpeg"),
        ("PNG", {}, "png"),
        ("WEBP", {"quality": 95}, "webp"),
        ("BMP", {}, "bmp"),
        ("AVIF", {"quality": 90}, "avif"),
        ("GIF", {}, "gif"),
    ],
)
def test_a_picture_keeps_its_colours_and_gets_the_asked_size(
    form: str, options: dict[str, Any], name: str
) -> None:
    picture = decode_image(packed(PLAIN, form, **options), Fetch())
    assert (picture.format, picture.width, picture.height) == (name, 341, 256)
    assert (picture.original_width, picture.original_height) == (400, 300)
    check_colours(picture, 40 if form == "GIF" else 14)


@pytest.mark.parametrize(
    ("resize", "only_if_bigger", "size", "stored"),
    [
        ("no", True, (400, 300), (400, 300)),
        ("keep_ratio", True, (400, 300), (133, 100)),
        ("keep_ratio", True, (80, 60), (80, 60)),
        ("keep_ratio", False, (80, 60), (133, 100)),
        ("keep_ratio", True, (100, 100), (100, 100)),
        ("keep_ratio", True, (150, 101), (149, 100)),
        ("keep_ratio_largest", True, (400, 300), (100, 75)),
        ("keep_ratio_largest", True, (100, 75), (100, 75)),
        ("keep_ratio_largest", False, (40, 30), (100, 75)),
        ("center_crop", True, (400, 300), (100, 100)),
        ("center_crop", True, (80, 60), (60, 60)),
        ("center_crop", False, (80, 60), (100, 100)),
        ("border", True, (400, 300), (100, 100)),
        ("border", True, (80, 60), (100, 100)),
        ("border", False, (80, 60), (100, 100)),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_each_way_to_resize_gives_its_size(
    form: str, resize: Any, only_if_bigger: bool, size: tuple[int, int], stored: tuple[int, int]
) -> None:
    settings = Fetch(resize=resize, only_if_bigger=only_if_bigger, image_size=100)
    for (width, height), want in ((size, stored), (size[::-1], stored[::-1])):
        picture = decode_image(packed(PLAIN.resize((width, height)), form), settings)
        assert (picture.width, picture.height) == want == shown(picture).shape[1::-1]


def test_a_border_is_white_and_the_picture_in_its_middle() -> None:
    picture = decode_image(packed(PLAIN, "PNG"), Fetch(resize="border", image_size=100, encode="png"))
    stored = shown(picture)
    assert (stored[:12] == 255).all()
    assert (stored[-12:] == 255).all()
    assert (stored[14, 2] != 255).any()


def test_a_scaled_decode_looks_as_a_whole_one() -> None:
    large = Image.fromarray(gradient(1600, 1200))
    picture = decode_image(packed(large), Fetch())
    whole = np.asarray(large.resize((341, 256), Image.Resampling.BOX)).astype(int)
    assert np.abs(shown(picture) - whole).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_upright_and_loses_its_metadata(form: str, orientation: int) -> None:
    upright = gradient()
    quarter = {
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright.transpose(1, 0, 2), 2),
    }
    lying = quarter | {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8825] = {1: "N"}
    image = Image.fromarray(np.ascontiguousarray(lying[orientation]))
    picture = decode_image(packed(image, form, exif=exif.tobytes()), Fetch())
    check_colours(picture)
    assert (picture.width, picture.height) == (341, 256)
    assert (picture.original_width, picture.original_height) == image.size
    assert not Image.open(io.BytesIO(picture.data)).getexif()
    assert b"Exif" not in picture.data


@pytest.mark.parametrize("encode", ["jpg", "png", "webp"])
def test_each_encoding_stores_the_picture_without_a_profile(encode: Any) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode_image(packed(PLAIN, icc_profile=profile, comment=b"who"), Fetch(encode=encode))
    stored = Image.open(io.BytesIO(picture.data))
    assert stored.format == {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[encode]
    assert not {"icc_profile", "exif", "comment", "xmp"} & stored.info.keys()
    check_colours(picture)


def test_grey_cmyk_palette_and_single_bit_pictures_become_rgb() -> None:
    for mode, form in (
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("L", "PNG"),
    ):
        picture = decode_image(packed(PLAIN.convert(mode), form), Fetch())
        assert Image.open(io.BytesIO(picture.data)).mode == "RGB"
        want = np.asarray(PLAIN.convert(mode).convert("RGB").resize((341, 256))).astype(int)
        assert abs(shown(picture).mean() - want.mean()) < 6, mode


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_shows_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 20, 40))
    picture = decode_image(packed(image.convert(mode), "PNG"), Fetch(encode="png"))
    stored = shown(picture)
    assert abs(stored[20, 5, 0] - 200) <= 2
    assert (stored[20, 35] == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    wide = np.linspace(0, 65535, 100 * 100).reshape(100, 100).astype(np.uint16)
    picture = decode_image(packed(Image.fromarray(wide), "PNG"), Fetch(encode="png"))
    assert np.abs(shown(picture)[..., 0] - wide // 257).max() <= 1


def test_a_profile_that_is_not_srgb_is_applied() -> None:
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(swapped[128:132], "big")
    tags = {bytes(swapped[at : at + 4]): at for at in range(132, 132 + 12 * count, 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    swapped[red + 4 : red + 12], swapped[blue + 4 : blue + 12] = (
        swapped[blue + 4 : blue + 12],
        swapped[red + 4 : red + 12],
    )
    odd = bytes(swapped).replace("sRGB".encode("utf-16-be"), "odds".encode("utf-16-be"))
    for form in ("JPEG", "PNG"):
        image = Image.new("RGB", (64, 64), (250, 10, 10))
        picture = decode_image(packed(image, form, icc_profile=odd), Fetch())
        red_now, _, blue_now = shown(picture)[32, 32]
        assert blue_now > 200 > red_now
    broken = decode_image(packed(PLAIN, icc_profile=b"not a profile" * 20), Fetch())
    check_colours(broken)


def test_of_an_animation_the_first_frame_is_stored() -> None:
    frames = [Image.new("RGB", (50, 50), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    for form in ("GIF", "WEBP", "PNG", "AVIF"):
        data = packed(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, _ = shown(decode_image(data, Fetch()))[25, 25]
        assert red > 200 > 50 > green, form


def test_the_hash_is_that_of_the_upright_picture() -> None:
    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), np.uint8)
    rgb = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[0x0112] = 8
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(rgb, -1)))
    picture = decode_image(packed(lying, exif=exif.tobytes()), Fetch())
    hashed, quality = pdq_hash(rgb)
    assert (int.from_bytes(picture.pdq, "big") ^ int.from_bytes(hashed, "big")).bit_count() <= 20
    assert picture.pdq_quality == pytest.approx(quality, abs=5)


def test_the_same_bytes_give_the_same_bytes() -> None:
    for form in ("JPEG", "PNG"):
        data = packed(PLAIN, form)
        assert decode_image(data, Fetch()) == decode_image(data, Fetch())
