"""The format of a picture by its first bytes: what a name or a header of the answer claims is not asked."""

from __future__ import annotations

import re
import struct

# known pictures that are not decoded (tiff and those below it): browsers do not show them, and their parsers
# are the dangerous ones
MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"8BPS", "psd"),
    (b"\0\0\1\0", "ico"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"DDS ", "dds"),
)
BMP_HEADERS = frozenset(
    {12, 16, 40, 52, 56, 64, 108, 124}
)  # bytes of the headers that OS/2 and Windows wrote
# sizes, counts and versions in binary headers hold bytes that text does not: the first 32 bytes tell
HEAD = 32
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def sniff(data: bytes) -> str | None:
    """The format that the first bytes show, or None where they are no picture's.

    Text is no picture, whatever word it begins with ("BMW", "GIF89a is a format", "RIFF"), save the formats
    that are text themselves.
    """
    if form := _text_format(data):
        return form
    for magic, name in MAGIC:
        if data.startswith(magic):
            return None if magic.isascii() and _is_text(data) else name
    if data.startswith(b"BM"):
        return "bmp" if _is_bmp(data) else None
    if _is_text(data):
        return None
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return _iso_brand(data) if data[4:8] == b"ftyp" else None


def _is_text(data: bytes) -> bool:
    return not CONTROL.search(data[:HEAD])


def _text_format(data: bytes) -> str | None:
    if data.startswith(b"%!PS"):
        return "eps"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return "svg" if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head) else None


def _is_bmp(data: bytes) -> bool:
    return len(data) >= 18 and struct.unpack_from("<I", data, 14)[0] in BMP_HEADERS


def _iso_brand(data: bytes) -> str | None:
    brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return "heic" if brands[:4] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else None
