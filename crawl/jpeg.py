"""JPEG: the fast decoder where the file is whole, a lenient one where it has a fault that viewers pass over.

The rule: a fault is borne, a lack of data is not. The decoder behind browsers fills what is missing with
grey, in silence; here a picture is stored only where its pixels do not depend on what lies behind its scans.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from ..errors import RowError
from ..recipe import Fetch
from .colour import is_srgb, to_rgb
from .exif import read_orientation
from .resize import Pixels, check_memory, scaled_size

MAX_SCANS = 100  # real progressive JPEGs have about ten; thousands are made to keep a decoder busy
END = b"\xff\xd9"
# a marker that ends a scan: no stuffed byte, restart or filler, nor a kind that has no business there
BEHIND_SCAN = re.compile(rb"\xff[\xc4\xd9-\xde\xe0-\xef\xfe]")
# segments that are the picture, and their least length: tables and frames; JFIF and Adobe, by which decoders
# know the colours of the channels. All else is metadata
NEEDED = dict.fromkeys((*range(0xC0, 0xD0), *range(0xDA, 0xE0)), 2) | {0xE0: 16, 0xEE: 14}
# read where a scan breaks off: makes other pixels than the zeros that a decoder puts there; no 0xFF
FILLER = bytes((167 * n + 182) % 255 for n in range(128))
PADDING = bytes(16)  # a few NULs may well be data: a flat corner ends in some
GREY = 128  # of pixels without data
WHOLE = 8  # bytes for each pixel of a picture that is decoded without scaling, its colours changed
MAX_GREY = 0.25  # share of a damaged picture; a damaged restart marker costs one or two intervals


@dataclass(slots=True)
class JpegHeader:
    """What stands before the picture's data."""

    width: int = 0
    height: int = 0
    channels: int = 0
    progressive: bool = False
    orientation: int = 1
    profile: bytes = b""
    start: int = 0  # byte offset of the first scan
    components: bytes = b""  # their identifiers
    needed: list[bytes] = field(default_factory=list)  # segments without which there is no picture
    pieces: dict[int, bytes] = field(default_factory=dict)  # of the profile, by number

    @property
    def bytes_per_pixel(self) -> int:
        """At the peak: a progressive file's coefficients, and pixels, of which the fast decoder makes few."""
        coefficients = 2 * self.channels if self.progressive else 0
        return coefficients + (WHOLE if self.channels > 3 else 1)


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments before the picture's data. Raises RowError where there is no frame header."""
    header, at = JpegHeader(), 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # rubbish between segments is skipped, as decoders do
            at = data.find(b"\xff", at) % (len(data) + 1)
            continue
        kind = data[at + 1]
        if kind in (0xFF, 0x01) or 0xD0 <= kind <= 0xD7:  # filler, or a marker without a length
            at += 1 if kind == 0xFF else 2
            continue
        if kind in (0xD9, 0xDA):  # the end, or the start of the picture's data
            break
        length = max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        if length >= NEEDED.get(kind, 1 << 16):
            header.needed.append(data[at : at + 2 + length])
        _read_segment(header, kind, data[at + 4 : at + 2 + length])
        at += 2 + length
    if header.channels == 0:
        raise RowError("image_truncated" if at + 4 > len(data) else "image_broken")
    if header.progressive and data.count(b"\xff\xda") > MAX_SCANS:
        raise RowError("image_broken")
    header.start = at
    header.profile = b"".join(header.pieces[number] for number in sorted(header.pieces))
    return header


def _read_segment(header: JpegHeader, kind: int, body: bytes) -> None:
    if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
        header.height, header.width, header.channels = struct.unpack_from(">HHB", body, 1)
        header.progressive = kind in (0xC2, 0xC6, 0xCA, 0xCE)
        header.components = body[6::3][: header.channels]
    elif kind == 0xE1 and body.startswith(b"Exif\0\0") and header.orientation == 1:
        header.orientation = read_orientation(body)
    elif kind == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
        header.pieces.setdefault(body[12], body[14:])


