"""The passes of the noise score over the embeddings of some shards, for some cells at a time.

First the moments of every cell; then, with its null, every pair's p-value, counted into a histogram.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..recipe import Noise
from ..shards.commit import write_table
from ..shards.files import readable
from ..shards.schema import NOISE
from .calibration import ASKED
from .cells import Cells
from .embedded import Source
from .evidence import AT_ONCE, Frame, Null, Space, evidence_of
from .histogram import Histogram, bin_of
from .strangers import SAMPLE

Said = Callable[[int], object]  # told how many shards are done


@dataclass(frozen=True)
class Scorer:
    """What scores the pairs of a cell."""

    frame: Frame
    null: Null

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`."""
        null, file = self.null, io.BytesIO()
        held: dict[str, Any] = {"means": self.frame.means, "spreads": self.frame.spreads}
        held |= {"weights": null.weights, "edges": null.edges}
        held |= {f"scores{number}": scores for number, scores in enumerate(null.scores)}
        np.savez(file, **held)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Scorer:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            strata = [held[f"scores{number}"] for number in range(len(held["edges"]) + 1)]
            null = Null(held["weights"], held["edges"], strata)
            return cls(Frame(held["means"], held["spreads"]), null)


def batches(cells: int, dim: int, settings: Noise, memory_mb: int) -> list[range]:
    """The cells that are in memory together, in each pass: as many as half of `memory_mb` holds, or one."""
    moments, waiting, sample = 2 * 2 * 8 * dim**2, 2 * 4 * dim * AT_ONCE, 2 * 4 * dim * SAMPLE
    size = max(1, memory_mb * 2**19 // (moments + waiting + sample + 8 * SAMPLE * settings.negatives))
    return [range(start, min(start + size, cells)) for start in range(0, cells, size)]


def measure(source: Source, of_row: np.ndarray, batch: range, said: Said) -> dict[int, Space]:
    """The moments of each cell of a batch that has pairs in this source. of_row: (N,) the cell of each."""
    spaces: dict[int, Space] = {}
    for done, (shard, part) in enumerate(source):
        said(done)
        for cell, _, image, text in shard.by_cell(of_row[part], batch):
            spaces.setdefault(cell, Space(source.dim)).add(image, text)
    return spaces


class Scored:
    """What is known of the pairs of a source once they are scored."""

    def __init__(self, n: int, groups: int) -> None:
        self.p = np.full(n, np.nan, np.float32)  # NaN where an embedding is broken
        self.histograms = [Histogram() for _ in range(groups)]  # of the counted pairs

    @property
    def counts(self) -> dict[str, int]:
        ok = int(np.isfinite(self.p).sum())
        return {"ok": ok, "not_scored": len(self.p) - ok}


def score(
    source: Source,
    of_row: np.ndarray,
    counted: np.ndarray,
    scorers: Mapping[int, Scorer],
    groups: np.ndarray,
    *,
    batch: range,
    scored: Scored,
    said: Said,
) -> None:
    """Fill in the pairs of a batch of cells. counted: (N,) that noise is a share of; groups: of cells."""
    for done, (shard, part) in enumerate(source):
        said(done)
        for cell, rows, image, text in shard.by_cell(of_row[part], batch):
            null = scorers[cell].null
            evidence, known = evidence_of(*scorers[cell].frame.centred(image, text))
            tails = null.tails(evidence)
            p, at = null.p(tails), part.start + rows
            scored.p[at] = p
            some = counted[at]
            stratum = np.searchsorted(null.edges, known[some])
            scored.histograms[groups[cell]].add(p[some], tails[some].astype(np.float32), stratum)


def calibrate(histogram: Histogram) -> tuple[np.ndarray, dict[str, Any]]:
    """The q-value of each bin of a group, and what is said of the group."""
    q, n = histogram.q_by_bin(), histogram.n
    return q, {
        "pairs": n,
        "noise": round(float(histogram.noise().sum()) / n, 4) if n else 1.0,
        "auc": round(histogram.outscored(), 4),  # at least
        "kept_by_asked": histogram.kept_by_asked(q),
    }


def summary(cells: Cells, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`scores/noise/calibration.json`, from what is said of each group."""
    kept = {f"{asked:g}": sum(each["kept_by_asked"][f"{asked:g}"] for each in said) for asked in ASKED}
    return {"languages": dict(zip(cells.groups, said, strict=True)), "kept_by_asked": kept}


def write_scores(out: Path, source: Source, group: np.ndarray, p: np.ndarray, q: np.ndarray) -> Iterator[str]:
    """Write scores/noise/<shard>.parquet of every shard; yields its name.

    group: (N,) of each pair. p: (N,). q: (groups, BINS) the q-values.
    """
    for shard, part in source:
        own, missing = p[part], ~np.isfinite(p[part])
        found = q[group[part], bin_of(np.where(missing, 1, own))]
        held = pq.read_table(readable(shard.path), columns=["uid", "cosine_v1"])
        columns = [
            held.column("uid").combine_chunks(),
            held.column("cosine_v1").combine_chunks(),
            pa.array(own, mask=missing),
            pa.array(found.astype(np.float32), mask=missing),
        ]
        path = out / "scores/noise" / f"{shard.name}.parquet"
        write_table(pa.Table.from_arrays(columns, schema=NOISE), path)
        yield shard.name
