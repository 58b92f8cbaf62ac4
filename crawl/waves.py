"""`--retry-failed`: another wave of requests, for the URLs whose last answer was a passing failure."""

from __future__ import annotations

from pathlib import Path

import duckdb

from ..recipe import Fetch
from ..settings import MEMORY_MB
from ..shards.commit import write_json, write_table
from .answer import PASSING
from .generations import (
    generation_of,
    giants_json,
    plan_folder,
    plan_path,
    planned_shards,
    wave_mark,
    wave_of,
)
from .hosts import bin_hosts
from .plan import quoted, shard_tables, spilling

FAILED = """
CREATE TEMP TABLE asked AS
WITH attempts AS (SELECT uid, url_hash, url, caption, outcome, wave FROM read_parquet([{files}])),
    planned AS (SELECT uid, page_signals, expected FROM read_parquet([{plans}])),
    again AS (SELECT uid, max(wave) AS last FROM attempts WHERE wave > 0 GROUP BY uid)
SELECT uid, url_hash, url, caption,
    NULL::VARCHAR AS tar_path, NULL::BIGINT AS tar_offset, NULL::BIGINT AS tar_size, page_signals, expected
FROM attempts LEFT JOIN again USING (uid) LEFT JOIN planned USING (uid)
WHERE wave = coalesce(last, 0) AND outcome IN ({passing})
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
    rows, names = 0, dict[str, int | None]()
    with spilling(out, memory_mb) as database:
        _view_failed(database, out, [*raw.values()])
        groups = bin_hosts(database, settings.urls_per_shard)
        for table, group in shard_tables(database, settings.urls_per_shard):
            rows += table.num_rows
            name = f"w{wave}-{len(names):05d}"
            names[name] = group
            write_table(table, plan_path(out, name))
    if rows:
        said = {"pairs": rows, "shards": len(names), "sum": "", "files": {}}
        write_json(said | giants_json(names, groups), wave_mark(out, wave))
    return rows


def _view_failed(database: duckdb.DuckDBPyConnection, out: Path, raw: list[Path]) -> None:
    """Let `asked` be the pairs to be asked for again."""
    plans = [plan_path(out, name) for name in planned_shards(out) if not wave_of(name)]
    values = {"files": raw, "plans": plans}
    lists = {name: ", ".join(map(quoted, found)) for name, found in values.items()}
    passing = ", ".join(f"'{word}'" for word in sorted(PASSING))
    database.execute(FAILED.format(passing=passing, **lists))
