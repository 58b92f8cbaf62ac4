"""A PNG reduced to what its pixels need, so that no other chunk can decide whether the picture is shown.

The rule is libpng's, and so the browsers': an ancillary chunk with a wrong checksum, or a body that cannot be
read, is as if it were not there. Text, times, animation and the like are not looked at in any case.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from .colour import MAX_PROFILE

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
PALETTE = 3  # a colour type: tRNS then has one byte per colour
GREY_OR_RGB = {0: 2, 2: 6}  # bytes of tRNS by the other colour types that may have one


@dataclass(slots=True)
class Png:
    """A PNG of critical chunks and transparency alone, and what two ancillary chunks said."""

    data: bytes
    profile: bytes = b""
    exif: bytes = b""


def read_png(data: bytes) -> Png:
    """Never raises: what is damaged in a critical chunk is left for the decoder to refuse.

    A file that breaks off behind its pixels is ended; one that breaks off within a critical chunk stays cut.
    """
    chunks: dict[bytes, bytes] = {}
    kept, at = [SIGNATURE], len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        after = at + 12 + length
        if kind == b"IEND":
            break
        if not kind[0] & 0x20:  # upper case: critical
            kept.append(data[at:after])
            if after > len(data):
                return Png(b"".join(kept), **_said(chunks))
        elif kind in (b"tRNS", b"iCCP", b"eXIf") and kind not in chunks and _is_sound(data, at, after):
            chunks[kind] = data[at + 8 : after - 4]
            if kind == b"tRNS" and _fits(chunks[kind], data):
                kept.append(data[at:after])
        at = after
    return Png(b"".join([*kept, END]), **_said(chunks))


def _is_sound(data: bytes, at: int, after: int) -> bool:
    return after <= len(data) and zlib.crc32(data[at + 4 : after - 4]) == int.from_bytes(
        data[after - 4 : after], "big"
    )


def _fits(transparency: bytes, data: bytes) -> bool:
    kind = data[25]  # IHDR stands first: signature, length, name, width, height, bits, colour type
    return 0 < len(transparency) <= 256 if kind == PALETTE else len(transparency) == GREY_OR_RGB.get(kind)


def _said(chunks: dict[bytes, bytes]) -> dict[str, bytes]:
    return {"profile": _profile(chunks.get(b"iCCP", b"")), "exif": chunks.get(b"eXIf", b"")}


def _profile(body: bytes) -> bytes:
    """The ICC profile behind its name, NUL and method; empty where it is not zlib, or too long to be one."""
    packed = body[body.find(b"\0") + 2 :]
    try:
        unpacked = zlib.decompressobj().decompress(packed, MAX_PROFILE + 1)
    except zlib.error:
        return b""
    return unpacked if len(unpacked) <= MAX_PROFILE else b""
