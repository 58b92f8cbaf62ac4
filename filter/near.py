"""Stage `near`: near-copies of pictures, by their bytes and by PDQ; `near-embedding` adds those by cosine.

The rule: copies are copies of a *picture*. All pairs of the best picture of a group have rank 0 and stay,
whatever their captions; the pairs of its near-copies have rank 1 and above. Every near-copy is itself
within reach of the picture that stays (see `groups.py`), so groups do not chain. With `captions: adopt` the
picture that stays takes over those of their captions that it has not.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..recipe import Near
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed
from ..shards.exchange import partitions
from ..shards.files import map_array, spool_folder
from ..shards.job import finished_tasks, read_tally
from ..shards.ledger import tally_path
from ..shards.schema import NEAR
from .colours import WIDTH
from .groups import Cosine, follow, settle
from .hamming import HASH
from .near_blocks import Cut, reach, rows_of_bytes
from .near_order import FETCHED, PICTURES, but_unwanted, chroma_sql, evaluated
from .near_parts import count_rows, phases, write_part
from .sql import database, quoted

ROWS_PER_GROUP = 100_000
MOST_PICTURES = 1_000_000  # at most, in one block: a process takes about 1 GB
BY_PDQ, BY_EMBEDDING = "near", "near-embedding"  # stages, and folders under scores/

EXACT = """
SELECT CASE WHEN sha256 IS NULL THEN place ELSE min(place) OVER (PARTITION BY sha256) END AS leader
FROM pictures ORDER BY place
"""
HASHES = """
SELECT place, pdq_v1 || chroma_v1 AS code FROM pictures
WHERE pdq_quality_v1 >= $1 AND pdq_v1 IS NOT NULL ORDER BY place
"""
RANKED = """
SELECT f.uid AS uid, best.url_hash AS near_group_v1, r.rank AS near_rank_v1, r.size AS near_size_v1,
  coalesce(a.adopted, false) AS near_adopted_v1
FROM fetched f JOIN pictures p USING (url_hash) JOIN ranked r USING (place)
JOIN pictures best ON best.place = r.leader LEFT JOIN adopted a ON a.uid = f.uid
ORDER BY f.uid
"""
# in each group the first pair with a caption: if it is not the best picture's own, that takes it over
NEW_CAPTIONS = """
SELECT f.uid AS uid, r.rank > 0
  AND row_number() OVER (PARTITION BY r.leader, f.caption ORDER BY r.rank, f.uid) = 1 AS adopted
FROM fetched f JOIN pictures p USING (url_hash) JOIN ranked r USING (place) WHERE r.size > 1
"""
# a cosine is no ground for showing a picture with another's caption: only where the hash's leader still leads
STILL_ADOPTED = """
SELECT n.uid AS uid, n.near_adopted_v1 AND best.url_hash = n.near_group_v1 AS adopted
FROM read_parquet({near}) n JOIN fetched f USING (uid) JOIN pictures p USING (url_hash)
JOIN ranked r USING (place) JOIN pictures best ON best.place = r.leader WHERE n.near_adopted_v1
"""


def near_tasks(out: Path, rows_per_partition: int = MOST_PICTURES) -> list[Task]:
    """One task over all raw shards, or one for each partition of many; none before anything was fetched."""
    if not any((out / "raw").glob("*.parquet")):
        return []
    parts = _partitions(out, rows_per_partition)
    if parts == 1:
        return [Task(BY_PDQ, "near", {"parts": 1})]
    return [Task(BY_PDQ, f"{part:05d}", {"parts": parts}) for part in range(parts)]


def near_stage(out: Path, settings: Near, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `near`: scores/near/near.parquet, or a file for each partition."""
    return Stage(BY_PDQ, _start_near, (out, settings, memory_mb))


def near_phases(
    out: Path, settings: Near, memory_mb: int = MEMORY_MB, rows_per_partition: int = MOST_PICTURES
) -> Iterator[tuple[list[Task], Stage]]:
    """What comes before the tasks of `near`, where there are several."""
    parts = _partitions(out, rows_per_partition)
    return phases(Cut(out, settings, memory_mb, parts)) if parts > 1 else iter(())


def _partitions(out: Path, rows_per_partition: int) -> int:
    tallies = (read_tally(out, "fetch", name) for name in finished_tasks(out, "fetch"))
    fetched = sum(tally.counts.get("ok", 0) for tally in tallies if tally is not None)
    return partitions(fetched, min(rows_per_partition, MOST_PICTURES))


