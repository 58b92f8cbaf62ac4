"""Stage `decontaminate`: which fetched pairs are of an evaluation set, or on a blocklist.

The rule: a leak is told by the net of near-copies (bytes, PDQ with the colour check; filter/near.py), plain
and mirrored, of the picture that a pair is written with; a caption by its letters. CLIP's cosine would be no
evidence.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..recipe import Decontaminate, Near
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed
from ..shards.schema import EVALUATION, LEAKS
from .blocklist import Blocklist, read_blocklists
from .colours import UNKNOWN, WIDTH
from .columns import check_given
from .hamming import HASH
from .near import near_files
from .near_blocks import reach, rows_of_bytes
from .near_order import FETCHED, chroma_sql
from .sql import database, quoted

ROWS_PER_GROUP = 100_000
AT_ONCE = 200_000  # pictures in memory
PICTURES = """
SELECT DISTINCT ON (url_hash) url_hash, sha256, pdq_v1 || {chroma} AS code,
  (pdq_v1 IS NOT NULL AND pdq_quality_v1 >= $quality)::UTINYINT AS told
FROM fetched ORDER BY url_hash, uid
"""
MD5 = """
SELECT DISTINCT f.url_hash FROM read_parquet({pairs}) p JOIN fetched f USING (uid)
WHERE lower(p.given->>$column) IN (SELECT unnest($hashes))
"""
FOUND = """
SELECT f.uid AS uid, coalesce(b.item, h.item) AS leak_of_v1,
  coalesce(b.distance, h.distance)::SMALLINT AS leak_distance_v1,
  coalesce(b.mirrored, h.mirrored) AS leak_mirrored_v1, c.item AS leak_caption_of_v1,
  f.url_hash IN (SELECT url_hash FROM blocked) OR coalesce(a.best IN (SELECT url_hash FROM blocked), false)
    AS blocked_v1
FROM fetched f LEFT JOIN adopted a ON a.uid = f.uid LEFT JOIN hits h ON h.url_hash = f.url_hash
LEFT JOIN hits b ON b.url_hash = a.best LEFT JOIN captions c ON c.caption = lower(f.caption)
ORDER BY f.uid
"""
HITS = pa.schema(
    [("url_hash", pa.binary()), ("item", pa.string()), ("distance", pa.int16()), ("mirrored", pa.bool_())]
)
CAPTIONS = pa.schema([("caption", pa.string()), ("item", pa.string())])


def decontaminate_tasks(out: Path) -> list[Task]:
    """One task; none before anything was fetched."""
    return [Task("decontaminate", "leaks")] if any((out / "raw").glob("*.parquet")) else []


def decontaminate_stage(out: Path, settings: Decontaminate, near: Near, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `decontaminate`: scores/leaks/leaks.parquet. Raises ConfigError for a list that is none."""
    read_blocklists(settings.blocklist)
    return Stage("decontaminate", _start, (out, settings, near, memory_mb))


def _start(out: Path, settings: Decontaminate, near: Near, memory_mb: int) -> Worker:
    return partial(_decontaminate, out, settings, near, memory_mb)


def _decontaminate(out: Path, settings: Decontaminate, near: Near, memory_mb: int, task: Task) -> Tally:
    """Counts pairs: 'clean', 'leak', 'leak_caption' where only the caption is one, 'blocked'."""
    evaluation, blocklist = read_evaluation(out, settings), read_blocklists(settings.blocklist)
    if blocklist.short:
        check_given(out, [settings.md5_column], "decontaminate.md5_column")
    with database(out, task.stage, memory_mb=memory_mb, threads=near.threads) as connection:
        files = f"read_parquet({quoted(str(out / 'raw' / '*.parquet'))})"
        connection.execute(FETCHED.format(rows=files))
        chroma = chroma_sql(sorted((out / "raw").glob("*.parquet")), near)
        net = Net(evaluation, blocklist, near, mirrored=settings.mirrored)
        sql = PICTURES.format(chroma=chroma)
        pictures = connection.sql(sql, params={"quality": near.min_quality}).to_arrow_reader(AT_ONCE)
        cursor = [net.find(pa.Table.from_batches([batch])) for batch in pictures]
        beat(task, 1, 2, "writing")
        connection.register("hits", pa.concat_tables([HITS.empty_table(), *(hits for hits, _ in cursor)]))
        blocked = [one for _, some in cursor for one in some]
        blocked += _by_md5(connection, out, settings, blocklist)
        connection.register("blocked", pa.table({"url_hash": pa.array(blocked, pa.binary())}))
        connection.register("captions", said(evaluation))
        connection.execute(f"CREATE TEMP TABLE adopted AS {_adopted(out)}")
        return _write(
            out / "scores" / "leaks" / "leaks.parquet", connection.sql(FOUND).to_arrow_reader(ROWS_PER_GROUP)
        )


def read_evaluation(out: Path, settings: Decontaminate) -> pa.Table:
    """EVALUATION of all sets, in the order in which they are named."""
    paths = [
        out / "scores" / "evaluation" / f"{number:04d}.parquet" for number in range(len(settings.against))
    ]
    tables = [pq.read_table(path, schema=EVALUATION) for path in paths]
    return pa.concat_tables([EVALUATION.empty_table(), *tables]).combine_chunks()


