"""PNG: ancillary chunks decide nothing, 16 bits mean what they say. And the bound of memory by format."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.errors import RowError
from pairmill.recipe import Fetch

SETTINGS = Fetch(encode="png", resize="no")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_decoders(Fetch())


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not sound))
    )


def png(
    pixels: np.ndarray, *before: bytes, after: bytes = b"", bits: int = 8, colour: int = 2, end: bool = True
) -> bytes:
    """pixels: (H, W) or (H, W, channels), of big-endian samples; further chunks before and behind IDAT."""
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *before, chunk(b"IDAT", zlib.compress(rows)), after]
    return b"".join(parts) + (chunk(b"IEND", b"") if end else b"")


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def stored(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decode_image(data, SETTINGS).data)))


ANCILLARY = {
    "text": (b"tEXt", b"Comment\0" + b"words " * 10),
    "text over a megabyte": (b"tEXt", b"Comment\0" + bytes(1_500_000)),
    "packed text over a megabyte": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(9_000_000))),
    "packed text of no known method": (b"zTXt", b"Comment\0\7" + zlib.compress(b"words")),
    "packed text that is not packed": (b"zTXt", b"Comment\0\0words"),
    "international text": (b"iTXt", b"Comment\0\1\0en\0\0" + b"\xff\xfe" * 20),
    "profile that is none": (b"iCCP", b"name\0\0" + zlib.compress(b"no profile" * 30)),
    "profile of no known method": (b"iCCP", b"name\0\1" + b"words"),
    "profile that is a bomb": (b"iCCP", b"name\0\0" + zlib.compress(bytes(50_000_000))),
    "profile that is empty": (b"iCCP", b""),
    "metadata": (b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "transparency of a wrong length": (b"tRNS", b"\0"),
    "animation of no frames": (b"acTL", b"\0"),
    "frame of an animation": (b"fcTL", b"\0" * 4),
    "gamma of zero": (b"gAMA", b"\0\0\0\0"),
    "density": (b"pHYs", b""),
    "time": (b"tIME", b"\xff"),
    "a name that is none": (b"a\0b!", b"words"),
}


@pytest.mark.parametrize("name", ANCILLARY)
@pytest.mark.parametrize("sound", [True, False])
def test_ancillary_chunks_decide_nothing(name: str, sound: bool) -> None:
    extra = chunk(*ANCILLARY[name], sound=sound)
    assert np.array_equal(stored(png(PIXELS, extra)), PIXELS)
    assert np.array_equal(stored(png(PIXELS, after=extra)), PIXELS)
    assert np.array_equal(stored(png(PIXELS, after=extra[:-7], end=False)), PIXELS)


def test_a_wrong_checksum_undoes_what_an_ancillary_chunk_says() -> None:
    through = struct.pack(">HHH", *PIXELS[0, 0].tolist())
    assert stored(png(PIXELS, chunk(b"tRNS", through)))[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(stored(png(PIXELS, chunk(b"tRNS", through, sound=False))), PIXELS)
    quarter = b"MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 0x0112, 4, 1, 6)
    assert stored(png(PIXELS, after=chunk(b"eXIf", quarter))).shape == (60, 40, 3)
    assert np.array_equal(stored(png(PIXELS, after=chunk(b"eXIf", quarter, sound=False))), PIXELS)


def test_a_png_without_its_end_is_shown_and_one_without_all_pixels_is_truncated() -> None:
    whole = png(PIXELS, end=False)
    assert np.array_equal(stored(whole), PIXELS)
    for cut in (5, 200, 3_000):
        with pytest.raises(RowError, match="image_truncated"):
            decode_image(whole[: -12 - cut], SETTINGS)


@pytest.mark.parametrize("brightest", [1, 255, 256, 257, 40_000, 65_535])
def test_grey_of_sixteen_bits_is_scaled_by_what_it_could_hold(brightest: int) -> None:
    wide = np.linspace(0, brightest, 400).astype(">u2").reshape(20, 20)
    grey = stored(png(wide, bits=16, colour=0))
    assert np.abs(grey[..., 0] - wide / 257).max() <= 0.5


def test_transparent_grey_of_sixteen_bits_shows_white() -> None:
    wide = np.array([[300, 300, 20_000]] * 4, ">u2")
    grey = stored(png(wide, chunk(b"tRNS", struct.pack(">H", 300)), bits=16, colour=0))
    assert grey[0, :, 0].tolist() == [255, 255, 78]


# --- memory -------------------------------------------------------------------------------------------


def riff(kind: bytes, body: bytes) -> bytes:
    inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


SIDE = 8_000 - 1
TINY = {  # 64 million pixels, claimed in some 34 bytes
    "lossless": riff(b"VP8L", b"\x2f" + (SIDE | SIDE << 14).to_bytes(4, "little") + bytes(9)),
    "lossy": riff(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 8_000, 8_000) + bytes(4)),
    "extended": riff(b"VP8X", bytes(4) + SIDE.to_bytes(3, "little") * 2),
}


@pytest.mark.parametrize("kind", TINY)
def test_a_few_bytes_of_webp_cannot_ask_for_a_gigabyte(kind: str) -> None:
    with pytest.raises(RowError, match="too_many_pixels"):
        decode_image(TINY[kind], Fetch())
    with pytest.raises(RowError, match="image_"):
        decode_image(TINY[kind], Fetch(max_decoded_mb=2_000))


@pytest.mark.parametrize(
    ("form", "most"), [("PNG", 100_000), ("WEBP", 55_555), ("GIF", 166_666), ("BMP", 125_000)]
)
def test_the_bound_of_memory_depends_on_the_format(form: str, most: int) -> None:
    for pixels, fits in ((most, True), (most + 200, False)):
        buffer = io.BytesIO()
        Image.new("RGB", (200, pixels // 200)).save(buffer, form)
        if fits:
            assert decode_image(buffer.getvalue(), Fetch(max_decoded_mb=1)).original_width == 200
        else:
            with pytest.raises(RowError, match="too_many_pixels"):
                decode_image(buffer.getvalue(), Fetch(max_decoded_mb=1))


def test_the_size_of_a_webp_is_that_of_its_decoder() -> None:
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0MM"}):
        buffer = io.BytesIO()
        Image.new("RGB", (123, 45), (9, 200, 70)).save(buffer, "WEBP", **options)
        picture = decode_image(buffer.getvalue(), Fetch())
        assert (picture.original_width, picture.original_height) == (123, 45)
