"""Hostile and broken pictures: each gets a reason, none a crash, and what every viewer shows is taken."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pairmill.crawl.decode import REASONS, decode_image, quiet_decoders
from pairmill.crawl.exif import read_orientation
from pairmill.crawl.sniff import sniff
from pairmill.errors import RowError
from pairmill.recipe import Fetch

DATA = Path(os.environ.get("PAIRMILL_DATA", "")) / "hostile-images" / "pillow-tests-images.tar"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_decoders(Fetch())


def packed(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} | options if form == "JPEG" else options))
    return buffer.getvalue()


def sloping(width: int = 400, height: int = 300) -> Image.Image:
    """Red grows to the right, green downwards."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 250, width)
    rgb[..., 1] = np.linspace(0, 250, height)[:, None]
    return Image.fromarray(rgb)


PLAIN = sloping()


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


def check_shown(data: bytes) -> None:
    """The picture is stored as if nothing were wrong with it."""
    stored = np.asarray(Image.open(io.BytesIO(decode_image(data, Fetch()).data)).convert("RGB")).astype(int)
    whole = np.asarray(PLAIN.resize((stored.shape[1], stored.shape[0]), Image.Resampling.BOX)).astype(int)
    assert np.percentile(np.abs(stored - whole), 99) <= 14


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
        (b"RIFF\0\0\0\0WEBPVP8 ", "image_truncated"),
        (b"RIFF\0\0\0\0WEBPXYZ " + bytes(60), "image_broken"),
        (b"BM" + bytes(12) + b"\x28" + bytes(60), "image_broken"),
    ],
)
def test_what_is_no_usable_picture_has_its_word(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF"])
def test_a_picture_cut_short_is_truncated(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    data = packed(noise, form)
    assert reason(data[: len(data) // 2]) == "image_truncated"


@pytest.mark.parametrize(
    "word", [b"BM", b"GIF89a", b"GIF87a", b"RIFFabcdWEBP", b"8BPS", b"DDS ", b"P6", b"abcdftypavif"]
)
@pytest.mark.parametrize(
    "rest", [b"", b"W opens a plant in Leipzig", b"\xc3\xbcrgermeister\r\n\ttritt zur\xc3\xbcck"]
)
def test_text_that_begins_as_a_picture_does_is_none(word: bytes, rest: bytes) -> None:
    assert reason(word + rest) == "not_image"
    assert reason((word + rest) * 50) == "not_image"


def test_a_picture_with_rubbish_before_its_end_mark_is_taken() -> None:
    data = packed(PLAIN)
    check_shown(data[:-2] + b"zzzz\xff\xd9")
    check_shown(data + b"<!-- served by cache -->")


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
    check_shown(data[:33] + chunk + data[33:])
    segment = b"\xff\xe1\xff\xff" + bytes(65_533)
    check_shown(b"\xff\xd8" + segment * 30 + packed(PLAIN)[2:])


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\1\0" + b"\x12\1\3\0\1\0\0\0\x63\0\0\0",
        b"II*\0\x08\0\0\0\1\0" + b"\x12\1\2\0\1\0\0\0\x06\0\0\0",
    ],
)
def test_a_broken_orientation_is_upright(exif: bytes) -> None:
    assert read_orientation(exif) == 1


@pytest.mark.parametrize("kind", ["B", "H", "I", "b", "h", "i"])
@pytest.mark.parametrize("order", "<>")
def test_an_orientation_may_be_any_whole_number(order: str, kind: str) -> None:
    code = {"B": 1, "H": 3, "I": 4, "b": 6, "h": 8, "i": 9}[kind]
    mark = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    entry = struct.pack(f"{order}HHHI{kind}", 1, 0x0112, code, 1, 6)
    assert read_orientation(mark + entry.ljust(14, b"\0")) == 6


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
    assert sniff(b"RIFF\x1a\0\0\0WEBPVP8X") == "webp"
    assert sniff(b"RIFF\x1a\0\0\0AVI LIST") is None
    assert sniff(b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif" + bytes(8)) == "avif"
    assert sniff(b"\xef\xbb\xbf  <SVG>") == "svg"
