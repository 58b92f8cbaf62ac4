"""Stage `frequency`: how rare the rarest token of each caption is; run only when a rule asks.

The rule: ranks are exact and have no ties, so that "the 100 million most frequent" is one set. Tokens are
the words (lower case, split at spaces) and the pairs of neighbouring words of every distinct pair's
caption, ranked together by (count, most first; token). Rank 1 is the most frequent.

A list that fits one task is counted in it. Of a larger one each source counts its own tokens, and sends them
to partitions that are ranges in the order of tokens, cut at a sample:

    tokens     each source counts its distinct tokens, and leaves some of them as a sample
    send       each source sends them to their ranges
    counts     a range adds them up, and leaves how many of its tokens are said how often
    answers    a range answers the rank: tokens said more often, or as often and in order before it
    frequency  each source writes its parts
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError
from ..recipe import Dedup, Rules
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB, ROWS_PER_PARTITION
from ..shards import exchange
from ..shards.commit import write_table
from ..shards.exchange import exchange_folder
from ..shards.files import readable
from ..shards.schema import FREQUENCY
from ..shards.store import open_store
from .columns import read_part
from .rules import compile_rules
from .sources import Sending, cut, prepare, start
from .sql import database

SAMPLE = 1_000  # tokens of a source, from which the ranges are cut
TOKENS_SENT, SAMPLES, RANGES, HISTOGRAMS = (
    exchange_folder("frequency", name) for name in ("tokens", "samples", "ranges", "histograms")
)
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
COUNTED = "SELECT token, count(*) FILTER (first) AS n FROM tokens GROUP BY token ORDER BY token"
RAREST = """
SELECT seq, rarest_token_rank_v1
FROM range($rows) all_rows(seq)
LEFT JOIN (SELECT seq, max(rank) AS rarest_token_rank_v1 FROM tokens JOIN ranks USING (token) GROUP BY seq)
USING (seq) ORDER BY seq
"""


def needs_frequency(*rules: Rules) -> bool:
    """Whether any rule names `rarest_token_rank_v1`."""
    return any("rarest_token_rank_v1" in compile_rules(group).words for group in rules)


def frequency_tasks(out: Path, rows: int = ROWS_PER_PARTITION) -> list[Task]:
    """A task for each source of up to `rows` rows; none where there are no pairs."""
    return cut(out, "frequency", rows).tasks


def frequency_phases(
    out: Path, limits: Dedup, memory_mb: int = MEMORY_MB, rows: int = ROWS_PER_PARTITION
) -> Iterator[tuple[Sequence[Task], Stage]]:
    """What runs before the stage: something only where there are several sources."""
    sendings = (
        Sending("tokens", partial(_count_tokens, limits=limits, memory_mb=memory_mb), (), of_sources=True),
        Sending("send", _send_tokens, (TOKENS_SENT,), of_sources=True),
        Sending("counts", _add_up, ()),
        Sending("answers", _answer, (f"{TOKENS_SENT}/answers",)),
    )
    return prepare(out, cut(out, "frequency", rows), sendings)


def frequency_stage(out: Path, limits: Dedup, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `frequency`, after `dedup`: scores/frequency/<part>.parquet, row by row beside the part."""
    return Stage("frequency", start, (out, partial(_rank_captions, limits=limits, memory_mb=memory_mb)))


def _rank_captions(out: Path, task: Task, *, limits: Dedup, memory_mb: int) -> Tally:
    """Counts rows; facts: distinct tokens, each counted in the source that says it first."""
    parts: list[str] = task.data["parts"]
    with database(out, f"frequency-{task.name}", memory_mb=memory_mb, threads=limits.threads) as connection:
        connection.register("source", pa.RecordBatchReader.from_batches(CAPTIONS, _captions(out, parts)))
        connection.execute(TOKENS)
        beat(task, 1, 3, "ranking tokens")
        if task.data["n"] == 1:
            connection.execute(RANKS)
            n_tokens = connection.sql("SELECT count(*) FROM ranks").fetchall()[0][0]
        else:
            ranks, n_tokens = _answered(out, task)
            connection.register("ranks", ranks)
        beat(task, 2, 3, "ranking captions")
        sizes = [pq.read_metadata(readable(out / "pairs" / f"{part}.parquet")).num_rows for part in parts]
        rows = Rows(connection.sql(RAREST, params={"rows": sum(sizes)}).to_arrow_reader(100_000))
        for part, size in zip(parts, sizes, strict=True):
            uid = read_part(out, part, ()).column("uid")
            table = pa.table([uid, rows.take(size).column("rarest_token_rank_v1")], schema=FREQUENCY)
            write_table(table, out / "scores" / "frequency" / f"{part}.parquet")
    return Tally({"ranked": sum(sizes)}, {"tokens": n_tokens})


def _captions(out: Path, parts: Sequence[str]) -> Iterator[pa.RecordBatch]:
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


# Several sources: what each sends, and what it is answered


