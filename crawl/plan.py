"""What to fetch, cut into raw shards: every wanted picture once, a host in one shard or a giant in some.

Within a shard URLs stand in the order of their hashes, which spreads each host over the shard's time. What an
earlier plan asks for is not planned again: see `generations.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError, ShardError
from ..recipe import Fetch
from ..runner import Tally, Task
from ..settings_fetch import Expect
from ..shards.commit import write_table
from ..shards.duck_files import reading
from ..shards.files import readable, scratch_folder
from ..shards.job import finished_tasks, tally_path
from ..shards.ledger import forget_stage
from ..shards.schema import UID
from ..shards.selection import uids_to_array, unwanted_file
from .generations import (
    COLUMNS,
    PLAN,
    Generation,
    Generations,
    PlanSum,
    plan_path,
    planned_shards,
    reuse_folder,
    reused_shards,
)
from .hosts import bin_hosts, binned
from .listed import plan_columns

ROWS_PER_BATCH = 50_000
ALL = 2**40  # of a bin that is one shard


class Planner:
    """Plans what no earlier plan asks for; what was fetched stays, whatever lists are added.

    The first plan, and one of which nothing was fetched yet, is of all wanted pairs. Later ones, of a
    generation each, are of the URLs that are new; a known URL with a new caption goes to `reuse`.
    """

    def __init__(self, out: Path, settings: Fetch, memory_mb: int) -> None:
        self.out, self.settings, self.memory_mb = out, settings, memory_mb
        self.plans = Generations(out, settings.expect)

    def __call__(self, task: Task) -> Tally:
        """Counts rows of pairs/: `wanted`, and `screened` for those with a reason not to fetch."""
        counts: Counter[str] = Counter(wanted=0, screened=0)
        self.plans.restore()
        with spilling(self.out, self.memory_mb) as database:
            new = self.plans.begin(lambda older: self._sum(database, older))
            names, groups, (urls, planned) = self._plan(database, new, counts)
            if not counts["wanted"]:
                raise DataError(f"{self.out}: no pair is worth fetching: selection/screen/ says why for each")
            if names:
                self.plans.close(new, names, planned, groups)
            facts = {"known": self._reuse(database, new), "unwanted": self._unwanted(database, new)}
        facts |= {"urls": urls, "shards": len(names), "generation": new.number}
        self._remove_unplanned()
        return Tally(counts, facts)

    def _rows(
        self, database: duckdb.DuckDBPyConnection, rest: str, counts: Counter[str] | None = None
    ) -> duckdb.DuckDBPyRelation:
        """The wanted rows, narrowed by `rest`."""
        self._register(database, Counter() if counts is None else counts)
        return database.sql(f"SELECT wanted.* FROM wanted {rest}")

    def _register(self, database: duckdb.DuckDBPyConnection, counts: Counter[str]) -> None:
        """Let `wanted` be the wanted rows, to be read once."""
        database.register(
            "wanted", pa.RecordBatchReader.from_batches(PLAN, _wanted(self.out, counts, self.settings.expect))
        )

    def _sum(self, database: duckdb.DuckDBPyConnection, older: Sequence[Path]) -> PlanSum:
        """What a plan of the wanted pairs that the older ones do not know would be."""
        total = PlanSum()
        for batch in batches_of(self._rows(database, f"{_not_in(older)} ORDER BY uid")):
            total.add(batch)
        return total

    def _plan(
        self, database: duckdb.DuckDBPyConnection, new: Generation, counts: Counter[str]
    ) -> tuple[dict[str, int | None], dict[int, list[str]], tuple[int, PlanSum]]:
        """Write the plan files. Returns their names, with their groups of giants; these; what is in them."""
        names, urls, total = dict[str, int | None](), 0, PlanSum()
        self._register(database, Counter())
        database.execute(
            f"CREATE OR REPLACE TEMP VIEW asked AS SELECT wanted.* FROM wanted {_not_in(new.older)}"
        )
        groups = bin_hosts(database, self.settings.urls_per_shard)
        self._register(database, counts)
        for table, group in shard_tables(database, self.settings.urls_per_shard):
            name = new.shard(len(names))
            names[name] = group
            write_table(table, plan_path(self.out, name))
            urls += pc.count_distinct(table["url_hash"]).as_py()
            total.add(table)
        return names, groups, (urls, total)

    def _reuse(self, database: duckdb.DuckDBPyConnection, new: Generation) -> int:
        """Plan the pairs whose URL an older plan asks for with other captions. Returns how many they are."""
        folder, n, number = reuse_folder(self.out), 0, -1
        if new.older:
            known = f"SEMI JOIN {_files(new.older)} AS plans USING (url_hash) {_not_in(new.older, 'uid')}"
            rows = self._rows(database, f"{known} ORDER BY url_hash, uid, tar_path, tar_offset")
            for number, table in enumerate(cut(batches_of(rows), self.settings.urls_per_shard)):
                write_table(table, folder / f"known-{number:05d}.parquet")
                n += table.num_rows
        for path in sorted(folder.glob("known-*.parquet"))[number + 1 :]:
            path.unlink()
        return n

    def _unwanted(self, database: duckdb.DuckDBPyConnection, new: Generation) -> int:
        """Name the pairs that older plans asked for and that are dropped by now. Returns how many."""
        path = unwanted_file(self.out)
        uids = pa.table([pa.array([], UID)], ["uid"])
        if new.older:
            database.register(
                "wanted",
                pa.RecordBatchReader.from_batches(PLAN, _wanted(self.out, Counter(), self.settings.expect)),
            )
            found = database.sql(
                f"SELECT uid FROM {_files(new.older)} AS plans ANTI JOIN wanted USING (uid) ORDER BY uid"
            )
            uids = found.to_arrow_table().cast(pa.schema([("uid", UID)]))
        if uids.num_rows:
            write_table(uids, path)
        else:
            path.unlink(missing_ok=True)
        return uids.num_rows

    def _remove_unplanned(self) -> None:
        """Remove raw shards that no plan knows any more, and what their stages left of them."""
        for stage, planned in (("fetch", planned_shards(self.out)), ("reuse", reused_shards(self.out))):
            for name in set(finished_tasks(self.out, stage)) - set(planned):
                tally_path(self.out, stage, name).unlink(missing_ok=True)
        planned = {*planned_shards(self.out), *reused_shards(self.out)}
        for path in sorted((self.out / "raw").glob("*.*")):
            if path.stem not in planned:
                path.unlink()
        if not reused_shards(self.out):
            forget_stage(self.out, "reuse")


def _files(paths: Sequence[Path]) -> str:
    return f"read_parquet([{', '.join(map(quoted, paths))}])"


def quoted(path: Path) -> str:
    """A path as a string of SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _not_in(plans: Sequence[Path], by: str = "url_hash") -> str:
    return f"ANTI JOIN {_files(plans)} AS older USING ({by})" if plans else ""


