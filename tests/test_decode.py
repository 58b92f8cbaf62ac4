"""Pictures of every kind into one stored form, and hostile ones into a reason."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pairmill.crawl.decode import REASONS, Picture, decode_image, quiet_decoders, read_orientation, sniff
from pairmill.crawl.pdq import pdq_hash
from pairmill.errors import RowError
from pairmill.recipe import Fetch

DATA = Path(os.environ.get("PAIRMILL_DATA", "")) / "hostile-images" / "pillow-tests-images.tar"


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


def reason(data: bytes, **over: Any) -> str:
    with pytest.raises(RowError) as caught:
        decode_image(data, Fetch(**over))
    assert caught.value.reason in REASONS
    return caught.value.reason


def fate(data: bytes) -> str:
    """'ok', or the reason."""
    try:
        decode_image(data, Fetch())
    except RowError as error:
        return error.reason
    return "ok"


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


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "not_image"),
        (b"\0" * 500, "not_image"),
        (b"GIF", "not_image"),
        (b"%PDF-1.7", "not_image"),
        (b"<svg xmlns='x'/>", "format_unsupported"),
        (b"<?xml version='1.0'?><svg/>", "format_unsupported"),
        (b"II*\0" + bytes(60), "format_unsupported"),
        (b"8BPS\0\1", "format_unsupported"),
        (b"%!PS-Adobe-3.0 EPSF", "format_unsupported"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "format_unsupported"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "not_image"),
        (b"\xff\xd8\xff", "image_truncated"),
        (b"\xff\xd8\xff\xd9", "image_truncated"),
        (b"\xff\xd8\xff\xe0" + b"x" * 100, "image_truncated"),
        (b"\xff\xd8\xff\xe0\0\4ab" + b"x" * 100, "image_truncated"),
        (b"\xff\xd8\xff\xda\0\4ab" + b"x" * 100, "image_broken"),
        (b"\x89PNG\r\n\x1a\n", "image_broken"),
        (b"GIF89a" + bytes(10), "image_broken"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image_broken"),
        (b"BM" + bytes(60), "image_broken"),
    ],
)
def test_what_is_no_usable_picture_has_its_word(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_a_picture_cut_short_is_truncated(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    data = packed(noise, form)
    assert reason(data[: len(data) // 2]) == "image_truncated"


def test_a_picture_with_rubbish_before_its_end_mark_is_taken() -> None:
    data = packed(PLAIN)
    check_colours(decode_image(data[:-2] + b"zzzz\xff\xd9", Fetch()))
    check_colours(decode_image(data + b"<!-- served by cache -->", Fetch()))


def test_the_pixel_limit_holds_at_its_border_and_before_decoding() -> None:
    for form in ("JPEG", "PNG", "WEBP"):
        data = packed(PLAIN, form)
        assert decode_image(data, Fetch(max_pixels=120_000)).original_width == 400
        assert reason(data, max_pixels=119_999) == "too_many_pixels"
    jpeg = bytearray(packed(PLAIN))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 60_000, 60_000)
    assert reason(bytes(jpeg)) == "too_many_pixels"


def test_the_aspect_limit_holds_at_its_border() -> None:
    assert decode_image(packed(PLAIN.resize((200, 10))), Fetch()).width == 200
    assert reason(packed(PLAIN.resize((201, 10)))) == "aspect"
    assert reason(packed(PLAIN.resize((10, 201)), "PNG")) == "aspect"


def test_a_jpeg_of_endless_scans_is_refused_at_once() -> None:
    data = packed(PLAIN, progressive=True)
    scan = data.rindex(b"\xff\xda")
    assert reason(data[:scan] + data[scan:-2] * 200 + b"\xff\xd9") == "image_broken"


def test_huge_metadata_does_not_hurt() -> None:
    text = zlib.compress(bytes(50_000_000))
    body = b"zTXtbomb\0\0" + text
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    data = packed(PLAIN, "PNG")
    assert reason(data[:33] + chunk + data[33:]) == "image_broken"
    segment = b"\xff\xe1\xff\xff" + bytes(65_533)
    check_colours(decode_image(b"\xff\xd8" + segment * 30 + packed(PLAIN)[2:], Fetch()))


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\1\0" + b"\x12\1\3\0\1\0\0\0\x63\0\0\0",
    ],
)
def test_a_broken_orientation_is_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1


@pytest.mark.parametrize("seed", range(6))
def test_damaged_bytes_give_a_picture_or_a_reason(seed: int) -> None:
    random = np.random.default_rng(seed)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"):
        data = np.frombuffer(packed(PLAIN.resize((120, 90)), form), np.uint8).copy()
        for _ in range(8):
            data[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            assert fate(data.tobytes()) in REASONS | {"ok"}


@pytest.mark.skipif(not DATA.is_file(), reason="set PAIRMILL_DATA to the folder of real data")
def test_the_tests_of_an_image_library_crash_nothing() -> None:
    fates = []
    with tarfile.open(DATA) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and member.size < 300_000 else None
            if file is not None:
                fates.append(fate(file.read()))
    assert set(fates) <= REASONS | {"ok"}
    assert fates.count("ok") > 300


def test_formats_are_known_by_their_bytes() -> None:
    assert sniff(b"RIFF....WEBPVP8X") == "webp"
    assert sniff(b"RIFF....AVI LIST") is None
    assert sniff(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif" + bytes(8)) == "avif"
    assert sniff(b"\xef\xbb\xbf  <SVG>") == "svg"
