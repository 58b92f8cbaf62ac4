"""The passes of the noise score over the pairs of some shards, for some cells at a time.

First the moments of every cell; then what witnesses say of each pair (`testimony.py`); then, with the cell's
nulls, every pair's p-value, counted into histograms. A pair with two witnesses or more has two p-values: one
that asks them, and its own.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..recipe import Noise
from .calibration import STRATA, p_values
from .embedded import Source
from .evidence import AT_ONCE, Frame, Null, Space
from .histogram import NULLS, Histogram
from .strangers import SAMPLE
from .testimony import FEATURES, IN_SOURCE, LEAST, PICTURE, RECORD, SOURCE, SPREADS, Frames
from .witness_null import Witnesses

Said = Callable[[int], object]  # told how many shards are done
AT_A_TIME = 65_536  # pairs that are scored together
STEPS = 2.0**30  # p-values beside witnesses are whole multiples of its inverse, so that their sums are exact
PAIR, IMAGE, TEXT = 0, FEATURES.index(SPREADS[0]), FEATURES.index(SPREADS[1])
HEAD = struct.Struct("<q")


@dataclass(frozen=True)
class Scorer:
    """What scores the pairs of a cell: by themselves, and with witnesses where enough of them have any."""

    null: Null
    witnesses: Witnesses | None

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`."""
        alone = self.null.to_bytes()
        return HEAD.pack(len(alone)) + alone + (self.witnesses.to_bytes() if self.witnesses else b"")

    @classmethod
    def from_bytes(cls, data: bytes) -> Scorer:
        """What `to_bytes` gave."""
        end = HEAD.size + HEAD.unpack_from(data)[0]
        null = Null.from_bytes(data[HEAD.size : end])
        return cls(null, Witnesses.from_bytes(data[end:]) if len(data) > end else None)


def batches(cells: int, dim: int, settings: Noise, memory_mb: int) -> list[range]:
    """The cells that are in memory together, in each pass: as many as half of `memory_mb` holds, or one."""
    moments, waiting, sample = 2 * 2 * 8 * dim**2, 2 * 4 * dim * AT_ONCE, 5 * 4 * dim * SAMPLE
    nulls = 2 * 8 * SAMPLE * settings.negatives
    size = max(1, memory_mb * 2**19 // (moments + waiting + sample + nulls))
    return [range(start, min(start + size, cells)) for start in range(0, cells, size)]


def no_frames(cells: int, dim: int, *, in_memory: bool) -> np.ndarray:
    """(C, 2, D, D) for the covariances of all cells, in memory or in a file that goes with it."""
    shape = (cells, 2, dim, dim)
    if in_memory:
        return np.zeros(shape)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float64, "w+", shape=shape)


def measure(
    source: Source, of_row: np.ndarray, batch: range, said: Said, good: np.ndarray
) -> dict[int, Space]:
    """The moments of each cell of a batch that has pairs in this source.

    of_row: (N,) the cell of each. good: (N,) bool, set for those whose embeddings are finite.
    """
    spaces: dict[int, Space] = {}
    for done, (shard, part) in enumerate(source):
        said(done)
        for cell, rows, image, text in shard.by_cell(of_row[part], batch):
            good[part.start + rows] = True
            spaces.setdefault(cell, Space(source.dim)).add(image, text)
    return spaces


def frames_of(means: np.ndarray, spreads: np.ndarray | Mapping[int, np.ndarray], batch: range) -> Frames:
    """The frames of some cells, and the means of all."""
    return Frames(means, {cell: Frame(means[cell], spreads[cell]) for cell in batch})