def batches_of(rows: duckdb.DuckDBPyRelation) -> Iterator[pa.RecordBatch]:
    """The rows as PLAN, some at a time."""
    for batch in rows.to_arrow_reader(ROWS_PER_BATCH):
        yield pa.Table.from_batches([batch]).cast(PLAN).combine_chunks().to_batches()[0]


def _wanted(out: Path, counts: Counter[str], expect: Expect) -> Iterator[pa.RecordBatch]:
    """The rows of pairs/ whose reason in selection/screen/ is NULL, part by part."""
    for part in sorted((out / "pairs").glob("*.parquet")):
        screen = out / "selection" / "screen" / part.name
        if not screen.exists():
            raise ShardError(screen, None, f"missing, though {part.name} is in pairs/: run the screen again")
        pairs = pq.read_table(readable(part), columns=[*COLUMNS, "given"])
        verdict = pq.read_table(readable(screen))
        if not pairs["uid"].equals(verdict["uid"]):
            raise ShardError(
                screen, None, f"its rows are not those of pairs/{part.name}: run the screen again"
            )
        wanted = pairs.filter(pc.is_null(verdict["reason"]))
        counts.update(wanted=wanted.num_rows, screened=pairs.num_rows - wanted.num_rows)
        yield from plan_columns(wanted, expect).cast(PLAN).to_batches()


@contextmanager
def spilling(out: Path, memory_mb: int, name: str = "fetch") -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB that spills into a folder of its own below `_plan/`.

    Raises DataError where its memory is not enough all the same.
    """
    try:
        with (
            scratch_folder(out / "_plan" / "spill" / name) as spill,
            duckdb.connect(
                config={"memory_limit": f"{memory_mb}MB", "temp_directory": str(spill)}
            ) as database,
            reading(database, out),
        ):
            yield database
    except duckdb.OutOfMemoryException as error:
        raise DataError(f"{name}: DuckDB needs more than {memory_mb} MB: raise run.memory_mb") from error


def shard_tables(
    database: duckdb.DuckDBPyConnection, urls_per_shard: int
) -> Iterator[tuple[pa.Table, int | None]]:
    """The rows of `asked`, whose hosts are in bins, as shards; and the group of giants that each is of."""
    for bin_, batches in binned(database):
        for table in cut(batches, urls_per_shard if bin_.is_giant else ALL):
            yield table, bin_.place if bin_.is_giant else None


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
