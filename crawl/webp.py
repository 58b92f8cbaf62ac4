"""The size of a WebP, read before its decoder is made, which asks at once for two whole canvases."""

from __future__ import annotations

from ..errors import RowError

SIDE = 0x3FFF  # VP8 and VP8L have 14 bits a side


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk. Raises RowError where that begins no picture."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise RowError("image_truncated")
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & SIDE), 1 + (bits >> 14 & SIDE)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & SIDE, int.from_bytes(body[8:10], "little") & SIDE
    raise RowError("image_broken")
