"""Stage `dedup`: exact copies of pairs, of URLs and of captions, counted over all parts at once.

The rule: it works on the three 16-byte hashes of a row and never sees a URL or a caption, so a row costs
about 60 bytes of what DuckDB may spill, whatever its text. The first row of a uid is the first by
(part, row), so the answer depends neither on threads nor on memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError
from ..recipe import Dedup
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import write_table
from ..shards.schema import COPIES
from .columns import part_names
from .sql import database

HASHES = ("uid", "url_hash", "caption_hash")
KEYS = pa.schema([("seq", pa.int64()), *((name, pa.uuid()) for name in HASHES)])
# A pair is a (URL, caption), so among first rows each caption of a URL, and each URL of a caption, is met
# once: counting first rows counts distinct ones. One window after the other keeps one sort in memory.
WINDOWS = """
WITH pairs AS (
  SELECT seq, uid, url_hash, caption_hash,
    row_number() OVER (PARTITION BY uid ORDER BY seq) - 1 AS pair_rank,
    count(*) OVER (PARTITION BY uid) AS pair_copies
  FROM keys
), images AS (
  SELECT seq, caption_hash, pair_rank, pair_copies,
    dense_rank() OVER (PARTITION BY url_hash ORDER BY uid) - 1 AS caption_rank,
    count(*) FILTER (pair_rank = 0) OVER (PARTITION BY url_hash) AS captions_per_image
  FROM pairs
)
SELECT seq,
  pair_rank::INTEGER AS pair_rank_v1,
  pair_copies::INTEGER AS pair_copies_v1,
  captions_per_image::INTEGER AS captions_per_image_v1,
  caption_rank::INTEGER AS caption_rank_v1,
  (count(*) FILTER (pair_rank = 0) OVER (PARTITION BY caption_hash))::INTEGER AS images_per_caption_v1,
  (row_number() OVER (PARTITION BY caption_hash ORDER BY seq) = 1)::INTEGER AS first_of_caption
FROM images
ORDER BY seq
"""


def dedup_tasks(out: Path) -> list[Task]:
    """One task over all parts; none where there are no pairs."""
    return [Task("dedup", "all")] if part_names(out) else []


def dedup_stage(out: Path, settings: Dedup, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `dedup`: scores/copies/<part>.parquet, row by row beside pairs/<part>.parquet."""
    return Stage("dedup", _start, (out, settings, memory_mb))


def _start(out: Path, settings: Dedup, memory_mb: int) -> Worker:
    return partial(_count_copies, out, settings, memory_mb)


def _count_copies(out: Path, settings: Dedup, memory_mb: int, task: Task) -> Tally:
    """Counts rows: 'first' of their uid and 'pair_copy'; facts: distinct URLs, captions and pairs."""
    parts = part_names(out)
    with database(out, "dedup", memory_mb=memory_mb, threads=settings.threads) as connection:
        connection.register("source", pa.RecordBatchReader.from_batches(KEYS, _keys(out, parts, task)))
        connection.execute("CREATE TEMP TABLE keys AS SELECT * FROM source")
        beat(task, 1, 3, "sorting")
        return _write_parts(out, parts, connection.sql(WINDOWS), task)


def _keys(out: Path, parts: list[str], task: Task) -> Iterator[pa.RecordBatch]:
    """Every row's number, counted over all parts, and its three hashes as 128-bit numbers."""
    seq = 0
    for done, part in enumerate(parts):
        beat(task, done / len(parts), 3, "reading")
        with pq.ParquetFile(out / "pairs" / f"{part}.parquet") as file:
            for batch in file.iter_batches(100_000, columns=list(HASHES)):
                numbers = pa.array(np.arange(seq, seq + len(batch)))
                hashes = [pa.ExtensionArray.from_storage(pa.uuid(), batch.column(name)) for name in HASHES]
                yield pa.RecordBatch.from_arrays([numbers, *hashes], schema=KEYS)
                seq += len(batch)


def _write_parts(out: Path, parts: list[str], found: duckdb.DuckDBPyRelation, task: Task) -> Tally:
    """Cut the rows, which come in the order of `seq`, into the parts that they belong to."""
    counts = {"first": 0, "pair_copy": 0}
    facts = {"pairs": 0, "urls": 0, "captions": 0}
    rows = Rows(found.to_arrow_reader(100_000))
    for done, part in enumerate(parts):
        uid = pq.read_table(out / "pairs" / f"{part}.parquet", columns=["uid"]).column("uid")
        table = rows.take(len(uid))
        first = pc.equal(table.column("pair_rank_v1"), 0)
        n_first = pc.sum(first).as_py() or 0
        counts["first"] += n_first
        counts["pair_copy"] += len(uid) - n_first
        fresh = pc.and_(first, pc.equal(table.column("caption_rank_v1"), 0))
        facts["urls"] += pc.sum(fresh).as_py() or 0
        facts["captions"] += pc.sum(table.column("first_of_caption")).as_py() or 0
        columns = table.drop_columns(["seq", "first_of_caption"]).add_column(0, "uid", uid)
        write_table(columns.cast(COPIES), out / "scores" / "copies" / f"{part}.parquet")
        beat(task, 2 + (done + 1) / len(parts), 3, "writing")
    facts["pairs"] = counts["first"]
    return Tally(counts, facts)


class Rows:
    """Takes rows off a stream of batches, as many at a time as asked for."""

    def __init__(self, batches: pa.RecordBatchReader) -> None:
        self._batches, self._held = batches, batches.schema.empty_table()

    def take(self, n: int) -> pa.Table:
        """The next `n` rows, in one chunk. Raises DataError where the stream ends before."""
        while len(self._held) < n:
            try:
                batch = self._batches.read_next_batch()
            except StopIteration:
                raise DataError(
                    f"{n} rows expected, {len(self._held)} left: pairs/ changed meanwhile"
                ) from None
            self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch])])
        taken, self._held = self._held.slice(0, n), self._held.slice(n)
        return taken.combine_chunks()
