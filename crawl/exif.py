"""The one thing that EXIF decides: which way up a picture is shown."""

from __future__ import annotations

import struct

ORIENTATION = 0x0112
# the whole-number types of TIFF 6.0 by their code; cameras write SHORT, editors also LONG and BYTE
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def read_orientation(exif: bytes) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == ORIENTATION and kind in WHOLE_NUMBERS:
                (value,) = struct.unpack_from(f"{order}{WHOLE_NUMBERS[kind]}", tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # cut or made up: the picture is shown as it lies
    return 1
