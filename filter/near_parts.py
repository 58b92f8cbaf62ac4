"""The stage `near` over partitions: its phases send rows to where each question can be answered.

By URL: the valid attempt of a pair, one row of a picture. By bytes: the best of the same files. In blocks of
places: near by hash (`near_blocks.py`). The answers go back the same way. Then by group: ranks, sizes,
captions that are taken over; and by uid: the files. No task holds more than a few partitions' rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..runner import Stage, Tally, Task
from ..shards.commit import write_table
from ..shards.exchange import answers, gather, partition_of, reply, scatter, write_index
from ..shards.job import forget_phases, inputs_digest, read_tally
from ..shards.schema import NEAR, RAW
from ..shards.selection import uids_to_array
from ..shards.tables import read_json, read_table, write_json
from ..shards.tables import write_table as put_table
from .near_blocks import Cut, as_hashes, block_phases, load, save
from .near_order import (
    FETCHED,
    FIRST_OF_URL,
    but_unwanted,
    chroma_sql,
    columns_of_keep,
    evaluated,
    ordered,
)
from .sql import database, quoted

SAMPLED = 128  # pictures for each partition that say where the blocks begin: their sizes differ by 9 %
SENDERS = 4  # tasks that send rows, for each partition
# `caption` may be a word of near.keep as well
SENT = """
SELECT {columns}, unhex(md5(caption)) AS said,
  CASE WHEN pdq_quality_v1 >= {least} THEN pdq_v1 || {chroma} END AS code
FROM (SELECT * FROM read_parquet([{files}]) {unwanted}) WHERE outcome = 'ok' OR wave > 0
"""
SAMPLE = "SELECT {columns} FROM pictures ORDER BY url_hash LIMIT {n}"
BORDERS = """
SELECT * EXCLUDE n FROM (SELECT *, row_number() OVER (ORDER BY {keep}, url_hash) - 1 AS n FROM sample)
WHERE n > 0 AND n * {parts} // {n} <> (n - 1) * {parts} // {n}
"""
# of each file the best picture, and the block of a picture: how many blocks begin before it or with it
BY_BYTES = """
SELECT {columns}, n, code, block,
  CASE WHEN sha256 IS NULL THEN url_hash
  ELSE first_value(url_hash) OVER (PARTITION BY sha256 ORDER BY {keep}, url_hash) END AS best
FROM (
  SELECT *, CAST(sum(begins) OVER (ORDER BY {keep}, url_hash, begins DESC ROWS UNBOUNDED PRECEDING) AS INT)
    AS block
  FROM (SELECT *, 0 AS begins FROM files UNION ALL BY NAME SELECT *, 1 AS begins FROM borders)
)
WHERE begins = 0 ORDER BY n
"""
MEMBERS = """
SELECT f.uid AS pair, f.said AS said, l.leader AS leader, {columns}
FROM fetched f JOIN {pictures} p USING (url_hash) JOIN leaders l USING (url_hash)
"""
RANKED = """
CREATE TABLE ranked AS
SELECT url_hash, row_number() OVER (PARTITION BY leader ORDER BY {keep}, url_hash) - 1 AS rank,
  count(*) OVER (PARTITION BY leader) AS size
FROM (SELECT DISTINCT ON (url_hash) * EXCLUDE (pair, said) FROM members)
"""
GROUPED = """
SELECT m.pair AS uid, m.leader AS near_group_v1, r.rank AS near_rank_v1, r.size AS near_size_v1,
  {adopt} AND r.rank > 0
  AND row_number() OVER (PARTITION BY m.leader, m.said ORDER BY r.rank, m.pair) = 1 AS near_adopted_v1
