"""How sure a measure is: 95 % intervals over the pictures (or captions) of a set, as if drawn anew."""

from __future__ import annotations

import math

import numpy as np

Z = 1.959963984540054  # of 95 %, two sides
RESAMPLES = 2_000


def wilson(hits: int, n: int) -> list[float]:
    """[low, high] of a share of `hits` among `n` (Wilson 1927): holds for few and for extreme ones too."""
    if n == 0:
        return [0.0, 1.0]
    share, z2 = hits / n, Z * Z
    middle, margin = share + z2 / (2 * n), Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (max(0.0, middle - margin) / (1 + z2 / n), min(1 + z2 / n, middle + margin) / (1 + z2 / n))
    return [round(low, 6), round(high, 6)]


def bootstrapped_mean_of_classes(hits: np.ndarray, sizes: np.ndarray) -> list[float]:
    """[low, high] of the mean over classes of their share of hits, each class drawn anew by itself.

    hits, sizes: (C,) of each class. Percentiles of RESAMPLES bootstraps (Efron 1979) with a fixed seed; of
    zeros and ones drawn with replacement only their number matters, which is binomial.
    """
    drawn = np.random.default_rng(0).binomial(sizes, hits / sizes, (RESAMPLES, len(sizes)))
    low, high = np.percentile((drawn / sizes).mean(1), [2.5, 97.5])
    return [round(float(low), 6), round(float(high), 6)]


def area(good: np.ndarray, bad: np.ndarray) -> tuple[float, list[float]]:
    """The chance that one of `good` scores above one of `bad`, ties counted half, and its [low, high].

    The standard error is Hanley and McNeil's (1982), equation 2.
    """
    n, m = len(good), len(bad)
    order = np.sort(bad)
    below = np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")
    value = float(below.sum()) / (2 * n * m)
    one, two = value / (2 - value), 2 * value * value / (1 + value)
    spread = value * (1 - value) + (n - 1) * (one - value**2) + (m - 1) * (two - value**2)
    margin = Z * math.sqrt(max(0.0, spread) / (n * m))
    return round(value, 6), [round(max(0.0, value - margin), 6), round(min(1.0, value + margin), 6)]
