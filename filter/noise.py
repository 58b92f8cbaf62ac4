"""Stage `noise`: how likely each pair's score is for a pair that does not belong together.

The rule: scores are compared only within a cell, one fold and one language, since each fold has its own
embedding space. A score is centred by its image's and its caption's mean and scaled by their spreads over
the cell (exact, from the means and covariances of the cell's embeddings); the same scores of pairs that
are known not to belong together, drawn from a sample of the cell, are the null. P-values of all folds are
comparable, so the share of noise and the q-values are reckoned per language, among the pairs that every
other rule would keep.

Memory: a few bytes per pair, and per cell one sample and two D x D matrices, whatever the input's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, ShardError
from ..recipe import Noise
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import write_json, write_table
from ..shards.schema import NOISE
from ..shards.selection import is_selected, read_selection, uids_to_array
from .calibration import kept_by_asked, noise_share, outscored, p_values, q_values
from .cells import Cells, find_cells

BLOCK = 16_384  # rows of embeddings in memory at once
SAMPLE = 4_096  # pairs of a cell that are held against each other: a million scores with 256 negatives
TINY = 1e-12  # a spread below it is none: every caption scores the same


def noise_tasks(out: Path) -> list[Task]:
    """One task over all embeddings; none before there are any."""
    return [Task("noise", "all")] if _shards(out) else []


def noise_stage(out: Path, settings: Noise) -> Stage:
    """The stage `noise`: scores/noise/<shard>.parquet and scores/noise/calibration.json."""
    return Stage("noise", _start, (out, settings))


def _start(out: Path, settings: Noise) -> Worker:
    return partial(_score_all, out, settings)


def _shards(out: Path) -> list[str]:
    return sorted(path.stem for path in (out / "scores/embedding").glob("*.parquet"))


def _score_all(out: Path, settings: Noise, task: Task) -> Tally:
    """Counts pairs: 'ok', and 'not_scored' where the embedding is broken. Facts: the calibration."""
    shards = [Embeddings(out, name) for name in _shards(out)]
    cells = find_cells(out, [shard.name for shard in shards], settings, SAMPLE)
    spaces = [Space(shards[0].dim) for _ in range(cells.n)]
    for done, (shard, of_row) in enumerate(_with_cells(shards, cells)):
        beat(task, done, 3 * len(shards), "means and spreads")
        _measure(shard, of_row, spaces)
    nulls = [_null(space, shards, cells, cell, settings) for cell, space in enumerate(spaces)]
    p = np.full(len(cells.of_row), np.nan)
    start = 0
    for done, (shard, of_row) in enumerate(_with_cells(shards, cells)):
        beat(task, len(shards) + done, 3 * len(shards), "scores")
        p[start : start + shard.n] = _p_of_shard(shard, of_row, spaces, nulls)
        start += shard.n
    counts = _candidates(out, shards)
    q, languages = _calibrate(p, cells, counts)
    start = 0
    for done, shard in enumerate(shards):
        beat(task, 2 * len(shards) + done, 3 * len(shards), "writing")
        _write(out, shard, p[start : start + shard.n], q[start : start + shard.n])
        start += shard.n
    scored = int(np.isfinite(p).sum())
    said = {"languages": languages, "kept_by_asked": kept_by_asked(q[np.isfinite(q) & counts])}
    write_json(said, out / "scores/noise/calibration.json")
    return Tally({"ok": scored, "not_scored": len(p) - scored}, said)


class Embeddings:
    """The embeddings of one shard, read in blocks."""

    def __init__(self, out: Path, name: str) -> None:
        self.name, self.path = name, out / "scores/embedding" / f"{name}.parquet"
        try:
            self.n = pq.read_metadata(self.path).num_rows
            self.image = np.load(self.path.with_suffix(".image.npy"), mmap_mode="r", allow_pickle=False)
            self.text = np.load(self.path.with_suffix(".text.npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
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


@dataclass
class Space:
    """What is known of the embeddings of one cell: how many, their sums and their products."""

    dim: int
    n: int = 0
    sums: np.ndarray = field(init=False)  # (2, D) float64: images, texts
    products: np.ndarray = field(init=False)  # (2, D, D) float64

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, self.dim))
        self.products = np.zeros((2, self.dim, self.dim))

    def add(self, image: np.ndarray, text: np.ndarray) -> None:
        """Take in the embeddings (N, D) of some pairs."""
        self.n += len(image)
        for side, vectors in enumerate((image.astype(np.float64), text.astype(np.float64))):
            self.sums[side] += vectors.sum(0)
            self.products[side] += vectors.T @ vectors

    def centred(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors whose dot products are the standardised scores of all pairs of these images and texts.

        (I - mean I)(T - mean T) is the score less its image's and its caption's mean; an image's spread
        over all captions is the root of (I - mean I)' cov(T) (I - mean I), and a caption's likewise.
        """
        means = self.sums / self.n
        scaled = []
        for side, vectors in enumerate((image, text)):
            other = self.products[1 - side] / self.n - np.outer(means[1 - side], means[1 - side])
            inner = vectors - means[side]
            spread = np.sqrt(np.maximum(((inner @ other) * inner).sum(1), 0))
            scale = np.where(spread > TINY, 1 / np.maximum(spread, TINY), 0)
            scaled.append((inner * scale[:, None]).astype(np.float32))
        return scaled[0], scaled[1]


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


