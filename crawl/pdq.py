"""PDQ, the published 256-bit perceptual hash: near-copies of a picture differ in few bits.

Luminance, two passes of a box filter (a tent), 64x64 samples, the 16x16 lowest frequencies without the
constant, and one bit per frequency: above the median or not.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 64
LONGEST = 512  # pixels: a larger picture is shrunk first, as the reference does
SMALLEST = 5  # below that the reference refuses to hash


def _dct_rows() -> NDArray[np.float32]:
    """(16, 64): frequencies 1 to 16 of the cosine transform over 64 samples."""
    frequency = np.arange(1, 17)[:, None]
    place = 2 * np.arange(SIDE)[None, :] + 1
    rows = math.sqrt(2 / SIDE) * np.cos(math.pi / (2 * SIDE) * frequency * place)
    return rows.astype(np.float32)


DCT = _dct_rows()


@lru_cache(maxsize=1024)
def _taps(length: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Which pixels of a side make each of the 64 samples, and their weights: both (64, T), T <= 7.

    Two box filters over 1/128 of the side each, averaging only what lies inside the picture, read at the
    middles of 64 equal blocks. Only what is read is computed: a tenth of filtering every pixel.
    """
    window = -(-length // (2 * SIDE))
    before = (window - 1) // 2
    middles = (2 * np.arange(SIDE) + 1) * length // (2 * SIDE)
    weights = np.zeros((SIDE, 2 * window - 1))
    for first in range(window):
        via = middles - before + first  # the pixel of the once filtered picture
        share = _share(middles, via, length, window)
        for second in range(window):
            weights[:, first + second] += share * _share(via, via - before + second, length, window)
    pixels = (middles - 2 * before)[:, None] + np.arange(2 * window - 1)[None, :]
    return pixels.clip(0, length - 1), weights.astype(np.float32)


def _share(
    middle: NDArray[np.intp], pixel: NDArray[np.intp], length: int, window: int
) -> NDArray[np.float64]:
    """Weight of `pixel` in the mean of the window around `middle`: 0 outside the picture."""
    start = middle - (window - 1) // 2
    inside = np.minimum(start + window, length) - np.maximum(start, 0)
    return np.where((pixel >= 0) & (pixel < length), 1 / np.maximum(inside, 1), 0)


def _samples(luma: NDArray[Any]) -> NDArray[np.float32]:
    """(64, 64): the picture under the tent filter, at the middles of 64x64 equal blocks."""
    pixels, weights = _taps(luma.shape[0])
    rows = np.einsum("stx,st->sx", luma[pixels].astype(np.float32), weights)
    pixels, weights = _taps(luma.shape[1])
    return np.einsum("rst,st->rs", rows[:, pixels], weights)


def _quality(samples: NDArray[np.float32]) -> int:
    """How much there is to tell pictures apart by: steps between neighbours, 0 to 100."""
    down = np.trunc(np.diff(samples, axis=0) * (100 / 255))
    across = np.trunc(np.diff(samples, axis=1) * (100 / 255))
    return min(100, int((np.abs(down).sum() + np.abs(across).sum()) / 90))


def pdq_hash(rgb: NDArray[Any], *, enlarge: bool = False) -> tuple[bytes, int]:
    """The hash, 32 bytes, most significant first as ThreatExchange writes it, and its quality, 0 to 100.

    rgb: (H, W, 3) uint8. A picture with a side under 5 pixels gets zeros and quality 0. A quality below 50
    says that the hash is no evidence: flat pictures resemble each other.
    enlarge: bring a smaller picture to the size that larger ones are shrunk to. The reference does not; but
        a photo and its half-size copy then differ in 6 bits (median; of 120 photos at most 16), not 16 (44).
    """
    height, width = rgb.shape[:2]
    if min(height, width) < SMALLEST:
        return bytes(32), 0
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = LONGEST / max(height, width)
    if scale < 1 or (enlarge and scale > 1):
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    samples = _samples(luma)
    frequencies = DCT @ samples @ DCT.T
    median = np.partition(frequencies.ravel(), 127)[127]  # the lower one: 128 bits are set
    bits = (frequencies > median).ravel()
    return np.packbits(bits[::-1]).tobytes(), _quality(samples)
