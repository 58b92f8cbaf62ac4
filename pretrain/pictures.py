"""Picture bytes to a square of RGB pixels: decoded near its size where the JPEG allows, cropped, resized."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 64_000_000  # what a shard holds was resized; a larger header is a bomb
HALVES = (8, 4, 2, 1)  # a JPEG is scaled by these fast; other eighths cost more than decoding it whole
BILINEAR = 1.25  # shrunk by less than this, bilinear shows no aliasing, in a fifth of the time of the mean

Prepare = Callable[["Picture"], "Picture"]


def decode_square(data: bytes, out: np.ndarray, prepare: Prepare | None = None) -> bool:
    """Fill `out` (S, S, 3) uint8 with the centre square of a picture; False where it cannot be decoded.

    JPEG is scaled while it is decoded: by halves where that comes near S, else to the smallest eighth that
    is no smaller than S.
    prepare: a model's own way from an RGB picture to its square, in place of ours.
    """
    pixels = _decode(data, len(out)) if prepare is None else _decode_other(data, prepare)
    if pixels is None:
        return False
    _resize_into(pixels, out)
    return True


def _decode(data: bytes, side: int) -> np.ndarray | None:
    import simplejpeg

    if data[:3] == b"\xff\xd8\xff":
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if int(height) * int(width) <= MAX_PIXELS:
                least = _scaled(min(int(height), int(width)), side)
                return simplejpeg.decode_jpeg(data, "RGB", min_height=least, min_width=least)
        except (ValueError, RuntimeError):
            return _decode_other(data)  # CMYK and other rarities
    return _decode_other(data)


def _scaled(short: int, side: int) -> int:
    """The shorter side to ask of the decoder, for a JPEG whose own is `short`: at least `side`."""
    halved = (-(-short // half) for half in HALVES)
    near = next((length for length in halved if side <= length), side)
    return near if near < side * BILINEAR else side


def _decode_other(data: bytes, prepare: Prepare | None = None) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            rgb = image.convert("RGB")
            return np.asarray(rgb if prepare is None else prepare(rgb))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _resize_into(pixels: np.ndarray, out: np.ndarray) -> None:
    cv2 = _cv2()
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == len(out):
        out[:] = square
        return
    cv2.resize(square, (len(out), len(out)), dst=out, interpolation=_interpolation(cv2, side / len(out)))


def _interpolation(cv2: Any, ratio: float) -> int:
    """How to shrink by `ratio`: the mean over the area of a pixel where much; a cubic invents pixels."""
    if ratio < 1:
        return cv2.INTER_CUBIC
    return cv2.INTER_LINEAR if ratio < BILINEAR else cv2.INTER_AREA


def _cv2() -> Any:
    import cv2

    cv2.setNumThreads(0)  # the loader has threads of its own
    return cv2
