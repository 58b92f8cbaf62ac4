"""`--retry-failed`: another wave of requests, for the URLs whose last answer was a passing failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ..recipe import Fetch
from ..settings import MEMORY_MB
from ..shards.commit import write_json, write_table
from .answer import PASSING
from .generations import generation_of, plan_folder, plan_path, planned_shards, wave_mark, wave_of
from .plan import batches_of, cut, spilling

FAILED = """
WITH attempts AS (SELECT uid, url_hash, url, caption, outcome, wave FROM read_parquet($files)),
    planned AS (SELECT uid, page_signals FROM read_parquet($plans)),
    again AS (SELECT uid, max(wave) AS last FROM attempts WHERE wave > 0 GROUP BY uid)
SELECT uid, url_hash, url, caption,
    NULL::VARCHAR AS tar_path, NULL::BIGINT AS tar_offset, NULL::BIGINT AS tar_size, page_signals
FROM attempts LEFT JOIN again USING (uid) LEFT JOIN planned USING (uid)
WHERE wave = coalesce(last, 0) AND list_contains($passing, outcome) ORDER BY url_hash, uid
"""


def plan_retry(out: Path, settings: Fetch, memory_mb: int = MEMORY_MB) -> int:
    """Plan another wave: the URLs whose latest try failed for a passing cause. Returns how many pairs.

    Plans nothing while what is planned is not fetched to its end, but for the newest list's, or where nothing
    failed so. The plan counts once its mark `w<n>.json` stands, which is written last.
    """
    shards = planned_shards(out)
    wave = max(map(wave_of, shards), default=0) + 1
    newest = max(map(generation_of, shards), default=0)
    raw = {name: out / "raw" / f"{name}.parquet" for name in shards}
    missing = [name for name, path in raw.items() if not path.exists()]
    if newest and missing and all(generation_of(name) == newest for name in missing):
        raw = {
            name: path for name, path in raw.items() if generation_of(name) != newest
        }  # yet to be asked for
    elif missing or not raw:
        return 0
    for stale in plan_folder(out).glob(f"w{wave}-*.parquet"):
        stale.unlink()
    rows, number = 0, 0
    for number, table in enumerate(
        cut(_failed(out, [*raw.values()], memory_mb), settings.urls_per_shard), start=1
    ):
        rows += table.num_rows
        write_table(table, plan_path(out, f"w{wave}-{number - 1:05d}"))
    if rows:
        write_json({"pairs": rows, "shards": number}, wave_mark(out, wave))
    return rows


def _failed(out: Path, raw: list[Path], memory_mb: int) -> Iterator[pa.RecordBatch]:
    """PLAN, ordered by (url_hash, uid): the pairs to be asked for again."""
    plans = [
        str(path) for name in planned_shards(out) if not wave_of(name) and (path := plan_path(out, name))
    ]
    values = {"files": [str(path) for path in raw], "plans": plans, "passing": sorted(PASSING)}
    with spilling(out, memory_mb) as database:
        yield from batches_of(database.sql(FAILED, params=values))