def _null(space: Space, shards: list[Embeddings], cells: Cells, cell: int, settings: Noise) -> np.ndarray:
    """Sorted scores of pairs that do not belong together: each sampled image against `negatives` captions.

    Partners lie at the same distances around a ring, so that each caption meets as many images. Pairs of one
    picture (or near-copy) or of one caption are left out: they belong together.
    """
    sample = cells.samples[cell]
    pairs = [shards[number].rows(sample.row[sample.shard == number]) for number in np.unique(sample.shard)]
    image, text = (np.concatenate(side) for side in zip(*pairs, strict=True))
    usable = _usable(image, text)
    n = int(usable.sum())
    if n < 2:
        return np.empty(0, np.float32)
    image, text = space.centred(image[usable], text[usable])
    picture, caption = sample.picture[usable], sample.caption[usable]
    dice = np.random.default_rng([settings.seed, cell])
    steps = 1 + dice.permutation(n - 1)[: settings.negatives]
    null = []
    for step in np.sort(steps):
        turned = np.r_[step:n, 0:step]
        strangers = (picture != picture[turned]) & (caption != caption[turned])
        null.append(_dot(image[strangers], text[turned[strangers]]))
    return np.sort(np.concatenate(null))


def _dot(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", image, text)


def _p_of_shard(
    shard: Embeddings, of_row: np.ndarray, spaces: list[Space], nulls: list[np.ndarray]
) -> np.ndarray:
    """(N,) p-values, NaN where an embedding is broken."""
    p = np.full(shard.n, np.nan)
    for part, image, text in shard.blocks():
        usable = _usable(image, text)
        for cell in np.unique(of_row[part]):
            rows = np.flatnonzero(usable & (of_row[part] == cell))
            if len(rows):
                scores = _dot(*spaces[cell].centred(image[rows], text[rows]))
                p[part.start + rows] = p_values(scores, nulls[cell])
    return p


def _candidates(out: Path, shards: list[Embeddings]) -> np.ndarray:
    """(N,) which pairs pass every other rule: noise is reckoned among them, for only they can be kept."""
    path = out / "selection" / "candidates.parquet"
    if not path.exists():
        return np.ones(sum(shard.n for shard in shards), bool)
    chosen = read_selection(path)
    uids = (uids_to_array(pq.read_table(shard.path, columns=["uid"]).column("uid")) for shard in shards)
    return np.concatenate([is_selected(each, chosen) for each in uids])


def _calibrate(p: np.ndarray, cells: Cells, counts: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """(N,) q-values and, by language, what was found. counts: (N,) which pairs the noise is a share of."""
    q, languages = np.full(len(p), np.nan), {}
    for group, name in enumerate(cells.groups):
        rows = np.flatnonzero((cells.group_of_cell[cells.of_row] == group) & np.isfinite(p))
        counted = rows[counts[rows]]
        share = noise_share(p[counted])
        q[rows] = q_values(p[rows], share, p[counted])
        languages[name] = {
            "pairs": len(counted),
            "noise": round(share, 4),
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