FROM members m JOIN ranked r USING (url_hash)
"""


def phases(cut: Cut) -> Iterator[tuple[list[Task], Stage]]:
    """All that comes before the files of `near`."""
    start_anew(cut)
    shards = sorted(path.stem for path in (cut.out / "raw").glob("*.parquet"))
    shares = np.array_split(np.array(shards), min(len(shards), SENDERS * cut.parts))
    stage = cut.phase("send", send, [])[1]
    yield [Task(stage.name, f"{n:06d}", {"shards": share.tolist()}) for n, share in enumerate(shares)], stage
    write_index(cut.store, cut.folder("attempts"))
    yield cut.phase("pictures", pictures, cut.names)
    write_index(cut.store, cut.folder("bytes"))
    yield cut.phase("bytes", by_bytes, cut.names)
    write_index(cut.store, cut.folder("places"))
    yield from block_phases(cut)
    write_index(cut.store, cut.folder("places/answers"))
    yield cut.phase("leaders", leaders, cut.names)
    write_index(cut.store, cut.folder("bytes/answers"))
    yield cut.phase("members", members, cut.names)
    write_index(cut.store, cut.folder("groups"))
    yield cut.phase("groups", groups, cut.names)
    write_index(cut.store, cut.folder("rows"))


def start_anew(cut: Cut) -> None:
    """Remove what phases left that were cut short, where they read or asked for something else."""
    store, name = cut.store, cut.folder("of.json")
    asked = [
        cut.parts,
        cut.settings.model_dump(mode="json"),
        inputs_digest(cut.out, "plan-fetch", "fetch", "reuse"),
    ]
    if not store.exists(name) or read_json(store, name) != asked:
        forget_phases(cut.out, "near")
        write_json(store, name, asked)


def send(cut: Cut, task: Task) -> Tally:
    """The attempts of some raw shards, to the partition of their URL."""
    files = [cut.out / "raw" / f"{name}.parquet" for name in task.data["shards"]]
    carried = {"uid", "url_hash", "wave", "outcome", "sha256", *columns_of_keep(cut.settings)}
    sql = SENT.format(
        columns=_listed(carried),
        least=cut.settings.min_quality,
        chroma=chroma_sql(files, cut.settings),
        files=", ".join(quoted(str(path)) for path in files),
        unwanted=but_unwanted(cut.out),
    )
    with _database(cut, task) as connection:
        rows = connection.sql(sql).to_arrow_table()
    _scatter(cut, "attempts", task.name, rows, uids_to_array(rows.column("url_hash")))
    return Tally({"sent": len(rows)})


def pictures(cut: Cut, task: Task) -> Tally:
    """One row of each picture, to the partition of its bytes; the first of them as a sample of all."""
    with _database(cut, task) as connection:
        found = _pictures(cut, connection, task.name)
        connection.register("pictures", found)
        sample = SAMPLE.format(columns=_listed(_columns(cut)), n=SAMPLED * cut.parts)
        put_table(
            cut.store, f"{cut.folder('sample')}/{task.name}.parquet", connection.sql(sample).to_arrow_table()
        )
    _scatter(cut, "bytes", task.name, found, _keys_of_bytes(found))
    return Tally({"pictures": len(found)}, {"low_quality": found.column("code").null_count})


def by_bytes(cut: Cut, task: Task) -> Tally:
    """The best picture of each file; those that are best and have a hash, to the block of their place."""
    store = cut.store
    tables = [table for _, table in gather(store, cut.folder("bytes"), int(task.name))]
    rows = pa.concat_tables(tables)
    with _database(cut, task) as connection:
        connection.register("files", rows.append_column("n", pa.array(np.arange(len(rows)))))
        sample = _sample(cut)
        connection.register("sample", sample)
        borders = ordered(connection, BORDERS, cut.settings, parts=str(cut.parts), n=str(max(1, len(sample))))
        connection.register("borders", borders)
        found = ordered(connection, BY_BYTES, cut.settings, columns=_listed(_columns(cut)))
    url, best = (uids_to_array(found.column(name)) for name in ("url_hash", "best"))
    block = found.column("block").to_numpy()
    compared = (url == best) & found.column("code").is_valid().to_numpy()
    sent = found.select(["code", *sorted(_columns(cut))]).filter(pa.array(compared))
    scatter(store, cut.folder("places"), task.name, sent, block[compared], cut.parts)
    for name, array in (
        ("url", url),
        ("best", best),
        ("block", np.where(compared, block, -1)),
        ("lengths", np.array([len(table) for table in tables])),
    ):
        save(store, f"{cut.folder('files')}/{task.name}.{name}.npy", array)
    return Tally({"pictures": len(rows)}, {"same_bytes": int((url != best).sum())})


def leaders(cut: Cut, task: Task) -> Tally:
    """Of each picture that was compared by bytes: whom the best picture of the same bytes follows."""
    store = cut.store
    url, best, block, lengths = (
        load(store, f"{cut.folder('files')}/{task.name}.{name}.npy")
        for name in ("url", "best", "block", "lengths")
    )
    compared = block >= 0
    said = answers(store, cut.folder("places"), task.name, block[compared], cut.parts)
    leader = best
    if compared.any():
        known = url[compared].view("S16")
        order = np.argsort(known, kind="stable")
        at = order[np.searchsorted(known, best.view("S16"), sorter=order).clip(max=len(known) - 1)]
        found = known[at] == best.view("S16")
        leader = np.where(found, uids_to_array(said.column("leader"))[at], best)
    reply(
        store, cut.folder("bytes"), int(task.name), pa.table({"leader": as_hashes(leader)}), lengths.tolist()
    )
    return Tally({"pictures": len(url)})


def members(cut: Cut, task: Task) -> Tally:
    """The pairs of each picture, to the partition of the picture that it follows."""
    with _database(cut, task) as connection:
        found = _pictures(cut, connection, task.name)
        parts = partition_of(_keys_of_bytes(found), cut.parts)
        said = answers(cut.store, cut.folder("bytes"), task.name, parts, cut.parts)
        connection.register("leaders", said.append_column("url_hash", found.column("url_hash")))
        sql = MEMBERS.format(columns=_listed(_columns(cut), "p."), pictures=FIRST_OF_URL)
        pairs = connection.sql(sql).to_arrow_table()
    _scatter(cut, "groups", task.name, pairs, uids_to_array(pairs.column("leader")))
    return Tally({"pairs": len(pairs)})


def groups(cut: Cut, task: Task) -> Tally:
    """Ranks, sizes and captions taken over, to the partition of the pair."""
    with _database(cut, task) as connection:
        connection.register("members", _gathered(cut, "groups", task.name))
        with evaluated(cut.settings):
            connection.execute(RANKED.format(keep=cut.settings.keep))
        adopt = "true" if cut.settings.captions == "adopt" else "false"
        rows = connection.sql(GROUPED.format(adopt=adopt)).to_arrow_table().cast(NEAR)
        counted = (
            "SELECT count(*), count(*) FILTER (rank = 0 AND size > 1), coalesce(max(size), 0) FROM ranked"
        )
        n, several, largest = connection.sql(counted).fetchall()[0]
    _scatter(cut, "rows", task.name, rows, uids_to_array(rows.column("uid")))
    return Tally({"pairs": len(rows)}, {"pictures": n, "groups": several, "largest": largest})


def write_part(cut: Cut, task: Task) -> Tally:
    """scores/near/<partition>.parquet, by uid. Its facts are those of the phases' tasks of the same name."""
    rows = _gathered(cut, "rows", task.name).cast(NEAR)
    rows = rows.take(pa.array(np.argsort(uids_to_array(rows.column("uid")).view("S16"), kind="stable")))
    write_table(rows, cut.out / "scores" / "near" / f"{task.name}.parquet")
    facts: dict[str, int] = {}
    for phase in ("pictures", "bytes", f"settle-{task.name}", "groups"):
        tally = read_tally(cut.out, f"near.{phase}", task.name)
        facts |= dict(tally.facts) if tally else {}
    return Tally(count_rows(rows), facts)


