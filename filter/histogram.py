"""The share of noise and the q-values of a group of pairs from counts that add up, however many the pairs.

`calibration.py` states them on all pairs at once; here a pair is a count in a bin of its p-value. Half of the
bins lie evenly on a logarithmic scale below 0.01, where the pairs are that anybody keeps, half evenly above.
Counts at the thresholds of the share of noise are exact, so it is the same number; a q-value is that of its
bin, and differs from the exact one by less than 0.002 (`tests/test_histogram.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .calibration import MARGIN, STRATA, THRESHOLDS, noise_from_counts

BINS = 4_096
LEAST, MIDDLE = 1e-6, 1e-2
EDGES = np.concatenate(
    [[0.0], np.geomspace(LEAST, MIDDLE, BINS // 2), np.linspace(MIDDLE, 1.0, BINS // 2 + 1)[1:]]
)  # (BINS + 1,): bin b holds EDGES[b] < p <= EDGES[b + 1]


@dataclass
class Histogram:
    """The pairs of one group that the noise is a share of. Two of them add up with `+`."""

    count: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))  # pairs by bin of p
    tails: np.ndarray = field(default_factory=lambda: np.zeros((BINS, STRATA)))  # sums of p-values by stratum
    above: np.ndarray = field(default_factory=lambda: np.zeros((STRATA, len(THRESHOLDS)), np.int64))
    size: np.ndarray = field(default_factory=lambda: np.zeros(STRATA, np.int64))  # pairs by stratum
    total: float = 0.0  # of the p-values

    def add(self, p: np.ndarray, tails: np.ndarray, stratum: np.ndarray) -> None:
        """Count pairs: p (N,), tails (N, STRATA) p-values against each stratum's null, stratum (N,)."""
        bins = bin_of(p)
        self.count += np.bincount(bins, minlength=BINS)
        for one in range(STRATA):
            self.tails[:, one] += np.bincount(bins, tails[:, one], BINS)
            own = tails[stratum == one, one]
            self.size[one] += len(own)
            self.above[one] += [int((own > threshold).sum()) for threshold in THRESHOLDS]
        self.total += float(p.sum())

    def __add__(self, other: Histogram) -> Histogram:
        parts = zip(self.__dict__.values(), other.__dict__.values(), strict=True)
        return Histogram(*(one + two for one, two in parts))

    @property
    def n(self) -> int:
        return int(self.count.sum())

    def noise(self) -> np.ndarray:
        """(STRATA,) estimated numbers of mismatched pairs; see `calibration.noise_by_stratum`."""
        return noise_from_counts(self.above, self.size)

    def q_by_bin(self) -> np.ndarray:
        """(BINS,) the q-value of a pair in each bin; see `calibration.q_values`.

        A pair in a bin is taken for the bin's middle one: half of the others are as good or better. An empty
        bin has the q-value of the next full one above it, as its pair would, or 1.
        """
        full = np.flatnonzero(self.count)
        q = np.ones(BINS)
        if len(full):
            count = self.count[full]
            as_good = np.cumsum(count) - (count - 1) / 2
            expected = self.tails[full] / count[:, None] @ self.noise() + 1
            raw = np.minimum((expected + MARGIN * np.sqrt(expected)) / as_good, 1.0)
            kept = np.minimum.accumulate(raw[::-1])[::-1]
            following = np.searchsorted(full, np.arange(BINS))
            q = np.append(kept, 1.0)[following]
        return q

    def outscored(self) -> float:
        """See `calibration.outscored`."""
        return 1 - self.total / self.n if self.n else 0.5


def bin_of(p: np.ndarray) -> np.ndarray:
    """(N,) the bin of each p-value in [0, 1]."""
    return np.clip(np.searchsorted(EDGES, p, side="left") - 1, 0, BINS - 1)
