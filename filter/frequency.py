"""Stage `frequency`: how rare the rarest token of each caption is; run only when a rule asks.

The rule: ranks are exact and have no ties, so that "the 100 million most frequent" is one set. Tokens are
the words (lower case, split at spaces) and the pairs of neighbouring words of every distinct pair's
caption, ranked together by (count, most first; token). Rank 1 is the most frequent.

DuckDB spills: a billion captions are some 20 billion tokens, about 300 GB of temporary disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..recipe import Dedup, Rules
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import write_table
from ..shards.schema import FREQUENCY
from .columns import part_names, read_part
from .rules import compile_rules
from .sql import database

CAPTIONS = pa.schema([("seq", pa.int64()), ("pair_rank_v1", pa.int32()), ("caption", pa.string())])
WORDS = "list_filter(string_split(lower(caption), ' '), lambda word: word <> '')"
TOKENS = f"""
CREATE TEMP TABLE tokens AS
SELECT seq, pair_rank_v1 = 0 AS first, unnest(list_concat(words, list_transform(
  range(1, len(words)), lambda place: words[place] || ' ' || words[place + 1]))) AS token
FROM (SELECT seq, pair_rank_v1, {WORDS} AS words FROM source)
"""
RANKS = """
CREATE TEMP TABLE ranks AS
SELECT token, row_number() OVER (ORDER BY n DESC, token) AS rank
FROM (SELECT token, count(*) FILTER (first) AS n FROM tokens GROUP BY token)
"""
RAREST = """
SELECT seq, rarest_token_rank_v1
FROM range($rows) all_rows(seq)
LEFT JOIN (SELECT seq, max(rank) AS rarest_token_rank_v1 FROM tokens JOIN ranks USING (token) GROUP BY seq)
USING (seq) ORDER BY seq
"""


def needs_frequency(*rules: Rules) -> bool:
    """Whether any rule names `rarest_token_rank_v1`."""
    return any("rarest_token_rank_v1" in compile_rules(group).words for group in rules)


def frequency_tasks(out: Path) -> list[Task]:
    """One task over all parts; none where there are no pairs."""
    return [Task("frequency", "all")] if part_names(out) else []


def frequency_stage(out: Path, limits: Dedup, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `frequency`, after `dedup`: scores/frequency/<part>.parquet, row by row beside the part."""
    return Stage("frequency", _start, (out, limits, memory_mb))


def _start(out: Path, limits: Dedup, memory_mb: int) -> Worker:
    return partial(_rank_tokens, out, limits, memory_mb)


def _rank_tokens(out: Path, limits: Dedup, memory_mb: int, task: Task) -> Tally:
    """Counts rows; facts: distinct tokens."""
    parts = part_names(out)
    with database(out, "frequency", memory_mb=memory_mb, threads=limits.threads) as connection:
        connection.register("source", pa.RecordBatchReader.from_batches(CAPTIONS, _captions(out, parts)))
        connection.execute(TOKENS)
        beat(task, 1, 3, "counting tokens")
        connection.execute(RANKS)
        beat(task, 2, 3, "ranking captions")
        n_tokens = connection.sql("SELECT count(*) FROM ranks").fetchall()[0][0]
        sizes = [pq.read_metadata(out / "pairs" / f"{part}.parquet").num_rows for part in parts]
        rows = Rows(connection.sql(RAREST, params={"rows": sum(sizes)}).to_arrow_reader(100_000))
        for part, size in zip(parts, sizes, strict=True):
            uid = read_part(out, part, ()).column("uid")
            table = pa.table([uid, rows.take(size).column("rarest_token_rank_v1")], schema=FREQUENCY)
            write_table(table, out / "scores" / "frequency" / f"{part}.parquet")
    return Tally({"ranked": sum(sizes)}, {"tokens": n_tokens})


def _captions(out: Path, parts: list[str]) -> Iterator[pa.RecordBatch]:
    seq = 0
    for part in parts:
        table = read_part(out, part, ("caption", "pair_rank_v1"))
        numbers = pa.array(np.arange(seq, seq + len(table)))
        columns = [numbers, table.column("pair_rank_v1"), table.column("caption")]
        yield from pa.table(columns, schema=CAPTIONS).combine_chunks().to_batches()
        seq += len(table)


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