def count_rows(rows: pa.Table) -> dict[str, int]:
    """Pairs of pictures that stay, pairs whose caption is taken over, and near-copies."""
    best = int(pc.sum(pc.equal(rows.column("near_rank_v1"), 0)).as_py() or 0)
    adopted = int(pc.sum(rows.column("near_adopted_v1")).as_py() or 0)
    return {"ok": best, "adopted": adopted, "near_copy": len(rows) - best - adopted}


def _database(cut: Cut, task: Task) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    name = f"{task.stage}-{task.name}"  # several at once: each spills into a folder of its own
    return database(cut.out, name, memory_mb=cut.memory_mb, threads=cut.settings.threads)


def _columns(cut: Cut) -> set[str]:
    """The picture's name and what `near.keep` orders it by."""
    return {"url_hash", *columns_of_keep(cut.settings)}


def _listed(columns: set[str], table: str = "") -> str:
    """Columns of `raw/` for a SELECT, in their order there; some are words of SQL."""
    return ", ".join(f'{table}"{name}"' for name in RAW.names if name in columns)


def _scatter(cut: Cut, folder: str, source: str, rows: pa.Table, keys: np.ndarray) -> None:
    scatter(cut.store, cut.folder(folder), source, rows, partition_of(keys, cut.parts), cut.parts)


def _gathered(cut: Cut, folder: str, part: str) -> pa.Table:
    return pa.concat_tables(table for _, table in gather(cut.store, cut.folder(folder), int(part)))


def _pictures(cut: Cut, connection: duckdb.DuckDBPyConnection, part: str) -> pa.Table:
    """The pictures of one range of URLs, by url_hash; their pairs are left in the table `fetched`."""
    connection.register("attempts", _gathered(cut, "attempts", part))
    connection.execute(FETCHED.format(rows="attempts"))
    columns = _listed({"sha256", *_columns(cut)})
    return connection.sql(f"SELECT {columns}, code FROM {FIRST_OF_URL} ORDER BY url_hash").to_arrow_table()


def _keys_of_bytes(pictures: pa.Table) -> np.ndarray:
    """(N,) V16: where a picture's bytes are sent; its own name where they have no hash."""
    digest = pc.binary_slice(pictures.column("sha256").cast(pa.binary()), 0, 16)
    return uids_to_array(pc.coalesce(digest, pictures.column("url_hash").cast(pa.binary())))


def _sample(cut: Cut) -> pa.Table:
    """The first pictures of all by url_hash, which is as good as by chance."""
    tables: list[pa.Table] = []
    for part in cut.names:
        tables.append(read_table(cut.store, f"{cut.folder('sample')}/{part}.parquet"))
        if sum(map(len, tables)) >= SAMPLED * cut.parts:
            break
    return pa.concat_tables(tables).slice(0, SAMPLED * cut.parts)
