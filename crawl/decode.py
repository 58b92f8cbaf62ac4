"""Bytes from the web into one stored picture: sniffed, capped by its header, decoded, resized, encoded anew.

Nothing is believed but the bytes. A JPEG goes through libjpeg-turbo, scaled while it is decoded, where that
takes it; all else through Pillow, with its formats named. What cannot be used raises RowError with one of
REASONS.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import cv2
from PIL import Image

from ..errors import RowError
from ..recipe import Fetch
from .chroma import chroma
from .colour import to_rgb
from .exif import read_orientation
from .jpeg import decode_jpeg, read_jpeg_header
from .pdq import pdq_hash
from .png import read_png
from .resize import Pixels, check_memory, encode, resize, turn_upright
from .sniff import sniff
from .webp import webp_size

REASONS = frozenset(
    {
        "empty",
        "not_image",
        "format_unsupported",
        "image_broken",
        "image_truncated",
        "too_many_pixels",
        "aspect",
    }
)
PILLOW_FORMATS = {
    "jpeg": ("JPEG",),
    "png": ("PNG",),
    "gif": ("GIF",),
    "webp": ("WEBP",),
    "bmp": ("BMP",),
    "avif": ("AVIF",),
}
SAID = ("icc_profile", "exif")  # under Pillow's names
# at the peak of decoding, our own steps included; measured at 16 million pixels and rounded up
BYTES_PER_PIXEL = {"png": 10, "gif": 6, "webp": 18, "bmp": 8, "avif": 14}


@dataclass(slots=True)
class Picture:
    """A picture as it is stored, and what it was."""

    data: bytes
    width: int
    height: int
    original_width: int  # as its header says, before it is turned upright
    original_height: int
    format: str  # of the original
    pdq: bytes
    pdq_quality: int
    chroma: bytes


def quiet_decoders(settings: Fetch) -> None:
    """Set the process up for decoding in threads: no inner threads, Pillow's own bomb check, no chatter."""
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, settings: Fetch) -> Picture:
    """The stored form of the picture in `data`; raises what `decode_pixels` does. It has no metadata."""
    form, size, orientation, pixels = decode_pixels(data, settings)
    hashed, quality = pdq_hash(pixels, enlarge=True)
    upright = (size[1], size[0]) if orientation >= 5 else size
    stored = resize(pixels, upright, settings)
    return Picture(
        encode(stored, settings),
        width=stored.shape[1],
        height=stored.shape[0],
        original_width=size[0],
        original_height=size[1],
        format=form,
        pdq=hashed,
        pdq_quality=quality,
        chroma=chroma(pixels),
    )


def decode_pixels(data: bytes, settings: Fetch) -> tuple[str, tuple[int, int], int, Pixels]:
    """Format, size by the header, EXIF orientation, and the pixels in `data`, upright.

    Raises RowError with one of REASONS. The limits of pixels, memory and aspect are checked on the header,
    before any memory is asked for; only the first frame of an animation is read. The pixels are sRGB
    without alpha: white shows through.
    """
    if not data:
        raise RowError("empty")
    form = sniff(data)
    if form is None:
        raise RowError("not_image")
    if form not in PILLOW_FORMATS:
        raise RowError("format_unsupported")
    try:
        size, orientation, pixels = _decode(data, form, settings)
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RowError("too_many_pixels") from None
    except Exception as error:  # on hostile bytes decoders raise anything; the row is counted
        raise RowError("image_truncated" if "truncated" in str(error).lower() else "image_broken") from error
    return form, size, orientation, turn_upright(pixels, orientation)


def _decode(data: bytes, form: str, settings: Fetch) -> tuple[tuple[int, int], int, Pixels]:
    """Size by the header, EXIF orientation, and pixels as they lie in the file, JPEGs perhaps scaled."""
    if form == "jpeg":
        header = read_jpeg_header(data)
        _check_size(header.width, header.height, header.bytes_per_pixel, settings)
        return (header.width, header.height), header.orientation, decode_jpeg(data, header, settings)
    if form == "webp":
        _check_size(*webp_size(data), BYTES_PER_PIXEL[form], settings)
    png = read_png(data) if form == "png" else None
    with Image.open(io.BytesIO(png.data if png else data), formats=PILLOW_FORMATS[form]) as image:
        size = image.size
        _check_size(*size, BYTES_PER_PIXEL[form], settings)
        image.load()
        profile, exif = (png.profile, png.exif) if png else (image.info.get(name) for name in SAID)
        return size, read_orientation(exif or b""), to_rgb(image, profile or b"")


def _check_size(width: int, height: int, bytes_per_pixel: int, settings: Fetch) -> None:
    if width < 1 or height < 1:
        raise RowError("image_broken")
    check_memory(width * height, bytes_per_pixel, settings)
    if max(width, height) > settings.max_aspect * min(width, height):
        raise RowError("aspect")
