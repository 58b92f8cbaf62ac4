"""The share of noise and the q-values of a group of pairs from counts that add up, however many the pairs.

`calibration.py` states them on all pairs at once; here a pair is a count in a bin of its p-value, as float32,
which is how it is published. Bins lie evenly on a logarithmic scale, each 0.2 % wide. Counts at the
thresholds of the share of noise are exact, so it is the same number. A q-value is that of the largest p-value
in its bin: all pairs of a bin are kept or none is, so it promises no more than the exact one, and is larger
by less than 0.002 (`tests/test_histogram.py`). Folds whose nulls differ are averaged within a bin.

Sums of float32 are exact in float64 here, so no order matters: a bin's values have nearly one exponent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from .calibration import ASKED, MARGIN, STRATA, THRESHOLDS, noise_with_units

BINS = 8_192
UNITS = 2  # kinds of units that are wrong as a whole: pictures, sources
NULLS = STRATA + UNITS
LEAST = 1e-7
EDGES = np.concatenate([[0.0], np.geomspace(LEAST, 1.0, BINS)]).astype(np.float32)
# (BINS + 1,): bin b holds EDGES[b] < p <= EDGES[b + 1]


@dataclass
class Histogram:
    """The pairs of one group that the noise is a share of. Two of them add up with `+`."""

    count: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))  # pairs by bin of p
    p: np.ndarray = field(default_factory=lambda: np.zeros(BINS))  # sums of the p-values
    largest: np.ndarray = field(default_factory=lambda: np.zeros(BINS))  # of the p-values
    tails: np.ndarray = field(default_factory=lambda: np.zeros((BINS, NULLS)))  # sums of p-values by null
    above: np.ndarray = field(default_factory=lambda: np.zeros((NULLS, len(THRESHOLDS)), np.int64))
    size: np.ndarray = field(default_factory=lambda: np.zeros(NULLS, np.int64))  # pairs by stratum, units
    concerned: np.ndarray = field(default_factory=lambda: np.zeros(UNITS, np.int64))  # pairs of the units

    def add(self, p: np.ndarray, tails: np.ndarray, stratum: np.ndarray) -> None:
        """Count pairs: p (N,), tails (N, STRATA) p-values against each stratum's null, stratum (N,).

        tails may have UNITS columns more, of the nulls of whole pictures and sources.
        """
        p = p.astype(np.float32)
        bins = bin_of(p)
        self.count += np.bincount(bins, minlength=BINS)
        self.p += np.bincount(bins, p, BINS)
        np.maximum.at(self.largest, bins, p)
        for one in range(tails.shape[1]):
            self.tails[:, one] += np.bincount(bins, tails[:, one], BINS)
        for one in range(STRATA):
            self._count(one, tails[stratum == one, one])

    def add_units(self, kind: int, p: np.ndarray, pairs: int) -> None:
        """Count pictures (kind 0) or sources (1) by their p-values, and the pairs that they have together."""
        self._count(STRATA + kind, p)
        self.concerned[kind] += pairs

    def _count(self, null: int, p: np.ndarray) -> None:
        self.size[null] += len(p)
        self.above[null] += [int((p > threshold).sum()) for threshold in THRESHOLDS]

    def __add__(self, other: Histogram) -> Histogram:
        added = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name != "largest"
        }
        return Histogram(**added, largest=np.maximum(self.largest, other.largest))

    @property
    def n(self) -> int:
        return int(self.count.sum())

    def noise(self) -> np.ndarray:
        """(NULLS,) estimated numbers of mismatched pairs: of each stratum (`calibration.noise_by_stratum`),
        and of wrong pictures and sources."""
        return noise_with_units(self.above, self.size, self.concerned)

    def q_by_bin(self, errors: float = MARGIN) -> np.ndarray:
        """(BINS,) the q-value of a pair in each bin; see `calibration.q_values`.

        Of its largest p-value: the mismatched pairs expected on average, and more by as much as that p-value
        is above the average one. An empty bin has the q-value of the next full one above it, as its pair
        would, or 1.
        """
        full = np.flatnonzero(self.count)
        q = np.ones(BINS)
        if len(full):
            upwards = self.largest[full] / self.p[full]
            expected = self.tails[full] * upwards[:, None] @ self.noise() + 1
            as_good = np.cumsum(self.count[full])
            raw = np.minimum((expected + errors * np.sqrt(expected)) / as_good, 1.0)
            kept = np.minimum.accumulate(raw[::-1])[::-1]
            following = np.searchsorted(full, np.arange(BINS))
            q = np.append(kept, 1.0)[following]
        return q

    def outscored(self) -> float:
        """See `calibration.outscored`."""
        return 1 - float(self.p.sum()) / self.n if self.n else 0.5

    def kept_by_asked(self, q: np.ndarray) -> dict[str, int]:
        """How many pairs are kept for each share of noise that one might ask for: {"0.05": 1234, ...}.

        q: as `q_by_bin` gives it; so no more than the q-values of the pairs keep.
        """
        return {f"{asked:g}": int(self.count[q <= asked].sum()) for asked in ASKED}

    def to_bytes(self) -> bytes:
        """All counts, for `from_bytes`."""
        return b"".join(getattr(self, each.name).tobytes() for each in fields(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Histogram:
        """What `to_bytes` gave."""
        found, start = cls(), 0
        for each in fields(found):
            empty = getattr(found, each.name)
            values = np.frombuffer(data, empty.dtype, empty.size, start).reshape(empty.shape).copy()
            setattr(found, each.name, values)
            start += empty.nbytes
        return found


def bin_of(p: np.ndarray) -> np.ndarray:
    """(N,) the bin of each p-value in [0, 1], as float32."""
    return np.clip(np.searchsorted(EDGES, p.astype(np.float32), side="left") - 1, 0, BINS - 1)
