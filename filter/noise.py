"""Stage `noise`: how likely each pair's score is for a pair that does not belong together.

The rule: scores are compared only within a cell, one fold and one language, since each fold has its own
embedding space. A pair's dot product, centred by its image's and its caption's mean, and how widely each of
the two scores (exact, from the means and covariances of the cell's embeddings) make one score that estimates
the likelihood ratio; the same of pairs that are known not to belong together, drawn from a sample of the
cell, is the null. P-values of all folds are comparable, so the share of noise and the q-values are reckoned
per language, among the pairs that every other rule would keep.

Memory: some 30 bytes per pair, and per cell one sample and two D x D matrices, however many pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, ShardError, may_pass
from ..recipe import Noise
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import write_json, write_table
from ..shards.schema import NOISE
from ..shards.selection import is_selected, read_selection, uids_to_array
from .calibration import STRATA, kept_by_asked, noise_by_stratum, outscored, q_values
from .cells import Cells, find_cells
from .evidence import Null, Space, evidence_of, null_of

BLOCK = 16_384  # rows of embeddings in memory at once
SAMPLE = 4_096  # pairs of a cell that are held against each other: a million scores with 256 negatives


def noise_tasks(out: Path) -> list[Task]:
    """One task over all embeddings; none before there are any."""
    return [Task("noise", "all")] if _shards(out) else []


def noise_stage(out: Path, settings: Noise, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `noise`: scores/noise/<shard>.parquet and scores/noise/calibration.json."""
    return Stage("noise", _start, (out, settings, memory_mb))


def _start(out: Path, settings: Noise, memory_mb: int = MEMORY_MB) -> Worker:
    return partial(_score_all, out, settings, memory_mb)


def _shards(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "scores/embedding").glob("*.parquet"))


def _score_all(out: Path, settings: Noise, memory_mb: int, task: Task) -> Tally:
    """Counts pairs: 'ok', and 'not_scored' where the embedding is broken. Facts: the calibration."""
    shards = [Embeddings(out, name) for name in _shards(out)]
    cells = find_cells(out, [shard.name for shard in shards], settings, SAMPLE, memory_mb)
    spaces = [Space(shards[0].dim) for _ in range(cells.n)]
    for done, (shard, of_row) in enumerate(_with_cells(shards, cells)):
        beat(task, done, 3 * len(shards), "means and spreads")
        _measure(shard, of_row, spaces)
    nulls = [_null(space, shards, cells, cell, settings) for cell, space in enumerate(spaces)]
    scored = Scored(len(cells.of_row))
    start = 0
    for done, (shard, of_row) in enumerate(_with_cells(shards, cells)):
        beat(task, len(shards) + done, 3 * len(shards), "scores")
        _score_shard(shard, of_row, spaces, nulls, scored, start)
        start += shard.n
    p, counts = scored.p, _candidates(out, shards)
    q, languages = _calibrate(scored, cells, counts)
    start = 0
    for done, shard in enumerate(shards):
        beat(task, 2 * len(shards) + done, 3 * len(shards), "writing")
        _write(out, shard, p[start : start + shard.n], q[start : start + shard.n])
        start += shard.n
    ok = int(np.isfinite(p).sum())
    said = {"languages": languages, "kept_by_asked": kept_by_asked(q[np.isfinite(q) & counts])}
    write_json(said, out / "scores/noise/calibration.json")
    return Tally({"ok": ok, "not_scored": len(p) - ok}, said)


