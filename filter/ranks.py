"""Ranks and counts of 128-bit keys over more rows than fit into memory.

The rule: rows lie on disk, one file per range of keys, and are taken a chunk at a time, so memory is bounded
however many rows bear one key. A chunk costs one sort of 64-bit numbers; the second half of a key decides
only where two keys share the first, which random hashes do once in some billion rows.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROW_BYTES = 300  # of memory for each row of a chunk, at most: rows, table, sort


@contextmanager
def scratch(out: Path, name: str) -> Iterator[Path]:
    """An empty folder `out/_tmp/<name>`, removed at the end."""
    folder = out / "_tmp" / name
    shutil.rmtree(folder, ignore_errors=True)  # a killed run's
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another task's is still there
            folder.parent.rmdir()


def column(path: Path, n: int, kind: type[np.integer]) -> np.ndarray:
    """(n,) zeros on disk, which is taken at once: a full one that shows later would kill the process."""
    with open(path, "wb") as file:
        if n:
            os.posix_fallocate(file.fileno(), 0, n * np.dtype(kind).itemsize)
    return np.memmap(path, kind, "r+", shape=(n,)) if n else np.zeros(0, kind)


class Spill:
    """Rows of uint64 (key high, key low, number, …), in files by the range of their keys.

    n: rows that will come, more or less. chunk: rows in memory at once.
    Within a file rows stay in the order in which they came.
    """

    def __init__(self, folder: Path, n: int, width: int, chunk: int) -> None:
        folder.mkdir()
        self.n_files, self.width, self.chunk = max(1, -(-n // chunk) * 4 // 3), width, chunk
        self._paths = [folder / f"{number}" for number in range(self.n_files)]
        for path in self._paths:
            path.touch()

    def add(self, rows: np.ndarray) -> None:
        """Append rows (N, width)."""
        if self.n_files == 1:
            self._append(0, rows)
            return
        file = ((rows[:, 0] >> np.uint64(32)) * np.uint64(self.n_files) >> np.uint64(32)).astype(np.int64)
        order = np.argsort(file, kind="stable")
        ends = np.searchsorted(file[order], np.arange(self.n_files), side="right")
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                self._append(number, rows[order[begin:end]])
            begin = end

    def _append(self, number: int, rows: np.ndarray) -> None:
        data = np.ascontiguousarray(rows).tobytes()
        with open(self._paths[number], "ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._paths[number]))

    def groups(self) -> Iterator[Group]:
        """One after the other, by key: the rows of each file, ranked."""
        for path in self._paths:
            yield Group(path, self.width, self.chunk)
            path.unlink()


@dataclass(frozen=True, slots=True)
class Ranked:
    """A chunk of rows: each one's number, its rank among all with its key, and the first of these."""

    number: np.ndarray
    rank: np.ndarray
    first: np.ndarray


class Group:
    """The rows of one file; once `ranked` is through, `firsts` holds the first row of each key, by key."""

    def __init__(self, path: Path, width: int, chunk: int) -> None:
        self._path, self._width, self._chunk = path, width, chunk
        self.firsts = np.zeros((0, width), np.uint64)
        self.counts = np.zeros(0, np.int64)
        self._place: np.ndarray | None = None

    def _chunks(self) -> Iterator[np.ndarray]:
        with open(self._path, "rb") as file:
            while data := file.read(self._chunk * self._width * 8):
                yield np.frombuffer(data, np.uint64).reshape(-1, self._width)

    def ranked(self) -> Iterator[Ranked]:
        """Chunk by chunk; rows of one key are ranked 0, 1, 2, … in the order in which they were added."""
        for chunk, rows in enumerate(self._chunks()):
            known = len(self.firsts)
            rows = np.concatenate([self.firsts, rows]) if known else rows
            counts = np.concatenate([self.counts, np.ones(len(rows) - known, np.int64)])
            order, begins, run = _runs(rows)
            before = np.cumsum(counts[order]) - counts[order]
            rank, place = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
            rank[order], place[order] = before - before[begins][run], run
            self.firsts, self.counts = rows[order[begins]], np.add.reduceat(counts[order], begins)
            number = rows[known:, 2].astype(np.int64)
            yield Ranked(number, rank[known:], self.firsts[place[known:], 2].astype(np.int64))
            self._place = place if chunk == 0 else None

    def counted(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """After `ranked`: chunks of (row numbers, how many rows bear the same key)."""
        for rows in self._chunks():
            place = self._find(rows) if self._place is None else self._place
            yield rows[:, 2].astype(np.int64), self.counts[place]

    def _find(self, rows: np.ndarray) -> np.ndarray:
        """(N,) the place of each row's key in `firsts`, which has them all."""
        order, _, run = _runs(np.concatenate([self.firsts[:, :2], rows[:, :2]]))
        place = np.empty(len(order), np.int64)
        place[order] = run
        return place[len(self.firsts) :]


def _runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N, 2 or more) sorted by their first two columns, stably; N > 0.

    Returns their order (N,), where in it each run of equal keys begins (R,), and the run of each place (N,).
    """
    high, low = np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1])
    order = np.argsort(high, kind="stable")
    same_high, same_low = _same(high[order]), _same(low[order])
    if (same_high & ~same_low).any():
        order = np.lexsort((low, high))
        same_high, same_low = _same(high[order]), _same(low[order])
    new = np.concatenate([[True], ~(same_high & same_low)])
    return order, np.flatnonzero(new), np.cumsum(new) - 1


def _same(values: np.ndarray) -> np.ndarray:
    return values[1:] == values[:-1]
