"""What `noise` writes: the scores of every pair, and `calibration.json`, what is said of each language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..shards.commit import write_table
from ..shards.files import readable
from ..shards.schema import NOISE
from .calibration import ASKED, STRATA
from .cells import Cells
from .embedded import Source
from .histogram import BINS, Histogram, bin_of
from .passes import Counts
from .testimony import FEATURES, LEAST

FEWEST_PICTURES = 60  # of fewer it cannot be told how many are wrong: their witnesses are not asked
NOT_ASKED = -1.0  # in place of a group's q-values with witnesses


def calibrate(counts: Counts, min_pairs: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The q-values of a group's bins, (2, BINS), and what is said of the group.

    The first row is for pairs by themselves, the second for those with witnesses: NOT_ASKED where they are
    fewer than `min_pairs`, or of too few pictures, and are calibrated with the others.
    """
    asked = counts.heard.n >= min_pairs and counts.heard.size[STRATA] >= FEWEST_PICTURES
    parts = (counts.alone, counts.heard) if asked else (counts.alone + counts.unheard, Histogram())
    q = [part.q_by_bin() for part in parts]
    n = sum(part.n for part in parts)
    wrong = sum(min(float(part.noise().sum()), part.n) for part in parts)
    kept = [part.kept_by_asked(each) for part, each in zip(parts, q, strict=True)]
    least = min(float(each[part.count > 0].min(initial=1.0)) for part, each in zip(parts, q, strict=True))
    said = {
        "pairs": n,
        "noise": round(wrong / n, 4) if n else 1.0,
        "auc": round(sum(part.outscored() * part.n for part in parts) / n, 4) if n else 0.5,  # at least
        "kept_by_asked": {key: sum(each[key] for each in kept) for key in kept[0]},
        "least": round(least + 5e-5, 4) if least < 1 else None,  # share that can be promised
    }
    if asked:
        said["witnesses"] = _heard(counts.heard)
    return np.stack([q[0], q[1] if asked else np.full(BINS, NOT_ASKED)]), said


def _heard(heard: Histogram) -> dict[str, Any]:
    noise = heard.noise() / max(heard.n, 1)
    shares = {"captions": noise[:STRATA].sum(), "pictures": noise[STRATA], "sources": noise[STRATA + 1]}
    return {"pairs": heard.n, **{f"wrong_{name}": round(float(share), 4) for name, share in shares.items()}}


def summary(cells: Cells, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`scores/noise/calibration.json`, from what is said of each group."""
    kept = {f"{asked:g}": sum(each["kept_by_asked"][f"{asked:g}"] for each in said) for asked in ASKED}
    return {"languages": dict(zip(cells.groups, said, strict=True)), "kept_by_asked": kept}


def write_scores(
    out: Path, source: Source, group: np.ndarray, p: np.ndarray, q: np.ndarray, records: np.ndarray
) -> Iterator[str]:
    """Write scores/noise/<shard>.parquet of every shard; yields its name.

    group: (N,) of each pair. p: (3, N) as `Scored` has it. q: (groups, 2, BINS) the q-values. records: (N,).
    """
    agree, others = (FEATURES.index(name) for name in ("agree", "others"))
    for shard, part in source:
        missing = ~np.isfinite(p[0, part])
        n = records["n"][part]
        heard = (n >= LEAST) & (q[group[part], 1, 0] != NOT_ASKED)
        own = np.where(heard, p[1, part], p[0, part])
        found = q[group[part], heard.astype(np.int8), bin_of(np.where(missing, 1, own))]
        held = pq.read_table(readable(shard.path), columns=["uid", "cosine_v1"])
        silent = missing | (n == 0)
        columns = [
            held.column("uid").combine_chunks(),
            held.column("cosine_v1").combine_chunks(),
            pa.array(own, pa.float32(), mask=missing),
            pa.array(found.astype(np.float32), mask=missing),
            pa.array(n, pa.int32(), mask=missing),
            pa.array(heard & ~missing),
            pa.array(records["features"][part, agree], pa.float32(), mask=silent),
            pa.array(records["features"][part, others], pa.float32(), mask=silent),
            pa.array(p[2, part], pa.float32(), mask=~np.isfinite(p[2, part])),
        ]
        path = out / "scores/noise" / f"{shard.name}.parquet"
        write_table(pa.Table.from_arrays(columns, schema=NOISE), path)
        yield shard.name
