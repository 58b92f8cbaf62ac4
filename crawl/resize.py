"""The size and form in which a picture is stored: turned upright, resized by the recipe's mode, encoded."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ..errors import RowError
from ..recipe import Fetch

Pixels = NDArray[Any]  # (H, W, 3) uint8, RGB
SUFFIX = {"jpg": ".jpg", "png": ".png", "webp": ".webp"}


def check_memory(pixels: int, bytes_per_pixel: int, settings: Fetch) -> None:
    """Raises RowError where a picture of so many pixels is over one of the limits."""
    if pixels > settings.max_pixels or pixels * bytes_per_pixel > settings.max_decoded_mb * 1_000_000:
        raise RowError("too_many_pixels")


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def scaled_size(width: int, height: int, settings: Fetch) -> tuple[int, int]:
    """Size after scaling, before any cropping or padding; the same for a picture and its transpose."""
    if settings.resize == "no":
        return width, height
    whole = settings.resize in ("border", "keep_ratio_largest")
    side = max(width, height) if whole else min(width, height)
    if settings.only_if_bigger and side <= settings.image_size:
        return width, height
    scale = settings.image_size / side
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(pixels: Pixels, original: tuple[int, int], settings: Fetch) -> Pixels:
    """`pixels` as the recipe wants them stored.

    original: width and height before the decoder scaled it, from which the stored size follows.
    keep_ratio: shorter side = image_size. keep_ratio_largest: longer side. border: longer side, then
    padded with white to a square. center_crop: shorter side, then the middle square.
    With only_if_bigger a smaller picture is not enlarged, though still cropped or padded.
    """
    size = scaled_size(*original, settings)
    shrink = pixels.shape[1] / size[0], pixels.shape[0] / size[1]
    if shrink != (1, 1):
        pixels = cv2.resize(pixels, size, interpolation=_interpolation(max(shrink)))
    if settings.resize == "center_crop":
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    elif settings.resize == "border":
        left, top = (settings.image_size - size[0]) // 2, (settings.image_size - size[1]) // 2
        framed = np.full((settings.image_size, settings.image_size, 3), 255, np.uint8)
        framed[top : top + size[1], left : left + size[0]] = pixels
        pixels = framed
    return np.ascontiguousarray(pixels)


def _interpolation(shrink: float) -> int:
    if shrink < 1:
        return cv2.INTER_CUBIC
    # after the DCT scale little is left to shrink, where linear is as good and four times as fast
    return cv2.INTER_LINEAR if shrink < 1.34 else cv2.INTER_AREA


def encode(pixels: Pixels, settings: Fetch) -> bytes:
    """(H, W, 3) RGB as a file without metadata, in the recipe's format."""
    if settings.encode == "jpg":
        return simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", "420")
    options = [cv2.IMWRITE_WEBP_QUALITY, settings.quality] if settings.encode == "webp" else []
    done, data = cv2.imencode(SUFFIX[settings.encode], cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise RowError("image_broken")  # WebP holds 16,383 pixels a side
    return data.tobytes()