def decode_jpeg(data: bytes, header: JpegHeader, settings: Fetch) -> Pixels:
    """(H, W, 3) uint8, sRGB, as it lies in the file, scaled by the decoder, though not below what is stored.

    Raises RowError where data is missing, or the general decoder would take too much memory; other errors
    where no decoder makes a picture of it.
    """
    width, height = scaled_size(header.width, header.height, settings)
    least = {"min_width": min(width, header.width), "min_height": min(height, header.height)}
    try:
        return _decode_fast(data, header, least, strict=True)
    except ValueError:
        pass  # whatever it says: the general decoder takes more kinds, and more faults
    data = b"\xff\xd8" + b"".join(header.needed) + data[header.start :].rstrip(b"\xff")  # half a mark
    scans, is_ended = _scans(data, header)
    if not is_ended:
        data += END
        if not _is_whole(scans, header):
            raise RowError("image_truncated")
        try:
            return _decode_fast(data, header, least, strict=True)
        except ValueError:
            pass
    check_memory(header.width * header.height, WHOLE + header.bytes_per_pixel, settings)
    filled = _digest(_decode_leniently(_with_filler(data, scans), header, least))
    pixels = _decode_leniently(data, header, least)
    if _digest(pixels) != filled or _mostly_grey(pixels):
        raise RowError("image_truncated")
    return pixels


def _decode_fast(data: bytes, header: JpegHeader, least: dict[str, int], *, strict: bool) -> Pixels:
    """Raises ValueError for kinds that it does not know and, if strict, for any fault."""
    if header.channels not in (1, 3):
        raise ValueError("simplejpeg makes no RGB of four channels")
    options: dict[str, Any] = {"fastupsample": True, "strict": strict, **least}
    if is_srgb(header.profile):
        return simplejpeg.decode_jpeg(data, "RGB", **options)
    pixels = simplejpeg.decode_jpeg(data, "GRAY" if header.channels == 1 else "RGB", **options)
    return to_rgb(Image.fromarray(pixels.squeeze(2) if header.channels == 1 else pixels), header.profile)


def _decode_leniently(data: bytes, header: JpegHeader, least: dict[str, int]) -> Pixels:
    try:
        return _decode_fast(data, header, least, strict=False)
    except ValueError:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            image.load()
            return to_rgb(image, header.profile)


def _digest(pixels: Pixels) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(pixels).data)


def _mostly_grey(pixels: Pixels) -> bool:
    """Whether the last row, or much of the picture, has the one grey of missing data."""
    grey = (pixels == GREY).all(axis=2)
    return bool(grey[-1].all() or grey.mean() > MAX_GREY)


# --- where scans end ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Scan:
    header: bytes  # number of components, (identifier, tables) of each, Ss, Se, Ah and Al
    end: int  # byte offset behind its data


def _scans(data: bytes, header: JpegHeader) -> tuple[list[_Scan], bool]:
    """The scans in order, and whether the end mark stands behind them."""
    scans: list[_Scan] = []
    at = data.find(b"\xff\xda", 2 + sum(map(len, header.needed)))
    while 0 <= at < len(data) and data[at + 1 : at + 2] != b"\xd9":
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        behind = BEHIND_SCAN.search(data, at + 2 + length)
        place = behind.start() if behind else len(data)
        if data[at + 1 : at + 2] == b"\xda":
            scans.append(_Scan(data[at + 4 : at + 2 + length], place))
        at = place
    return scans, data[at : at + 2] == END


def _is_whole(scans: list[_Scan], header: JpegHeader) -> bool:
    """Whether the scans bring every component, and of a progressive file every bit of every coefficient."""
    missing = {(component, place) for component in header.components for place in range(64)}
    for scan in scans:
        n = scan.header[0] if scan.header else 0
        if len(scan.header) < 4 + 2 * n:
            return False
        first, last, shifts = scan.header[1 + 2 * n : 4 + 2 * n]
        places = range(first, min(last, 63) + 1) if header.progressive else range(64)
        if not header.progressive or shifts & 15 == 0:
            missing -= {
                (component, place) for component in scan.header[1 : 1 + 2 * n : 2] for place in places
            }
    return not missing


def _with_filler(data: bytes, scans: list[_Scan]) -> bytes:
    """The file with other bytes behind each scan, in place of NULs: to a whole scan they are rubbish."""
    parts, at = [], 0
    for scan in scans:
        body = data[at : scan.end]
        if body.endswith(PADDING):  # of a download that stopped in a file made at its full size
            body = body.rstrip(b"\0") + b"\0"
        parts += [body, FILLER]
        at = scan.end
    return b"".join([*parts, data[at:]])