@dataclass
class Counts:
    """The counted pairs of a group: those without witnesses, and those with, both ways."""

    alone: Histogram
    heard: Histogram  # pairs with witnesses, by what these say
    unheard: Histogram  # the same pairs by themselves

    @classmethod
    def none(cls) -> Counts:
        """Of no pairs."""
        return cls(Histogram(), Histogram(), Histogram())

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.alone + other.alone, self.heard + other.heard, self.unheard + other.unheard)

    def to_bytes(self) -> list[bytes]:
        """All counts, for `from_bytes`."""
        return [each.to_bytes() for each in (self.alone, self.heard, self.unheard)]

    @classmethod
    def from_bytes(cls, parts: list[bytes]) -> Counts:
        """What `to_bytes` gave."""
        return cls(*(Histogram.from_bytes(part) for part in parts))


class Scored:
    """What is known of the pairs of a source once they are scored."""

    def __init__(self, n: int, groups: int) -> None:
        # p-values by themselves, with witnesses, and of the picture against all its captions; NaN where none
        self.p = np.full((3, n), np.nan, np.float32)
        self.counts_by_group = [Counts.none() for _ in range(groups)]  # of the counted pairs

    @property
    def counts(self) -> dict[str, int]:
        ok = int(np.isfinite(self.p[0]).sum())
        return {"ok": ok, "not_scored": self.p.shape[1] - ok}


def score(
    records: np.ndarray,
    of_row: np.ndarray,
    counted: np.ndarray,
    scorers: Mapping[int, Scorer],
    groups: np.ndarray,
    *,
    good: np.ndarray,
    scored: Scored,
) -> None:
    """Fill in the pairs of the cells that have a scorer.

    records: (N,) RECORDs. counted: (N,) that noise is a share of; groups: of cells; good: (N,) that can be.
    """
    for cell, scorer in scorers.items():
        rows = np.flatnonzero(good & (of_row == cell))
        counts = scored.counts_by_group[groups[cell]]
        for start in range(0, len(rows), AT_A_TIME):
            some = rows[start : start + AT_A_TIME]
            _by_themselves(records[some], some, counted[some], scorer.null, scored, counts)
            heard = some[records["n"][some] >= LEAST]
            _with_witnesses(records[heard], heard, counted[heard], scorer.witnesses, scored, counts)


def _by_themselves(
    records: np.ndarray, rows: np.ndarray, counted: np.ndarray, null: Null, scored: Scored, counts: Counts
) -> None:
    features = records["features"].astype(np.float64)
    image, text = features[:, IMAGE], features[:, TEXT]
    tails = null.tails(np.stack([features[:, PAIR], image + text], 1))
    scored.p[0, rows] = p = null.p(tails)
    stratum = np.searchsorted(null.edges, image * text)
    asked = records["n"] >= LEAST
    for some, histogram in ((counted & ~asked, counts.alone), (counted & asked, counts.unheard)):
        histogram.add(p[some], tails[some].astype(np.float32), stratum[some])


def _with_witnesses(
    records: np.ndarray,
    rows: np.ndarray,
    counted: np.ndarray,
    null: Witnesses | None,
    scored: Scored,
    counts: Counts,
) -> None:
    if not len(rows):
        return
    features = records["features"].astype(np.float64)
    if null is None:  # nothing is known of strangers here
        tails, stratum = np.ones((len(rows), NULLS)), np.zeros(len(rows), np.int64)
        p, pictures, sources = (np.ones(len(rows)) for _ in range(3))
    else:
        tails, stratum = np.ceil(null.tails(features) * STEPS) / STEPS, null.stratum(features)
        p = null.p(tails)
        pictures = p_values(records["picture"], null.pictures)
        sources = p_values(records["source"], null.sources)
    scored.p[1, rows], scored.p[2, rows] = p, pictures
    counts.heard.add(p[counted], tails[counted], stratum[counted])
    flags, inside = records["flags"], counted & (records["flags"] & IN_SOURCE > 0)
    counts.heard.add_units(0, pictures[flags & PICTURE > 0], int(counted.sum()))
    counts.heard.add_units(1, sources[flags & SOURCE > 0], int(inside.sum()))


assert RECORD["features"].shape == (len(FEATURES),)
assert NULLS == STRATA + 2
