"""Stage `near`: near-copies of pictures, by their bytes and by PDQ; `near-embedding` adds those by cosine.

The rule: copies are copies of a *picture*. All pairs of the best picture of a group have rank 0 and stay,
whatever their captions; the pairs of its near-copies have rank 1 and above. Every near-copy is itself
within reach of the picture that stays (see `groups.py`), so groups do not chain. With `captions: adopt` the
picture that stays takes over those of their captions that it has not.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, DataError
from ..recipe import Near
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed
from ..shards.schema import NEAR, RAW
from .colours import UNKNOWN, WIDTH, SameColours
from .groups import Cosine, follow, settle
from .hamming import HASH, Hamming
from .sql import database, quoted, value_error

ROWS_PER_GROUP = 100_000
CHROMA_UNKNOWN = r"\x00" * (WIDTH - 1) + rf"\x{UNKNOWN:02X}"  # as a BLOB in SQL
BY_PDQ, BY_EMBEDDING = "near", "near-embedding"  # stages, and folders under scores/

FETCHED = """
CREATE TABLE fetched AS
SELECT * FROM read_parquet({files})
QUALIFY row_number() OVER (PARTITION BY uid ORDER BY wave DESC) = 1 AND outcome = 'ok'
"""
PICTURES = """
CREATE TABLE pictures AS
SELECT row_number() OVER (ORDER BY {keep}, url_hash) - 1 AS place,
  url_hash, sha256, pdq_v1, pdq_quality_v1, {chroma} AS chroma_v1
FROM (SELECT DISTINCT ON (url_hash) * FROM fetched ORDER BY url_hash, uid)
"""
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


def near_tasks(out: Path) -> list[Task]:
    """One task over all raw shards; none before anything was fetched."""
    return [Task(BY_PDQ, "near")] if any((out / "raw").glob("*.parquet")) else []


def near_stage(out: Path, settings: Near, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `near`: scores/near/near.parquet."""
    return Stage(BY_PDQ, _start, (out, settings, memory_mb, _by_hash))


def near_embedding_tasks(out: Path) -> list[Task]:
    """One task over all embeddings; none before there are any."""
    return [Task(BY_EMBEDDING, "near")] if any((out / "scores/embedding").glob("*.parquet")) else []


