"""The parts of pairs that one list becomes: bounded by rows and by bytes, whatever batches they come in."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..shards.commit import committed
from ..shards.schema import PAIRS

FEW_VALUES = ["source", "tar_path"]  # dictionaries of the others cost a third of the writing time
ROW_BYTES = 100  # of a pair beside its text: hashes, numbers, offsets


class Parts:
    """Cuts the pairs of one task into parts; the last one, and those of long rows, are shorter.

    A row begins a new part where the one before has `max_rows` rows, or would pass `max_bytes` with it.
    A part is written while the next one is read: one at a time, so that at most two are in memory.
    """

    def __init__(self, folder: Path, name: str, max_rows: int, max_bytes: int) -> None:
        self._folder, self._name, self._max_rows, self._max_bytes = folder, name, max_rows, max_bytes
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.n_parts = 0

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def add(self, pairs: pa.Table) -> None:
        """Take the next rows, and write the parts that are full."""
        ends = np.cumsum(_row_bytes(pairs))  # where each row ends, in bytes from the first on
        at = begin = 0
        while at < len(pairs):
            fits = int(np.searchsorted(ends, begin + self._max_bytes - self._bytes, "right")) - at
            n_rows = min(max(fits, int(self._rows == 0)), self._max_rows - self._rows)
            if n_rows:
                self._waiting.append(pairs.slice(at, n_rows))
                at += n_rows
                self._rows += n_rows
                self._bytes += int(ends[at - 1]) - begin
                begin = int(ends[at - 1])
            if at < len(pairs) or self._rows == self._max_rows:
                self._write()

    def close(self) -> None:
        """Write the last part, if a row is left for it."""
        if self._waiting:
            self._write()
        self._wait()

    def _write(self) -> None:
        self._wait()
        path = self._folder / f"{self._name}-{self.n_parts:05d}.parquet"
        self._written = self._writer.submit(_write_part, pa.concat_tables(self._waiting), path)
        self._waiting, self._rows, self._bytes = [], 0, 0
        self.n_parts += 1

    def _wait(self) -> None:
        """Until the part before is written. Raises what its writing raised."""
        if self._written is not None:
            self._written.result()


def _row_bytes(pairs: pa.Table) -> np.ndarray:
    """(N,) bytes of each row."""
    total = np.full(len(pairs), ROW_BYTES, np.int64)
    for name in ("url", "caption", "given"):
        total += pc.fill_null(pc.binary_length(pairs[name]), 0).to_numpy()
    return total


def _write_part(part: pa.Table, path: Path) -> None:
    whole = part.combine_chunks()  # Arrow ends a page where a chunk ends
    assert whole.schema.equals(PAIRS)
    with committed(path) as temporary:
        pq.write_table(whole, temporary, compression="zstd", use_dictionary=FEW_VALUES)  # type: ignore[arg-type]