class Embeddings:
    """The embeddings of one shard, read in blocks."""

    def __init__(self, out: Path, name: str) -> None:
        self.name, self.path = name, out / "scores/embedding" / f"{name}.parquet"
        try:
            self.n = pq.read_metadata(self.path).num_rows
            self.image = np.load(self.path.with_suffix(".image.npy"), mmap_mode="r", allow_pickle=False)
            self.text = np.load(self.path.with_suffix(".text.npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            if may_pass(error):
                raise
            raise ShardError(self.path, None, f"embeddings not readable, embed again: {error}") from error
        if self.image.shape != self.text.shape or self.image.ndim != 2 or len(self.image) != self.n:
            raise ShardError(
                self.path,
                None,
                f"{self.n} rows, but embeddings of shape {self.image.shape} and {self.text.shape}",
            )
        self.dim = self.image.shape[1]

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image and text embeddings of some rows, (N, D) float32 each."""
        return self.image[rows].astype(np.float32), self.text[rows].astype(np.float32)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """All rows in order: their slice and embeddings."""
        for start in range(0, self.n, BLOCK):
            part = slice(start, min(start + BLOCK, self.n))
            yield part, self.image[part].astype(np.float32), self.text[part].astype(np.float32)


class Scored:
    """What is known of all pairs, in the order of shards and rows."""

    def __init__(self, n: int) -> None:
        self.p = np.full(n, np.nan)  # NaN where an embedding is broken
        self.tails = np.ones((n, STRATA), np.float32)
        self.stratum = np.zeros(n, np.int8)


def _with_cells(shards: list[Embeddings], cells: Cells) -> Iterator[tuple[Embeddings, np.ndarray]]:
    """Each shard with the cells of its rows."""
    start = 0
    for shard in shards:
        yield shard, cells.of_row[start : start + shard.n]
        start += shard.n


def _usable(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(image).all(1) & np.isfinite(text).all(1))


def _measure(shard: Embeddings, of_row: np.ndarray, spaces: list[Space]) -> None:
    if shard.dim != spaces[0].dim:
        raise DataError(f"{shard.path}: {shard.dim} dimensions, others have {spaces[0].dim}: embed again")
    for part, image, text in shard.blocks():
        usable = _usable(image, text)
        for cell in np.unique(of_row[part]):
            rows = usable & (of_row[part] == cell)
            spaces[cell].add(image[rows], text[rows])


def _null(space: Space, shards: list[Embeddings], cells: Cells, cell: int, settings: Noise) -> Null:
    """Pairs that do not belong together: each sampled image against `negatives` captions.

    Partners lie at the same distances around a ring, so that each caption meets as many images. Pairs of one
    picture (or near-copy) or of one caption are left out: they belong together.
    """
    sample = cells.samples[cell]
    pairs = [shards[number].rows(sample.row[sample.shard == number]) for number in np.unique(sample.shard)]
    image, text = (np.concatenate(side) for side in zip(*pairs, strict=True))
    usable = _usable(image, text)
    n = int(usable.sum())
    if n < 2:
        return null_of(np.empty((0, 2)), np.empty((0, 2)), np.empty(0))
    images, texts = space.centred(image[usable], text[usable])
    picture, caption = sample.picture[usable], sample.caption[usable]
    dice = np.random.default_rng([settings.seed, cell])
    steps = 1 + dice.permutation(n - 1)[: settings.negatives]
    found = []
    for step in np.sort(steps):
        turned = np.r_[step:n, 0:step]
        strangers = np.flatnonzero((picture != picture[turned]) & (caption != caption[turned]))
        found.append(evidence_of(images[strangers], texts[turned[strangers]]))
    evidence, known = (np.concatenate(part) for part in zip(*found, strict=True))
    own, _ = evidence_of(images, texts)
    return null_of(own, evidence, known)


def _score_shard(
    shard: Embeddings,
    of_row: np.ndarray,
    spaces: list[Space],
    nulls: list[Null],
    scored: Scored,
    start: int,
) -> None:
    """Fill in the rows of `scored` from `start` on."""
    for part, image, text in shard.blocks():
        usable = _usable(image, text)
        for cell in np.unique(of_row[part]):
            rows = np.flatnonzero(usable & (of_row[part] == cell))
            if len(rows):
                evidence, known = evidence_of(*spaces[cell].centred(image[rows], text[rows]))
                null, at = nulls[cell], start + part.start + rows
                tails = null.tails(evidence)
                scored.p[at], scored.tails[at] = null.p(tails), tails
                scored.stratum[at] = np.searchsorted(null.edges, known)


def _candidates(out: Path, shards: list[Embeddings]) -> np.ndarray:
    """(N,) which pairs pass every other rule: noise is reckoned among them, for only they can be kept."""
    path = out / "selection" / "candidates.parquet"
    if not path.exists():
        return np.ones(sum(shard.n for shard in shards), bool)
    chosen = read_selection(path)
    uids = (uids_to_array(pq.read_table(shard.path, columns=["uid"]).column("uid")) for shard in shards)
    return np.concatenate([is_selected(each, chosen) for each in uids])


def _calibrate(scored: Scored, cells: Cells, counts: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """(N,) q-values and, by language, what was found. counts: (N,) which pairs the noise is a share of."""
    p, q, languages = scored.p, np.full(len(scored.p), np.nan), {}
    for group, name in enumerate(cells.groups):
        rows = np.flatnonzero((cells.group_of_cell[cells.of_row] == group) & np.isfinite(p))
        counted = rows[counts[rows]]
        noise = noise_by_stratum(scored.tails[counted], scored.stratum[counted])
        q[rows] = q_values(p[rows], scored.tails[rows] @ noise, counts[rows])
        languages[name] = {
            "pairs": len(counted),
            "noise": round(float(noise.sum()) / len(counted), 4) if len(counted) else 1.0,
            "auc": round(outscored(p[counted]), 4),  # at least
            "kept_by_asked": kept_by_asked(q[counted]),
        }
    return q, languages


def _write(out: Path, shard: Embeddings, p: np.ndarray, q: np.ndarray) -> None:
    held = pq.read_table(shard.path, columns=["uid", "cosine_v1"])
    missing = ~np.isfinite(p)
    columns = [
        held.column("uid").combine_chunks(),
        held.column("cosine_v1").combine_chunks(),
        pa.array(p.astype(np.float32), mask=missing),
        pa.array(q.astype(np.float32), mask=missing),
    ]
    write_table(pa.Table.from_arrays(columns, schema=NOISE), out / "scores/noise" / f"{shard.name}.parquet")