def _count_tokens(out: Path, task: Task, *, limits: Dedup, memory_mb: int) -> Tally:
    """A source: its distinct tokens, in order, each with how many distinct pairs say it; and a sample."""
    name = f"{task.stage}-{task.name}"
    with database(out, name, memory_mb=memory_mb, threads=limits.threads) as connection:
        batches = _captions(out, task.data["parts"])
        connection.register("source", pa.RecordBatchReader.from_batches(CAPTIONS, batches))
        connection.execute(TOKENS)
        counted = connection.sql(COUNTED).to_arrow_table()
    store, every = open_store(out), max(1, len(counted) // SAMPLE)
    exchange.keep(store, TOKENS_SENT, task.name, counted)
    exchange.keep(
        store, SAMPLES, task.name, counted.select(["token"]).take(pa.array(range(0, len(counted), every)))
    )
    return Tally({"tokens": len(counted)})


def _send_tokens(out: Path, task: Task) -> Tally:
    """A source: its tokens to the ranges that all samples together cut."""
    store, n = open_store(out), task.data["n"]
    samples = [exchange.kept(store, SAMPLES, name)["token"] for name in store.names(SAMPLES, ".kept")]
    sample = sorted(token for tokens in samples for token in tokens.to_pylist())
    cuts = [sample[len(sample) * part // n] for part in range(1, n)] if sample else [""] * (n - 1)
    counted = exchange.kept(store, TOKENS_SENT, task.name).combine_chunks()
    tokens = counted["token"]  # in the order of their bytes, which is that of code points
    places = range(len(tokens))
    edges = [0, *(bisect_left(places, cut, key=lambda i: tokens[i].as_py()) for cut in cuts), len(tokens)]
    exchange.scatter(store, TOKENS_SENT, task.name, counted, np.repeat(np.arange(n), np.diff(edges)), n)
    return Tally({"tokens": len(tokens)})


def _add_up(out: Path, task: Task) -> Tally:
    """A range: how often each token is said, and its place among those of the range said as often."""
    store = open_store(out)
    tables = [table for _, table in exchange.gather(store, TOKENS_SENT, int(task.name))]
    received = pa.concat_tables(tables).combine_chunks()
    codes = pc.rank(received["token"], tiebreaker="dense").to_numpy().astype(np.int64) - 1
    _, firsts = np.unique(codes, return_index=True)
    counts = np.bincount(codes, received["n"].to_numpy(), len(firsts)).astype(np.int64)
    times, tokens = np.unique(counts, return_counts=True)
    order = np.argsort(counts, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(tokens) - tokens, tokens)
    first = np.zeros(len(codes), bool)
    first[firsts] = True
    kept = pa.table({"times": counts[codes], "place": place[codes], "first": first})
    exchange.keep(store, RANGES, task.name, kept)
    exchange.keep(
        store, RANGES, f"{task.name}.lengths", pa.table({"rows": pa.array(map(len, tables), pa.int64())})
    )
    exchange.keep(store, HISTOGRAMS, task.name, pa.table({"times": times, "tokens": tokens}))
    return Tally({"tokens": len(firsts)})


def _answer(out: Path, task: Task) -> Tally:
    """A range: the rank of each token that a source sent; 1 is the token said most often."""
    store, part = open_store(out), int(task.name)
    histograms = [exchange.kept(store, HISTOGRAMS, name) for name in store.names(HISTOGRAMS, ".kept")]
    together, before = pa.concat_tables(histograms), pa.concat_tables([histograms[0][:0], *histograms[:part]])
    received = exchange.kept(store, RANGES, task.name)
    times = received["times"].to_numpy()
    ranks = (
        1 + _tokens_of(together, times, above=True) + _tokens_of(before, times) + received["place"].to_numpy()
    )
    lengths = exchange.kept(store, RANGES, f"{task.name}.lengths")["rows"].to_pylist()
    exchange.reply(store, TOKENS_SENT, part, pa.table({"rank": ranks, "first": received["first"]}), lengths)
    return Tally({"tokens": len(received)})


def _tokens_of(histogram: pa.Table, times: np.ndarray, *, above: bool = False) -> np.ndarray:
    """How many tokens are said as often as each of `times`, or more often."""
    said, of_row = np.unique(histogram["times"].to_numpy(), return_inverse=True)
    sums = np.concatenate([[0], np.cumsum(np.bincount(of_row, histogram["tokens"].to_numpy(), len(said)))])
    up_to = sums[np.searchsorted(said, times, side="right")]
    found = sums[-1] - up_to if above else up_to - sums[np.searchsorted(said, times)]
    return found.astype(np.int64)


def _answered(out: Path, task: Task) -> tuple[pa.Table, int]:
    """(token, rank) of a source's tokens, and how many of them no source before it says."""
    store = open_store(out)
    answers = exchange.answers(store, TOKENS_SENT, task.name)
    tokens = exchange.kept(store, TOKENS_SENT, task.name)["token"]
    return pa.table({"token": tokens, "rank": answers["rank"]}), pc.sum(answers["first"]).as_py() or 0