def near_embedding_stage(out: Path, settings: Near, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `near-embedding`: scores/near-embedding/near.parquet, the groups of `near` and more.

    Only pictures of one fold are compared: the embeddings of two folds are two spaces.
    """
    return Stage(BY_EMBEDDING, _start, (out, settings, memory_mb, _by_embedding))


def near_file(out: Path, *, embedding: bool = True) -> Path:
    """The NEAR file that is valid: the later one where it stands and is wanted."""
    later = out / "scores" / BY_EMBEDDING / "near.parquet"
    return later if embedding and later.exists() else out / "scores" / BY_PDQ / "near.parquet"


def _start(out: Path, settings: Near, memory_mb: int, leaders: Any) -> Worker:
    return partial(_group, out, settings, memory_mb, leaders)


def _group(out: Path, settings: Near, memory_mb: int, leaders: Any, task: Task) -> Tally:
    """Counts pairs: 'ok' of a picture that stays, 'adopted' by it, 'near_copy'. Facts count pictures."""
    with database(out, task.stage, memory_mb=memory_mb, threads=settings.threads) as connection:
        files = quoted(str(out / "raw" / "*.parquet"))
        connection.execute(FETCHED.format(files=files))
        _order(connection, settings, _chroma(out, settings))
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
    return STILL_ADOPTED.format(near=quoted(str(near_file(out, embedding=False))))


def _chroma(out: Path, settings: Near) -> str:
    """SQL of a picture's colours, which are unknown where they were not asked for."""
    unknown = f"'{CHROMA_UNKNOWN}'::BLOB"
    if not settings.colour:
        return unknown
    for path in sorted((out / "raw").glob("*.parquet")):
        if "chroma_v1" not in pq.read_schema(path).names:
            raise DataError(
                f"{path}: no column chroma_v1, for an earlier pairmill fetched it: fetch into a new folder,"
                " or compare without colours (near.colour: false)"
            )
    return f"coalesce(chroma_v1, {unknown})"


def check_keep(settings: Near) -> None:
    """Try `near.keep` on a table with the right columns. Raises ConfigError; starts and writes nothing."""
    with database() as connection:
        connection.register("fetched", RAW.empty_table())
        try:
            connection.execute(PICTURES.format(keep=settings.keep, chroma=f"'{CHROMA_UNKNOWN}'::BLOB"))
        except duckdb.Error as error:
            said = str(error).partition("\n")[0]
            raise ConfigError(
                f"near.keep is {settings.keep!r}, expected SQL's ORDER BY: {said}."
                f" Columns at this stage: {', '.join(RAW.names)}"
            ) from error


def _order(connection: duckdb.DuckDBPyConnection, settings: Near, chroma: str) -> None:
    try:
        connection.execute(PICTURES.format(keep=settings.keep, chroma=chroma))
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise DataError(f"near.keep ({settings.keep}) cannot be evaluated: {value_error(error)}") from error


def _by_hash(
    connection: duckdb.DuckDBPyConnection, _: Path, settings: Near
) -> tuple[np.ndarray, dict[str, int]]:
    """(N,) leader of every picture, by place: the same bytes, or hashes that differ in few bits."""
    import faiss

    faiss.omp_set_num_threads(settings.threads)
    leader = connection.sql(EXACT).fetchnumpy()["leader"].astype(np.int64)
    alone = leader == np.arange(len(leader))
    facts = {"same_bytes": int((~alone).sum()), "low_quality": 0, "near": 0}
    hashed = connection.sql(HASHES, params=[settings.min_quality]).to_arrow_table()
    facts["low_quality"] = len(leader) - len(hashed)
    places = hashed.column("place").to_numpy()
    codes = _rows_of_bytes(hashed.column("code"), HASH + WIDTH)[alone[places]]
    places = places[alone[places]]
    found = follow(codes, Hamming(settings.max_distance, SameColours(settings.plain_distance)))
    facts["near"] = int((found != np.arange(len(found))).sum())
    leader[places] = places[found]
    return leader[leader], facts


def _rows_of_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """(N, width) uint8 of a column of blobs without NULLs."""
    fixed = column.combine_chunks().cast(pa.binary(width))
    if len(fixed) == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(fixed.buffers()[1], np.uint8).reshape(-1, width)[fixed.offset :][: len(fixed)]


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
    near = quoted(str(near_file(out, embedding=False)))
    leader = connection.sql(LEADERS.format(near=near)).fetchnumpy()["leader"].astype(np.int64)
    connection.register("leaders", pa.table({"place": np.unique(leader)}))
    embedded = connection.sql(
        EMBEDDED.format(files=quoted(str(out / "scores/embedding/*.parquet")))
    ).to_arrow_table()
    facts = {"compared": len(embedded), "near": 0}
    for fold in np.unique(embedded.column("fold").to_numpy()):
        mine = embedded.filter(pa.array(embedded.column("fold").to_numpy() == fold))
        vectors, places = _vectors(out, mine)
        found = follow(vectors, Cosine(settings.cosine))
        facts["near"] += int((found != np.arange(len(found))).sum())
        leader[places] = places[found]
    return leader[leader], facts


def _vectors(out: Path, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Image embeddings (N, D) float16 and places (N,) of `rows`, by place; broken vectors are left out."""
    shards, row = rows.column("shard").to_numpy(), rows.column("row").to_numpy()
    vectors: np.ndarray | None = None
    for shard in np.unique(shards):
        path = out / "scores/embedding" / f"{shard}.image.npy"
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors is None:
            vectors = np.empty((len(rows), images.shape[1]), np.float16)
        mine = shards == shard
        if images.shape[1] != vectors.shape[1] or row[mine].max() >= len(images):
            raise DataError(f"{path}: shape {images.shape} does not go with the other shards: embed again")
        vectors[mine] = images[row[mine]]
    assert vectors is not None
    good = np.isfinite(vectors).all(axis=1)
    return vectors[good], rows.column("place").to_numpy()[good]


def _write(path: Path, batches: pa.RecordBatchReader) -> dict[str, int]:
    n_pairs = n_best = n_adopted = 0
    with committed(path) as temporary, pq.ParquetWriter(temporary, NEAR, compression="zstd") as writer:
        for batch in batches:
            table = pa.Table.from_batches([batch]).cast(NEAR)
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            n_pairs += len(table)
            n_best += int((table.column("near_rank_v1").to_numpy() == 0).sum())
            n_adopted += int(table.column("near_adopted_v1").to_numpy().sum())
    return {"ok": n_best, "adopted": n_adopted, "near_copy": n_pairs - n_best - n_adopted}
