"""Stage `dedup`: exact copies of pairs, of URLs and of captions, counted over all parts at once.

The rule: it works on the three 16-byte hashes of a row and never sees a URL or a caption. A list that fits
one task is counted in it. A larger one is cut into sources, some whole parts each, and into partitions of the
uid, of the URL's hash and of the caption's hash, none of which is held as a whole anywhere:

    pairs    each source sends its distinct uids to their partitions, with how often it says each
    keys     a partition of uids counts them, and sends each of their URLs and captions once, with its pairs
    counts   a partition of URLs and captions adds these up, and answers
    answers  a partition of uids answers the sources
    dedup    each source writes its parts

Everything is aggregated before it is sent, so a partition is sent a uid, a URL or a caption once by each
sender, however many rows bear it. A uid's first row is the first by (part, row), so no answer depends on how
the rows are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..runner import Stage, Tally, Task, beat
from ..settings import ROWS_PER_PARTITION
from ..shards import exchange
from ..shards.commit import write_table
from ..shards.exchange import exchange_folder, partition_of
from ..shards.schema import COPIES, UID
from ..shards.store import Store, open_store
from .columns import read_part
from .ranks import group, halves, halves_of, keys_of
from .sources import Sending, cut, prepare, start

HASHES = ("uid", "url_hash", "caption_hash")
# of each key: how many pairs bear it, and how many of these come before a pair, by uid
KEYS = {
    "url_hash": ("captions_per_image_v1", "caption_rank_v1"),
    "caption_hash": ("images_per_caption_v1", "image_rank"),
}
ROW_BYTES = 300  # of memory for each row of a source or a partition, at most
PAIRS = exchange_folder("dedup", "pairs")
FOLDER = {key: exchange_folder("dedup", key) for key in KEYS}
Columns = dict[str, np.ndarray]


def dedup_tasks(out: Path, rows: int = ROWS_PER_PARTITION) -> list[Task]:
    """A task for each source of up to `rows` rows; none where there are no pairs."""
    return cut(out, "dedup", rows).tasks


def dedup_phases(out: Path, rows: int = ROWS_PER_PARTITION) -> Iterator[tuple[Sequence[Task], Stage]]:
    """What runs before the stage: something only where there are several sources."""
    to_keys = tuple(FOLDER.values())
    sendings = (
        Sending("pairs", _send_pairs, (PAIRS,), of_sources=True),
        Sending("keys", _send_keys, to_keys),
        Sending("counts", _add_up, tuple(f"{folder}/answers" for folder in to_keys)),
        Sending("answers", _answer, (f"{PAIRS}/answers",)),
    )
    return prepare(out, cut(out, "dedup", rows), sendings)


def dedup_stage(out: Path) -> Stage:
    """The stage `dedup`: scores/copies/<part>.parquet, row by row beside pairs/<part>.parquet."""
    return Stage("dedup", start, (out, _count_copies))


def _count_copies(out: Path, task: Task) -> Tally:
    """Counts rows: 'first' of their uid and 'pair_copy'; facts: the distinct pairs, URLs and captions, each
    counted in the source that says it first."""
    beat(task, 0, 3, "reading")
    alone = task.data["n"] == 1
    tables = {part: read_part(out, part, HASHES if alone else ()) for part in task.data["parts"]}
    rows = pa.concat_tables(tables.values())
    beat(task, 1, 3, "counting")
    pair, columns = _counted_alone(rows) if alone else _answers(open_store(out), task)
    if len(pair) != len(rows):
        raise DataError(f"pairs/{next(iter(tables))}: its rows changed meanwhile: run again")
    beat(task, 2, 3, "writing")
    return _write(out, tables, pair, columns)


def _counted_alone(rows: pa.Table) -> tuple[np.ndarray, Columns]:
    """(N,) the pair of each of all rows, and the columns: of rows, or of pairs."""
    pairs = group(halves(rows["uid"]))
    columns: Columns = {"pair_rank_v1": pairs.ranks(), "pair_copies_v1": pairs.sizes()}
    for key, (count, rank) in KEYS.items():
        keys = group(halves_of(keys_of(rows[key])[pairs.firsts]))
        columns |= {count: keys.sizes()[keys.of_rows()], rank: keys.ranks()}
    return pairs.of_rows(), columns


def _write(out: Path, tables: Mapping[str, pa.Table], pair: np.ndarray, columns: Columns) -> Tally:
    """Write each part's rows.

    pair: (N,) the pair of each row. columns: 'pair_rank_v1' of each row, the others of each pair.
    """
    begin, ranks = 0, columns["pair_rank_v1"]
    for part, table in tables.items():
        rows = slice(begin, begin + len(table))
        own = {"uid": table["uid"], "pair_rank_v1": ranks[rows]}
        shown = [own[name] if name in own else columns[name][pair[rows]] for name in COPIES.names]
        written = pa.table(dict(zip(COPIES.names, shown, strict=True))).cast(COPIES)
        write_table(written, out / "scores" / "copies" / f"{part}.parquet")
        begin += len(table)
    first = pair[ranks == 0]
    facts = {"pairs": len(first)}
    for name, (_, rank) in zip(("urls", "captions"), KEYS.values(), strict=True):
        facts[name] = int((columns[rank][first] == 0).sum())
    return Tally({"first": len(first), "pair_copy": len(pair) - len(first)}, facts)


# Several sources: what each sends, and what it is answered


def _send_pairs(out: Path, task: Task) -> Tally:
    """A source: its distinct uids, each with its URL, its caption and how many rows bear it."""
    store, n = open_store(out), task.data["n"]
    rows = pa.concat_tables(read_part(out, part, HASHES) for part in task.data["parts"])
    pairs = group(halves(rows["uid"]))
    hashes = {name: keys_of(rows[name])[pairs.firsts] for name in HASHES}
    sent = pa.table({name: _binary(values) for name, values in hashes.items()})
    sent = sent.append_column("rows", pa.array(pairs.sizes(), pa.int32()))
    exchange.scatter(store, PAIRS, task.name, sent, partition_of(hashes["uid"], n), n)
    exchange.keep(store, PAIRS, task.name, _table(pair=pairs.of_rows(), rank=pairs.ranks()))
    return Tally({"pairs": len(pairs)})


def _send_keys(out: Path, task: Task) -> Tally:
    """A partition of uids: counts them, and sends its distinct URLs and captions with their pairs."""
    store, n = open_store(out), task.data["n"]
    tables = [table for _, table in exchange.gather(store, PAIRS, int(task.name))]
    received = pa.concat_tables(tables)
    pairs = group(halves(received["uid"]))
    pair = pairs.of_rows()
    before, copies = pairs.running(received["rows"].to_numpy())
    columns = {"before": before, "pair_copies_v1": copies}
    for key, folder in FOLDER.items():
        hashes = keys_of(received[key])[pairs.firsts]
        keys = group(halves_of(hashes))
        distinct = hashes[keys.firsts]
        sent = pa.table({"key": _binary(distinct), "pairs": pa.array(keys.sizes(), pa.int32())})
        exchange.scatter(store, folder, task.name, sent, partition_of(distinct, n), n)
        columns |= {key: keys.of_rows()[pair], f"{key} rank": keys.ranks()[pair]}
    exchange.keep(store, PAIRS, task.name, _table(**columns))
    exchange.keep(store, PAIRS, f"{task.name}.lengths", pa.table({"rows": [*map(len, tables)]}))
    return Tally({"pairs": len(pairs)})


def _add_up(out: Path, task: Task) -> Tally:
    """A partition of URLs and one of captions: how many pairs bear each, and how many of these have uids of
    partitions before the one that asks."""
    store, counts = open_store(out), {}
    for key, folder in FOLDER.items():
        tables = [table for _, table in exchange.gather(store, folder, int(task.name))]
        received = pa.concat_tables(tables)
        keys = group(halves(received["key"]))
        before, total = keys.running(received["pairs"].to_numpy())
        exchange.reply(store, folder, int(task.name), _table(before=before, total=total), [*map(len, tables)])
        counts[key] = len(keys)
    return Tally(counts)


def _answer(out: Path, task: Task) -> Tally:
    """A partition of uids: answers each uid that a source sent."""
    store = open_store(out)
    counted = exchange.kept(store, PAIRS, task.name)
    columns = {name: counted[name].to_numpy() for name in ("before", "pair_copies_v1")}
    for key, (count, rank) in KEYS.items():
        answers = exchange.answers(store, FOLDER[key], task.name)
        place = counted[key].to_numpy()
        columns[count] = answers["total"].to_numpy()[place]
        columns[rank] = answers["before"].to_numpy()[place] + counted[f"{key} rank"].to_numpy()
    lengths = exchange.kept(store, PAIRS, f"{task.name}.lengths")["rows"].to_pylist()
    exchange.reply(store, PAIRS, int(task.name), _table(**columns), lengths)
    return Tally({"answers": len(counted)})


def _answers(store: Store, task: Task) -> tuple[np.ndarray, Columns]:
    """What `_counted_alone` gives, for one source of several."""
    rows = exchange.kept(store, PAIRS, task.name)
    answers = exchange.answers(store, PAIRS, task.name)
    columns = {name: answers[name].to_numpy() for name in answers.column_names}
    pair = rows["pair"].to_numpy()
    columns["pair_rank_v1"] = columns["before"][pair] + rows["rank"].to_numpy()
    return pair, columns


def _binary(hashes: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(UID, len(hashes), [None, pa.py_buffer(hashes)])


def _table(**columns: np.ndarray) -> pa.Table:
    return pa.table({name: pa.array(values.astype(np.int32)) for name, values in columns.items()})
