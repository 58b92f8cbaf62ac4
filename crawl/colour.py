"""Any picture as sRGB over white: profiles are applied, white shows through, wide samples are scaled."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

from .resize import Pixels

MAX_PROFILE = (
    1_000_000  # bytes of an ICC profile that are handed to the colour engine; real ones stay under it
)
SRGB_NAMES = (b"sRGB", "sRGB".encode("utf-16-be"), b"c2ci")
SRGB = ImageCms.createProfile("sRGB")
WITH_ALPHA = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})
BAND = 1 << 18  # pixels converted at once: what a step needs stays in the cache

Convert = Callable[[Image.Image], Image.Image]


def is_srgb(profile: bytes) -> bool:
    """Whether pixels need no conversion: there is no profile, or it is one of the sRGB ones."""
    return not profile or any(name in profile[:4096] for name in SRGB_NAMES)


def to_rgb(image: Image.Image, profile: bytes) -> Pixels:
    """(H, W, 3) uint8 of a picture of any Pillow mode, as sRGB over white.

    A profile that does not fit is ignored, as browsers do. Needs the result and a few MB more.
    """
    width, height = image.size
    convert = _to_srgb(image.mode, profile)
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(height, top + rows)))
        rgb[top : top + rows] = _over_white(band, convert)
    return rgb


def _over_white(band: Image.Image, convert: Convert) -> Pixels:
    if band.mode.startswith(("I", "F")):
        return _from_wide(band)
    if band.mode not in WITH_ALPHA and "transparency" not in band.info:
        return np.asarray(convert(band))
    layers = band.convert("RGBA")
    over = Image.new("RGB", band.size, (255, 255, 255))
    over.paste(convert(layers.convert("RGB")), mask=layers.getchannel("A"))
    return np.asarray(over)


def _from_wide(image: Image.Image) -> Pixels:
    """Grey of 16 bits, which Pillow would clip where it should scale."""
    wide = np.asarray(image)
    top = 65535 if image.mode.startswith("I;16") else max(255, float(np.nanmax(wide, initial=0)))
    grey = np.nan_to_num(np.rint(wide * (255 / top))).clip(0, 255).astype(np.uint8)
    if isinstance(through := image.info.get("transparency"), int):
        grey[wide == through] = 255
    return np.repeat(grey[..., None], 3, axis=2)


def _to_srgb(mode: str, profile: bytes) -> Convert:
    if not is_srgb(profile) and len(profile) <= MAX_PROFILE:
        mode = mode if mode in ("L", "CMYK") else "RGB"
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
            return lambda image: ImageCms.applyTransform(_in_mode(image, mode), transform) or image
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass
    return lambda image: _in_mode(image, "RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)
