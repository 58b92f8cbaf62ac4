"""What to fetch, cut into raw shards: every wanted picture once, in the order of its URL's hash.

That order spreads the URLs of one host over all shards and over each shard's time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ..errors import DataError, ShardError
from ..recipe import Fetch
from ..runner import Tally, Task
from ..shards.commit import write_json, write_table
from ..shards.job import tally_path
from ..shards.schema import PAIRS
from ..shards.selection import uids_to_array
from .answer import PASSING

# _plan/fetch/<shard>.parquet: one row per pair, ordered by (url_hash, uid), no uid twice
COLUMNS = ["uid", "url_hash", "url", "caption", "tar_path", "tar_offset", "tar_size"]
PLAN = pa.schema([PAIRS.field(name) for name in COLUMNS])
ROWS_PER_BATCH = 50_000


def plan_folder(out: Path) -> Path:
    return out / "_plan" / "fetch"


def wave_of(shard: str) -> int:
    """0 for `00017`, 2 for `w2-00017`."""
    return int(shard[1:].partition("-")[0]) if shard.startswith("w") else 0


def planned_shards(out: Path) -> list[str]:
    """Names of the planned raw shards by wave, then number; a wave half planned is left out."""
    names = [path.stem for path in plan_folder(out).glob("*.parquet")]
    whole = [name for name in names if wave_of(name) == 0 or _wave_mark(out, wave_of(name)).exists()]
    return sorted(whole, key=lambda name: (wave_of(name), len(name), name))


def _wave_mark(out: Path, wave: int) -> Path:
    return plan_folder(out) / f"w{wave}.json"


class Planner:
    """Writes the plans of wave 0, and removes raw shards that an earlier, other plan led to."""

    def __init__(self, out: Path, settings: Fetch, memory_mb: int) -> None:
        self.out, self.settings, self.memory_mb = out, settings, memory_mb

    def __call__(self, task: Task) -> Tally:
        """Counts rows of pairs/: `wanted`, and `screened` for those with a reason not to fetch."""
        for stale in sorted(plan_folder(self.out).glob("[0-9]*.*")):
            stale.unlink()
        counts: Counter[str] = Counter(wanted=0, screened=0)
        urls, number, digest = 0, 0, xxhash.xxh3_64()
        wanted = pa.RecordBatchReader.from_batches(PLAN, _wanted(self.out, counts))
        with _database(self.out, self.memory_mb) as database:
            for number, table in enumerate(cut(_sorted(database, wanted), self.settings.urls_per_shard)):
                write_table(table, plan_folder(self.out) / f"{number:05d}.parquet")
                urls += pc.count_distinct(table["url_hash"]).as_py()
                digest.update(uids_to_array(table["uid"]).tobytes())
        if not urls:
            raise DataError(f"{self.out}: no pair is worth fetching: selection/screen/ says why for each")
        if not self._is_as_fetched():  # then the later waves ask again for what this plan does not know
            for stale in sorted(plan_folder(self.out).glob("w*.*")):
                stale.unlink()
        self._remove_unplanned()
        return Tally(counts, {"urls": urls, "shards": number + 1, "digest": digest.hexdigest()})

    def _is_as_fetched(self) -> bool:
        """Whether all that was fetched in wave 0 is just what is planned, pair by pair."""
        planned = {name for name in planned_shards(self.out) if wave_of(name) == 0}
        fetched = {path.stem for path in (self.out / "raw").glob("[0-9]*.parquet")}
        files = [(plan_folder(self.out) / f"{name}.parquet", f"{name}.parquet") for name in sorted(fetched)]
        return fetched <= planned and all(
            pq.read_table(plan, columns=["uid"]).equals(
                pq.read_table(self.out / "raw" / name, columns=["uid"])
            )
            for plan, name in files
        )

    def _remove_unplanned(self) -> None:
        planned = set(planned_shards(self.out))
        for path in sorted((self.out / "raw").glob("*.*")):
            if path.stem not in planned:
                tally_path(self.out, "fetch", path.stem).unlink(missing_ok=True)
                path.unlink()


def _wanted(out: Path, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The rows of pairs/ whose reason in selection/screen/ is NULL, part by part."""
    for part in sorted((out / "pairs").glob("*.parquet")):
        screen = out / "selection" / "screen" / part.name
        if not screen.exists():
            raise ShardError(screen, None, f"missing, though {part.name} is in pairs/: run the screen again")
        pairs, verdict = pq.read_table(part, columns=COLUMNS), pq.read_table(screen)
        if not pairs["uid"].equals(verdict["uid"]):
            raise ShardError(
                screen, None, f"its rows are not those of pairs/{part.name}: run the screen again"
            )
        wanted = pairs.filter(pc.is_null(verdict["reason"]))
        counts.update(wanted=wanted.num_rows, screened=pairs.num_rows - wanted.num_rows)
        yield from wanted.cast(PLAN).to_batches()


