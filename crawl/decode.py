"""Bytes from the web into one stored picture: sniffed, capped by its header, decoded, resized, encoded anew.

Nothing is believed but the bytes. A plain JPEG goes through libjpeg-turbo, scaled while it is decoded;
all else through Pillow, with its formats named. What cannot be used raises RowError with one of REASONS.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from ..errors import RowError
from ..recipe import Fetch
from .pdq import pdq_hash
from .resize import Pixels, encode, resize, scaled_size, turn_upright

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
MAX_SCANS = 100  # real progressive JPEGs have about ten; thousands are made to keep a decoder busy
MAX_PROFILE = (
    1_000_000  # bytes of an ICC profile that are handed to the colour engine; real ones stay under it
)
PILLOW_FORMATS = {
    "jpeg": ("JPEG",),
    "png": ("PNG",),
    "gif": ("GIF",),
    "webp": ("WEBP",),
    "bmp": ("BMP",),
    "avif": ("AVIF",),
}
# known pictures that are not decoded: browsers do not show them, and their parsers are the dangerous ones
MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"8BPS", "psd"),
    (b"\0\0\1\0", "ico"),
    (b"\0\0\0\x0cjP  ", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\0\0\0\x0cJXL ", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"DDS ", "dds"),
    (b"%!PS", "eps"),
)
SRGB_NAMES = (b"sRGB", "sRGB".encode("utf-16-be"), b"c2ci")
HARMLESS = ("extraneous bytes", "unknown Adobe", "unknown JFIF")  # warnings of files that every viewer shows
SRGB = ImageCms.createProfile("sRGB")


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


def sniff(data: bytes) -> str | None:
    """The format that the first bytes show, or None where they are no picture's."""
    for magic, name in MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _iso_brand(data)
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "svg"
    return None


def _iso_brand(data: bytes) -> str | None:
    brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return "heic" if brands[:4] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else None


def quiet_decoders(settings: Fetch) -> None:
    """Set the process up for decoding in threads: no inner threads, Pillow's own bomb check, no chatter."""
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(data: bytes, settings: Fetch) -> Picture:
    """The stored form of the picture in `data`.

    Raises RowError with one of REASONS. The pixel and aspect limits are checked on the header, before any
    memory is asked for; only the first frame of an animation is read. The result is upright, sRGB, has
    no alpha (white shows through) and no metadata.
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
    pixels = turn_upright(pixels, orientation)
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
    )


def _decode(data: bytes, form: str, settings: Fetch) -> tuple[tuple[int, int], int, Pixels]:
    """Size by the header, EXIF orientation, and pixels as they lie in the file, JPEGs perhaps scaled."""
    if form == "jpeg":
        header = _read_jpeg_header(data)
        _check_size(header.width, header.height, settings)
        pixels = _decode_jpeg(data, header, settings) if header.plain else None
        if pixels is not None:
            return (header.width, header.height), header.orientation, pixels
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS[form]) as image:
        size = image.size
        _check_size(*size, settings)
        image.load()
        return size, read_orientation(image.info.get("exif") or b""), _to_rgb(image)


def _check_size(width: int, height: int, settings: Fetch) -> None:
    if width < 1 or height < 1:
        raise RowError("image_broken")
    if width * height > settings.max_pixels:
        raise RowError("too_many_pixels")
    if max(width, height) > settings.max_aspect * min(width, height):
        raise RowError("aspect")


# --- JPEG ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _JpegHeader:
    width: int = 0
    height: int = 0
    channels: int = 0
    progressive: bool = False
    orientation: int = 1
    profile: bytes = b""

    @property
    def plain(self) -> bool:
        """Whether the fast decoder gives the right colours: grey or RGB, in sRGB or not said."""
        return self.channels in (1, 3) and _is_srgb(self.profile)


def _read_jpeg_header(data: bytes) -> _JpegHeader:
    """Walk the segments before the picture's data. Raises RowError where there is no frame header."""
    header, at = _JpegHeader(), 2
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
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        _read_segment(header, kind, data[at + 4 : at + 2 + length])
        at += 2 + max(length, 2)
    if header.channels == 0:
        raise RowError("image_truncated" if at + 4 > len(data) else "image_broken")
    if header.progressive and data.count(b"\xff\xda") > MAX_SCANS:
        raise RowError("image_broken")
    return header


def _read_segment(header: _JpegHeader, kind: int, body: bytes) -> None:
    if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
        header.height, header.width, header.channels = struct.unpack_from(">HHB", body, 1)
        header.progressive = kind in (0xC2, 0xC6, 0xCA, 0xCE)
    elif kind == 0xE1 and body.startswith(b"Exif\0\0"):
        header.orientation = read_orientation(body)
    elif kind == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
        header.profile += body[14:]


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
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # cut or made up: the picture is shown as it lies
    return 1


def _decode_jpeg(data: bytes, header: _JpegHeader, settings: Fetch) -> Pixels | None:
    """Decode at the least of the DCT scales that is not smaller than what is stored.

    None for a file with harmless faults, which this decoder refuses and Pillow takes.
    """
    width, height = scaled_size(header.width, header.height, settings)
    least: dict[str, Any] = {"min_width": min(width, header.width), "min_height": min(height, header.height)}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastupsample=True, **least)
    except ValueError as error:
        said = str(error)
        if any(words in said for words in HARMLESS):
            return None
        raise RowError("image_truncated" if "remature end" in said else "image_broken") from error


# --- colours ------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image) -> Pixels:
    """Any Pillow mode as sRGB over white."""
    if image.mode.startswith(("I", "F")):  # 16 bits or more: Pillow would clip them, not scale them
        wide = np.asarray(image, np.float64)
        top = 65535 if wide.max(initial=0) > 255 else 255
        grey = np.nan_to_num(wide * (255 / top)).clip(0, 255).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    profile = image.info.get("icc_profile") or b""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layers = image.convert("RGBA")
        alpha = layers.getchannel("A")
        over = Image.new("RGB", image.size, (255, 255, 255))
        over.paste(_managed(layers.convert("RGB"), profile), mask=alpha)
        return np.asarray(over)
    return np.asarray(_managed(image, profile))


def _managed(image: Image.Image, profile: bytes) -> Image.Image:
    """`image` as sRGB by its embedded profile; a profile that does not fit is ignored, as browsers do."""
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if not _is_srgb(profile) and len(profile) <= MAX_PROFILE:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
            return converted if converted is not None else image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return image.convert("RGB")


def _is_srgb(profile: bytes) -> bool:
    return not profile or any(name in profile[:4096] for name in SRGB_NAMES)