def _start_near(out: Path, settings: Near, memory_mb: int) -> Worker:
    def work(task: Task) -> Tally:
        parts = task.data["parts"]
        _forget_others(out, {task.name} if parts == 1 else {f"{part:05d}" for part in range(parts)})
        if parts == 1:
            return _group(out, settings, memory_mb, _by_hash, task)
        return write_part(Cut(out, settings, memory_mb, parts), task)

    return work


def _forget_others(out: Path, names: set[str]) -> None:
    """Remove the files and tallies of partitions that there were before and now are not."""
    for path in (out / "scores" / BY_PDQ).glob("*.parquet"):
        if path.stem not in names:
            path.unlink(missing_ok=True)
    for name in set(finished_tasks(out, BY_PDQ)) - names:
        tally_path(out, BY_PDQ, name).unlink(missing_ok=True)


def near_embedding_tasks(out: Path) -> list[Task]:
    """One task over all embeddings; none before there are any."""
    return [Task(BY_EMBEDDING, "near")] if any((out / "scores/embedding").glob("*.parquet")) else []


def near_embedding_stage(out: Path, settings: Near, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `near-embedding`: scores/near-embedding/near.parquet, the groups of `near` and more.

    Only pictures of one fold are compared: the embeddings of two folds are two spaces.
    """
    return Stage(BY_EMBEDDING, _start, (out, settings, memory_mb, _by_embedding))


def near_files(out: Path, *, embedding: bool = True) -> Path:
    """Pattern of the NEAR files that are valid: the later ones where they stand and are wanted."""
    later = embedding and any((out / "scores" / BY_EMBEDDING).glob("*.parquet"))
    return out / "scores" / (BY_EMBEDDING if later else BY_PDQ) / "*.parquet"


def _start(out: Path, settings: Near, memory_mb: int, leaders: Any) -> Worker:
    return partial(_group, out, settings, memory_mb, leaders)


def _group(out: Path, settings: Near, memory_mb: int, leaders: Any, task: Task) -> Tally:
    """Counts pairs: 'ok' of a picture that stays, 'adopted' by it, 'near_copy'. Facts count pictures."""
    with database(out, task.stage, memory_mb=memory_mb, threads=settings.threads) as connection:
        files = quoted(str(out / "raw" / "*.parquet"))
        connection.execute(FETCHED.format(rows=f"(SELECT * FROM read_parquet({files}) {but_unwanted(out)})"))
        chroma = chroma_sql(sorted((out / "raw").glob("*.parquet")), settings)
        with evaluated(settings):
            connection.execute(PICTURES.format(keep=settings.keep, chroma=chroma))
        beat(task, 1, 3, "comparing pictures")
        leader, facts = leaders(connection, out, settings)
        rank, size = settle(leader)
        ranked = pa.table({"place": np.arange(len(leader)), "leader": leader, "rank": rank, "size": size})
        connection.register("ranked", ranked)
        connection.execute(f"CREATE TEMP TABLE adopted AS {_adopted(out, settings, task.stage)}")
        beat(task, 2, 3, "writing")
        path = out / "scores" / task.stage / "near.parquet"
        counts = _write(path, connection.sql(RANKED).to_arrow_reader(ROWS_PER_GROUP))
    groups = (rank == 0) & (size > 1)
    facts |= {"pictures": len(leader), "groups": int(groups.sum()), "largest": int(size.max(initial=0))}
    return Tally(counts, facts)


def _adopted(out: Path, settings: Near, stage: str) -> str:
    """SQL of (uid, adopted), of at least all pairs whose caption goes over to the picture that stays."""
    if settings.captions == "drop":
        return "SELECT NULL::BLOB AS uid, false AS adopted WHERE false"
    if stage == BY_PDQ:
        return NEW_CAPTIONS
    return STILL_ADOPTED.format(near=quoted(str(near_files(out, embedding=False))))


def _by_hash(
    connection: duckdb.DuckDBPyConnection, _: Path, settings: Near
) -> tuple[np.ndarray, dict[str, int]]:
    """(N,) leader of every picture, by place: the same bytes, or hashes that differ in few bits."""
    leader = connection.sql(EXACT).fetchnumpy()["leader"].astype(np.int64)
    alone = leader == np.arange(len(leader))
    facts = {"same_bytes": int((~alone).sum()), "low_quality": 0, "near": 0}
    hashed = connection.sql(HASHES, params=[settings.min_quality]).to_arrow_table()
    facts["low_quality"] = len(leader) - len(hashed)
    places = hashed.column("place").to_numpy()
    codes = rows_of_bytes(hashed.column("code"), HASH + WIDTH)[alone[places]]
    places = places[alone[places]]
    found = follow(codes, reach(settings))
    facts["near"] = int((found != np.arange(len(found))).sum())
    leader[places] = places[found]
    return leader[leader], facts


EMBEDDED = """
SELECT p.place AS place, first(parse_filename(e.filename, true)) AS shard,
  first(e.file_row_number) AS row, first(e.fold) AS fold
FROM read_parquet({files}, filename = true, file_row_number = true) e
JOIN fetched f USING (uid) JOIN pictures p USING (url_hash) JOIN leaders USING (place)
GROUP BY p.place ORDER BY p.place
"""
LEADERS = """
SELECT p.place AS place, best.place AS leader
FROM (SELECT DISTINCT f.url_hash, n.near_group_v1 FROM read_parquet({near}) n JOIN fetched f USING (uid)) g
JOIN pictures p ON p.url_hash = g.url_hash JOIN pictures best ON best.url_hash = g.near_group_v1
ORDER BY place
"""


def _by_embedding(
    connection: duckdb.DuckDBPyConnection, out: Path, settings: Near
) -> tuple[np.ndarray, dict[str, int]]:
    """(N,) leader of every picture, by place: `near`'s, whose leaders are then compared by cosine."""
    import faiss

    assert settings.cosine is not None  # else there is no such stage
    faiss.omp_set_num_threads(settings.threads)
    near = quoted(str(near_files(out, embedding=False)))
    leader = connection.sql(LEADERS.format(near=near)).fetchnumpy()["leader"].astype(np.int64)
    connection.register("leaders", pa.table({"place": np.unique(leader)}))
    embedded = connection.sql(
        EMBEDDED.format(files=quoted(str(out / "scores/embedding/*.parquet")))
    ).to_arrow_table()
    facts = {"compared": len(embedded), "near": 0}
    for fold in np.unique(embedded.column("fold").to_numpy()):
        mine = embedded.filter(pa.array(embedded.column("fold").to_numpy() == fold))
        vectors, places = _vectors(out, mine), mine.column("place").to_numpy()
        found = follow(vectors, Cosine(settings.cosine))
        facts["near"] += int((found != np.arange(len(found))).sum())
        leader[places] = places[found]
    return leader[leader], facts


def _vectors(out: Path, rows: pa.Table) -> np.ndarray:
    """Image embeddings (N, D) float16 of `rows`, in a file that goes with the task; a broken vector is 0."""
    shards, row = rows.column("shard").to_numpy(), rows.column("row").to_numpy()
    vectors: np.ndarray | None = None
    for shard in np.unique(shards):
        path = out / "scores/embedding" / f"{shard}.image.npy"
        images = map_array(path)
        if vectors is None:
            shape = (len(rows), images.shape[1])
            with tempfile.TemporaryDirectory(dir=spool_folder(out / "_tmp" / BY_EMBEDDING)) as scratch:
                place = Path(scratch) / "vectors.npy"  # mapped, it needs no name any more
                vectors = np.lib.format.open_memmap(place, "w+", np.float16, shape)
        mine = np.flatnonzero(shards == shard)
        if images.shape[1] != vectors.shape[1] or row[mine].max() >= len(images):
            raise DataError(f"{path}: shape {images.shape} does not go with the other shards: embed again")
        found = images[row[mine]]
        found[~np.isfinite(found).all(axis=1)] = 0  # near nothing
        vectors[mine] = found
    assert vectors is not None
    return vectors


def _write(path: Path, batches: pa.RecordBatchReader) -> dict[str, int]:
    counts: Counter[str] = Counter({"ok": 0, "adopted": 0, "near_copy": 0})
    with committed(path) as temporary, pq.ParquetWriter(temporary, NEAR, compression="zstd") as writer:
        for batch in batches:
            table = pa.Table.from_batches([batch]).cast(NEAR)
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            counts.update(count_rows(table))
    return dict(counts)
