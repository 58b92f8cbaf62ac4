"""Stage `reuse`: pairs of a later list whose URL was asked for before, with other captions.

Each becomes a row of raw/known-<number>.parquet that says what became of its URL and points at the bytes
where they lie. No host is asked, nothing is decoded, no byte is stored twice. The rows are made anew
whenever something was fetched, so a repeat that brought a picture brought it for them too.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from ..runner import Stage, Tally, Task, Worker
from ..settings import MEMORY_MB
from ..shards.commit import write_table
from ..shards.files import readable
from ..shards.schema import RAW
from .generations import planned_shards, reuse_folder, reused_shards
from .plan import spilling

# of the tries of one URL the good one, else the latest
KNOWN = """
WITH plan AS (SELECT * FROM read_parquet($plan)),
    ends AS (SELECT min(url_hash) AS a, max(url_hash) AS z FROM plan),
    tries AS (
        SELECT raw.* EXCLUDE (tar), coalesce(tar, parse_filename(filename, true)) AS tar
        FROM read_parquet($raw, filename = true) AS raw SEMI JOIN plan USING (url_hash)
        WHERE url_hash BETWEEN (SELECT a FROM ends) AND (SELECT z FROM ends)
    ), known AS (
        SELECT DISTINCT ON (url_hash) * FROM tries ORDER BY url_hash, (outcome = 'ok') DESC, wave DESC, uid
    )
SELECT plan.uid AS uid, plan.caption AS caption, 0 AS wave,
    CASE WHEN outcome = 'ok' THEN known.tar END AS tar, {columns}
FROM plan JOIN known USING (url_hash) ORDER BY url_hash, plan.uid
"""
OWN = {"uid", "caption", "wave", "tar"}


def reuse_tasks(out: Path) -> list[Task]:
    """One task for each plan; none where no URL came again with another caption."""
    return [Task("reuse", name) for name in reused_shards(out)]


def reuse_stage(out: Path, memory_mb: int = MEMORY_MB) -> Stage:
    """Write raw/known-<number>.parquet for each plan."""
    return Stage("reuse", start_reuse, (out, memory_mb))


def start_reuse(out: Path, memory_mb: int) -> Worker:
    """The worker of the stage."""
    return partial(reuse_shard, out=out, memory_mb=memory_mb)


def reuse_shard(task: Task, *, out: Path, memory_mb: int) -> Tally:
    """Counts pairs by the outcome of their URL; `not_fetched` where its own task failed."""
    plan = reuse_folder(out) / f"{task.name}.parquet"
    raw = [str(path) for name in planned_shards(out) if (path := out / "raw" / f"{name}.parquet").exists()]
    table = RAW.empty_table()
    if raw:
        columns = ", ".join(f'known."{name}" AS "{name}"' for name in RAW.names if name not in OWN)
        with spilling(out, memory_mb, task.name) as database:
            rows = database.sql(KNOWN.format(columns=columns), params={"plan": str(plan), "raw": raw})
            table = rows.to_arrow_table().select(RAW.names).cast(RAW)
    write_table(table, out / "raw" / f"{task.name}.parquet")
    counts = Counter(table["outcome"].to_pylist())
    counts["not_fetched"] += pq.read_metadata(readable(plan)).num_rows - table.num_rows
    return Tally({word: n for word, n in sorted(counts.items()) if n})