def said(evaluation: pa.Table) -> pa.Table:
    """(caption in lower case, the first item that has it) of all captions of evaluation sets."""
    found: dict[str, str] = {}
    for item, captions in zip(
        *(evaluation.column(name).to_pylist() for name in ("item", "captions")), strict=True
    ):
        for caption in captions or ():
            found.setdefault(caption.lower(), item)
    return pa.table([list(found), list(found.values())], schema=CAPTIONS)


class Net:
    """Finds the evaluation picture, and the blocked hash, that a picture is a near-copy of."""

    def __init__(self, evaluation: pa.Table, blocklist: Blocklist, near: Near, *, mirrored: bool) -> None:
        self.items = evaluation.column("item").to_pylist()
        self.by_bytes: dict[bytes, int] = {}
        for number, digest in enumerate(evaluation.column("sha256").to_pylist()):
            self.by_bytes.setdefault(digest, number)
        told = evaluation.column("pdq_quality_v1").to_numpy() >= near.min_quality
        self.of = np.flatnonzero(told)
        sides = [_codes(evaluation, "v1", near)[told]]
        sides += [_codes(evaluation, "mirrored_v1", near)[told]] if mirrored else []
        self.codes = np.concatenate(sides)  # the plain ones first: they win
        self.reach, self.blocklist = reach(near), blocklist
        unknown = np.zeros((len(blocklist.pdq), WIDTH), np.uint8)
        unknown[:, -1] = UNKNOWN
        self.blocked = np.concatenate([blocklist.pdq, unknown], axis=1)

    def find(self, pictures: pa.Table) -> tuple[pa.Table, list[bytes]]:
        """HITS of these pictures, and the url_hash of those that are on a blocklist."""
        urls, digests = (pictures.column(name).to_pylist() for name in ("url_hash", "sha256"))
        rows = np.flatnonzero(pictures.column("told").to_numpy())
        codes = rows_of_bytes(pictures.column("code").take(pa.array(rows)), HASH + WIDTH)
        hits: dict[int, tuple[int, int, bool]] = {}
        first = self.reach.join(self.codes, codes)
        for place in np.flatnonzero(first >= 0):
            leader = int(first[place])
            bits = np.bitwise_count(self.codes[leader, :HASH] ^ codes[place, :HASH]).sum()
            hits[int(rows[place])] = (int(self.of[leader % len(self.of)]), int(bits), leader >= len(self.of))
        for row, digest in enumerate(digests):
            if digest in self.by_bytes:
                hits[row] = (self.by_bytes[digest], 0, False)
        near = rows[self.reach.join(self.blocked, codes) >= 0]
        blocked = {*near.tolist(), *(row for row, one in enumerate(digests) if one in self.blocklist.long)}
        lines = [
            (urls[row], self.items[item], bits, flip) for row, (item, bits, flip) in sorted(hits.items())
        ]
        columns = [list(column) for column in zip(*lines, strict=True)] or [[], [], [], []]
        return pa.table(columns, schema=HITS), [urls[row] for row in sorted(blocked)]


def _codes(evaluation: pa.Table, end: str, near: Near) -> np.ndarray:
    """(N, 32 + WIDTH) uint8: hash and colours, these unknown where they are not compared."""
    pdq = rows_of_bytes(evaluation.column(f"pdq_{end}"), HASH)
    colours = rows_of_bytes(evaluation.column(f"chroma_{end}"), WIDTH).copy()
    if not near.colour:
        colours[:] = 0
        colours[:, -1] = UNKNOWN
    return np.concatenate([pdq, colours], axis=1)


def _by_md5(
    connection: duckdb.DuckDBPyConnection, out: Path, settings: Decontaminate, blocklist: Blocklist
) -> list[bytes]:
    if not blocklist.short:
        return []
    values = {"column": settings.md5_column, "hashes": sorted(one.hex() for one in blocklist.short)}
    sql = MD5.format(pairs=quoted(str(out / "pairs" / "*.parquet")))
    return [url for (url,) in connection.sql(sql, params=values).fetchall()]


def _adopted(out: Path) -> str:
    """SQL of (uid, url_hash of the picture that it is written with) where that is another's."""
    near = near_files(out, embedding=False)  # a cosine is no ground for another picture
    if not any(near.parent.glob(near.name)):
        return "SELECT NULL::BLOB AS uid, NULL::BLOB AS best WHERE false"
    files = f"read_parquet({quoted(str(near))})"
    return f"SELECT uid, near_group_v1 AS best FROM {files} WHERE near_adopted_v1"


def _write(path: Path, batches: pa.RecordBatchReader) -> Tally:
    counts: Counter[str] = Counter(dict.fromkeys(("blocked", "clean", "leak", "leak_caption"), 0))
    with committed(path) as temporary, pq.ParquetWriter(temporary, LEAKS, compression="zstd") as writer:
        for batch in batches:
            table = pa.Table.from_batches([batch]).cast(LEAKS)
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            counts.update(_outcome(row) for row in table.select(LEAKS.names[1:]).to_pylist())
    return Tally(dict(counts))


def _outcome(row: dict[str, Any]) -> str:
    if row["blocked_v1"]:
        return "blocked"
    return "leak" if row["leak_of_v1"] else "leak_caption" if row["leak_caption_of_v1"] else "clean"
