"""Embeddings on disk: one shard read in blocks, and a source, the shards that one task of `noise` takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError, ShardError, may_pass
from ..shards.files import map_array, readable
from ..shards.ledger import records

BLOCK = 16_384  # rows of embeddings in memory at once


class Embeddings:
    """The embeddings of one shard, read in blocks."""

    def __init__(self, out: Path, name: str) -> None:
        self.name, self.path = name, out / "scores/embedding" / f"{name}.parquet"
        try:
            self.n = pq.read_metadata(readable(self.path)).num_rows
            self.image = map_array(self.path.with_suffix(".image.npy"))
            self.text = map_array(self.path.with_suffix(".text.npy"))
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

    def by_cell(
        self, of_row: np.ndarray, cells: range
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(cell, rows, images, texts) of the rows that can be scored and lie in one of `cells`, by blocks.

        of_row: (n,) the cell of each row.
        """
        for start in range(0, self.n, BLOCK):
            part = of_row[start : start + BLOCK]
            mine = (part >= cells.start) & (part < cells.stop)
            if not mine.any():
                continue
            rows = start + np.flatnonzero(mine)
            image, text = self.rows(slice(start, start + BLOCK) if mine.all() else rows)  # type: ignore[arg-type]
            good = usable(image, text)
            for cell in np.unique(of_row[rows]):
                own = good & (of_row[rows] == cell)
                if own.any():
                    yield int(cell), rows[own], image[own], text[own]


def usable(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """(N,) which pairs have finite embeddings."""
    return np.asarray(np.isfinite(image).all(1) & np.isfinite(text).all(1))


class Source:
    """Some shards, in order; its rows are theirs one after the other."""

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        self.shards = [Embeddings(out, name) for name in names]
        self.dim = self.shards[0].dim
        self.starts = np.cumsum([0, *(shard.n for shard in self.shards)])
        for shard in self.shards:
            if shard.dim != self.dim:
                raise DataError(f"{shard.path}: {shard.dim} dimensions, others have {self.dim}: embed again")

    @property
    def n(self) -> int:
        return int(self.starts[-1])

    def __iter__(self) -> Iterator[tuple[Embeddings, slice]]:
        """Each shard, and which rows of the source are its."""
        for number, shard in enumerate(self.shards):
            yield shard, slice(int(self.starts[number]), int(self.starts[number + 1]))

    def pairs(self) -> pa.Table:
        """uid and fold of every row."""
        return pa.concat_tables(
            [pq.read_table(readable(shard.path), columns=["uid", "fold"]) for shard in self.shards]
        )


def rows_of_shards(out: Path) -> dict[str, int]:
    """How many rows each shard has, sorted by name."""
    counted = {record["task"]: record["counts"].get("scored", 0) for record in records(out, "embed")}
    return _rows(out / "scores/embedding", counted)


def rows_of_languages(out: Path) -> dict[str, int]:
    """How many rows each part of the language scores has, sorted by name."""
    counted = {record["task"]: record["seen"] for record in records(out, "language")}
    return _rows(out / "scores/language", counted)


def _rows(folder: Path, counted: Mapping[str, int]) -> dict[str, int]:
    """By the tallies; by the footer where there is none."""
    names = sorted(path.stem for path in folder.glob("*.parquet"))
    return {name: counted[name] if name in counted else _footer(folder / f"{name}.parquet") for name in names}


def _footer(path: Path) -> int:
    try:
        return int(pq.read_metadata(readable(path)).num_rows)
    except (OSError, pa.ArrowInvalid):
        return 0  # the task that reads it says what is wrong


def cut(rows: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in their order, in runs of at most `most` rows; one alone may have more."""
    runs: list[list[str]] = []
    held = 0
    for name, n in rows.items():
        if not runs or held + n > most:
            runs.append([])
            held = 0
        runs[-1].append(name)
        held += n
    return runs