def _database(out: Path, memory_mb: int) -> duckdb.DuckDBPyConnection:
    spill = out / "_plan" / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(config={"memory_limit": f"{memory_mb}MB", "temp_directory": str(spill)})


def _sorted(database: duckdb.DuckDBPyConnection, wanted: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    database.register("wanted", wanted)
    # rows of one uid may differ in where the picture lies: the order says which of them is taken
    found = database.sql("SELECT * FROM wanted ORDER BY url_hash, uid, tar_path, tar_offset")
    try:
        reader = found.to_arrow_reader(ROWS_PER_BATCH)
    except duckdb.OutOfMemoryException as error:
        raise DataError("plan-fetch: DuckDB needs more memory: raise run.memory_mb") from error
    for batch in reader:
        yield pa.Table.from_batches([batch]).cast(PLAN).combine_chunks().to_batches()[0]


def cut(batches: Iterable[pa.RecordBatch], urls_per_shard: int) -> Iterator[pa.Table]:
    """Tables of `urls_per_shard` distinct URLs each, from batches ordered by (url_hash, uid).

    Of rows with the same uid the first is taken. Holds one table and one batch.
    """
    held: list[pa.RecordBatch] = []
    last_uid, last_url, n_urls = b"", b"", 0
    for raw in batches:
        uids = uids_to_array(raw["uid"])
        batch = raw.filter(pa.array(_is_new(uids, last_uid)))
        if batch.num_rows == 0:
            continue
        urls = uids_to_array(batch["url_hash"])
        number = n_urls + np.cumsum(_is_new(urls, last_url))  # of each row's URL, from 1
        shard = (number - 1) // urls_per_shard
        before = (n_urls - 1) // urls_per_shard if n_urls else shard[0]
        edges = np.flatnonzero(np.diff(shard, prepend=before))
        start = 0
        for edge in map(int, edges):
            held.append(batch.slice(start, edge - start))
            yield _table(held)
            held, start = [], edge
        held.append(batch.slice(start))
        last_uid, last_url, n_urls = uids[-1].tobytes(), urls[-1].tobytes(), int(number[-1])
    if held:
        yield _table(held)


def _table(held: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(held, PLAN).combine_chunks()


def _is_new(names: np.ndarray, last: bytes) -> np.ndarray:
    """(N,) bool: whether each of (N,) V16 differs from the one before it; `last` stands before the first."""
    new = np.empty(len(names), bool)
    if len(names):
        new[0] = names[0].tobytes() != last
        new[1:] = names[1:] != names[:-1]
    return new


def plan_retry(out: Path, settings: Fetch) -> int:
    """Plan another wave: the URLs of the latest wave that failed for a passing cause. Returns how many pairs.

    Plans nothing while the latest wave is not fetched to its end, or where nothing failed so. The plan
    counts once its mark `w<n>.json` stands, which is written last.
    """
    shards = planned_shards(out)
    wave = max(map(wave_of, shards), default=0)
    latest = [out / "raw" / f"{name}.parquet" for name in shards if wave_of(name) == wave]
    if not all(path.exists() for path in latest):
        return 0
    for stale in plan_folder(out).glob(f"w{wave + 1}-*.parquet"):
        stale.unlink()
    rows, number = 0, 0
    for number, table in enumerate(cut(_failed(latest), settings.urls_per_shard), start=1):
        rows += table.num_rows
        write_table(table, plan_folder(out) / f"w{wave + 1}-{number - 1:05d}.parquet")
    if rows:
        write_json({"pairs": rows, "shards": number}, _wave_mark(out, wave + 1))
    return rows


def _failed(shards: list[Path]) -> Iterator[pa.RecordBatch]:
    passing = pa.array(sorted(PASSING))
    for path in shards:
        table = pq.read_table(path, columns=["uid", "url_hash", "url", "caption", "outcome"])
        table = table.filter(pc.is_in(table["outcome"], passing)).drop_columns("outcome")
        for name in ("tar_path", "tar_offset", "tar_size"):
            kind = PLAN.field(name).type
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
        yield from table.cast(PLAN).to_batches()
