"""Whether pictures that are near by hash, which sees luminance alone, are copies by their colours as well.

The rule: a copy may be brighter, paler or grey, so colours are compared up to one gain, and where just one
picture is grey not at all. On white ground the hash has little to go by, so there fewer bits may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIELDS = 9  # of `chroma_v1`: int8 Cb of each, then Cr, then a byte of flags (crawl/chroma.py)
PLAIN, GREY, UNKNOWN = 1, 2, 4
WIDTH = 2 * FIELDS + 1
GAIN = (0.6, 1.67)  # of a copy's colours, either way
SLACK, SLACK_PLAIN = (
    12.0,
    8.0,
)  # steps of 256 in the field that differs most; `bench_near.py` has what they cost
SHARE = 0.2  # and of the strongest colour of the paler picture
AT_ONCE = 65_536  # pairs compared at once: 30 MB


@dataclass(frozen=True, slots=True)
class SameColours:
    """Tells copies among pairs that are near by hash.

    plain: bits that may differ where both pictures are on plain ground.
    """

    plain: int

    def __call__(self, one: np.ndarray, other: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """(N,) bool for descriptors (N, WIDTH) uint8 of both, and the distance (N,) of their hashes."""
        parts = range(0, len(one), AT_ONCE)
        found = [self._tell(*(each[at : at + AT_ONCE] for each in (one, other, distance))) for at in parts]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def _tell(self, one: np.ndarray, other: np.ndarray, distance: np.ndarray) -> np.ndarray:
        both, either, just_one = (
            one[:, -1] & other[:, -1],
            one[:, -1] | other[:, -1],
            one[:, -1] ^ other[:, -1],
        )
        plain = both & PLAIN > 0
        a, b = _colours(one), _colours(other)
        least = np.minimum(_largest(a), _largest(b))
        slack = np.where(plain, SLACK_PLAIN, SLACK) + SHARE * least
        alike = np.minimum(_residual(a, b), _residual(b, a)) <= slack
        untold = (just_one & GREY > 0) | (either & UNKNOWN > 0)
        return (untold | alike) & ~(plain & (distance > self.plain))


def _colours(descriptors: np.ndarray) -> np.ndarray:
    """(N, 2, 9) float32: Cb and Cr of each field."""
    return np.ascontiguousarray(descriptors[:, :-1]).view(np.int8).astype(np.float32).reshape(-1, 2, FIELDS)


def _largest(colours: np.ndarray) -> np.ndarray:
    """(N,): the length of the longest of the nine (Cb, Cr)."""
    return np.sqrt((colours**2).sum(axis=1).max(axis=1))


def _residual(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,): how far `b` is from `a` where they differ most, after the gain that brings them closest."""
    gain = ((a * b).sum(axis=(1, 2)) / np.maximum((a * a).sum(axis=(1, 2)), 1e-6)).clip(*GAIN)
    return _largest(b - gain[:, None, None] * a)
