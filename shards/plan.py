"""Which pair of a selection lies where in the dataset: one SQL query, then plan files of a shard each.

The order is that of md5(seed:uid): a global shuffle that any machine, and any DuckDB, repeats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError, OutputError
from ..recipe import Write
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from .commit import file_digest, write_table
from .duck_files import reading
from .files import readable, scratch_folder
from .job import finished_tasks, tally_path
from .schema import IMG2DATASET, SIDECAR
from .selection import is_selected, uids_to_array

PLAN = Path("_plan/write")
# known before the tar is written, and of each sample its own
OWN = [field for field in SIDECAR if field.name not in {"offset", "size", *IMG2DATASET}]
FROM_RAW = [
    ("raw_shard", pa.string()),
    ("raw_offset", pa.int64()),
    ("raw_size", pa.int64()),
    ("raw_xxh3", pa.uint64()),
]
PLAN_SCHEMA = pa.schema([*OWN, *FROM_RAW])  # _plan/write/<shard>.parquet, in the shard's order

PLAN_SQL = """
WITH newest AS (
    SELECT uid, max(wave) AS wave
    FROM read_parquet($raw) AS raw SEMI JOIN {selected} AS selected USING (uid) GROUP BY uid
), picture AS (
    SELECT raw.* EXCLUDE (tar), parse_filename(filename, true) AS raw_shard,
        coalesce(tar, raw_shard) AS tar
    FROM read_parquet($raw, filename = true) AS raw JOIN newest USING (uid, wave)
    WHERE outcome = 'ok'
), spoken AS ({language}), scored AS ({noise}), adopted AS ({near}), best AS (
    SELECT DISTINCT ON (url_hash) * EXCLUDE (tar), url_hash AS best_hash,
        coalesce(tar, parse_filename(filename, true)) AS tar
    FROM read_parquet($raw, filename = true) AS raw
    WHERE outcome = 'ok' AND url_hash IN (SELECT best_hash FROM adopted)
    ORDER BY url_hash, wave DESC, uid
)
SELECT picture.uid AS uid, lower(hex(picture.uid)) AS key, picture.url AS url, {shown.url} AS picture_url,
    picture.caption AS caption, lang_v1, cosine_v1, mismatch_p_v2, mismatch_q_v2, {shown.width} AS width,
    {shown.height} AS height, {shown.original_width} AS original_width,
    {shown.original_height} AS original_height, {shown.sha256} AS sha256,
    {shown.tar} AS raw_shard, {shown.offset} AS raw_offset, {shown.size} AS raw_size,
    {shown.stored_xxh3} AS raw_xxh3
FROM picture LEFT JOIN spoken USING (uid)
LEFT JOIN scored ON scored.uid = picture.uid AND scored.shard = picture.raw_shard
LEFT JOIN adopted USING (uid) LEFT JOIN best USING (best_hash)
ORDER BY md5($seed || ':' || hex(picture.uid)), picture.uid
"""
SELECTED_SQL = "read_parquet($selection)"
# what was redacted keeps its place while shards are cut, so that the pairs around it keep theirs
WITH_REDACTED_SQL = """(
    SELECT uid FROM read_parquet($selection)
    UNION ALL SELECT uid FROM read_parquet($reasons) WHERE reason = 'redacted'
)"""
LANGUAGE_SQL = """
    SELECT uid, min(lang_v1) AS lang_v1
    FROM read_parquet($language) AS language SEMI JOIN newest USING (uid) GROUP BY uid
"""
NOISE_SQL = """
    SELECT uid, parse_filename(filename, true) AS shard, cosine_v1, mismatch_p_v2, mismatch_q_v2
    FROM read_parquet($noise, filename = true) AS noise SEMI JOIN newest USING (uid)
"""
ADOPTED_SQL = """
    SELECT uid, near_group_v1 AS best_hash
    FROM read_parquet($near) AS near SEMI JOIN newest USING (uid) WHERE near_adopted_v1
"""
NO_ADOPTED_SQL = "SELECT NULL::BLOB AS uid, NULL::BLOB AS best_hash WHERE false"
NO_LANGUAGE_SQL = "SELECT NULL::BLOB AS uid, NULL::VARCHAR AS lang_v1 WHERE false"
NO_NOISE_SQL = """
    SELECT NULL::BLOB AS uid, NULL::VARCHAR AS shard, NULL::FLOAT AS cosine_v1,
        NULL::FLOAT AS mismatch_p_v2, NULL::FLOAT AS mismatch_q_v2 WHERE false
"""


class _Shown:
    """SQL of a column of the picture that a caption is written with: its own, or that which took it over."""

    def __getattr__(self, name: str) -> str:
        return f'CASE WHEN best.uid IS NULL THEN picture."{name}" ELSE best."{name}" END'


LEAST_SQL = """
    WITH scored AS (
        SELECT uid, ceil(mismatch_q_v2 * 1000) AS thousandths
        FROM read_parquet($noise) AS noise SEMI JOIN read_parquet($candidates) AS candidates USING (uid)
    )
    SELECT min(thousandths) / 1000, count(DISTINCT uid)
    FROM scored WHERE thousandths = (SELECT min(thousandths) FROM scored)
"""


def plan_write_tasks(out: Path, selection_name: str) -> list[Task]:
    """The one task of `plan-write`, named by its selection: another selection is another plan."""
    return [Task("plan-write", selection_name)]


def plan_write_stage(out: Path, settings: Write, selection_name: str, memory_mb: int = MEMORY_MB) -> Stage:
    """Lay the pairs of `selection/<selection_name>.parquet` out into `_plan/write/<shard>.parquet`."""
    return Stage("plan-write", start_plan, (out, settings, selection_name, memory_mb))


def start_plan(out: Path, settings: Write, selection_name: str, memory_mb: int = MEMORY_MB) -> Worker:
    """The worker of `plan-write`."""

    def plan(task: Task) -> Tally:
        return write_plan(task, out, settings, selection_name, memory_mb)

    return plan


def write_plan(
    task: Task, out: Path, settings: Write, selection_name: str, memory_mb: int = MEMORY_MB
) -> Tally:
    """Write one plan file for each shard and remove those of an earlier, longer plan.

    Counts `planned` and `no_picture`; the fact `digest` changes with any planned value.
    Raises DataError where nothing is left to write, or where the columns contradict each other.
    """
    path = out / "selection" / f"{selection_name}.parquet"
    if not path.is_file():
        raise DataError(f"{path}: selection {selection_name!r} is not decided: {_others(out)}")
    for other in set(finished_tasks(out, "plan-write")) - {task.name}:
        tally_path(out, "plan-write", other).unlink(missing_ok=True)  # there is one plan, and it will be ours
    selected = pq.read_metadata(readable(path)).num_rows
    names: list[str] = []
    digest = hashlib.sha256()
    planned = 0
    gone = _redacted(out, selection_name)
    for whole in _ordered(out, settings, selection_name, memory_mb, redacted=len(gone) > 0):
        batch = (
            whole.filter(pa.array(~is_selected(uids_to_array(whole["uid"]), gone))) if len(gone) else whole
        )
        names.append(f"{len(names):05d}")
        digest.update(_replan(out, names[-1], batch))
        planned += batch.num_rows
        beat(task, planned, selected)
    if planned == 0:
        raise DataError(
            f"selection {selection_name!r}: {selected} pairs, none with a picture: nothing to write"
            f"{_least_noise(out)}"
        )
    if planned > selected:
        raise DataError(f"{out / 'raw'}: {planned} rows for {selected} selected pairs: one lies there twice")
    _forget(out, keep=set(names))
    counts = {"planned": planned, "no_picture": selected - planned}
    return Tally(counts, {"digest": digest.hexdigest(), "shards": len(names), "selection": selection_name})


def _others(out: Path) -> str:
    names = finished_tasks(out, "decide")
    there = f"there are {', '.join(names)}: choose one with --set decide.name=NAME, or " if names else ""
    return f"{there}run `pairmill decide` first"


def _replan(out: Path, name: str, batch: pa.Table) -> bytes:
    """Write one plan file; a shard that was written by another plan is not finished any more."""
    path = out / PLAN / f"{name}.parquet"
    before = path.read_bytes() if path.is_file() else b""
    write_table(batch, path)
    now = path.read_bytes()
    if now != before:
        tally_path(out, "write", name).unlink(missing_ok=True)
    return now


def plan_digest(out: Path, name: str) -> str:
    """A digest of one plan file."""
    return file_digest(out / PLAN / f"{name}.parquet").xxh3


def _least_noise(out: Path) -> str:
    """The smallest share of noise that can be promised, where pairs were scored."""
    import duckdb

    noise, candidates = _parquet_in(out / "scores/noise"), out / "selection" / "candidates.parquet"
    if not noise or not candidates.is_file():
        return ""
    with duckdb.connect(config={"memory_limit": "1GB"}) as connection, reading(connection, out):
        values = {"noise": noise, "candidates": str(candidates)}
        least, pairs = connection.execute(LEAST_SQL, values).fetchall()[0]
    if least is None or least >= 1:
        return "; no pair can be told from a mismatched one: fetch more, or train the scorer for longer"
    return (
        f"; the least noise that can be promised is {100 * least:.1f} %, for {pairs:,} pairs: ask for that"
        f" with --set decide.max_noise={least:g} --set decide.name=NAME, or train the scorer for longer"
    )


def _redacted(out: Path, selection_name: str) -> np.ndarray:
    """(N,) V16 uids, sorted, that the selection would keep and that were asked to be taken out."""
    path = out / "selection" / f"{selection_name}.reasons.parquet"
    if not (out / "redaction" / "list.parquet").exists():
        return np.empty(0, "V16")
    rows = pq.read_table(readable(path))
    return uids_to_array(rows.filter(pc.equal(rows["reason"], "redacted"))["uid"])


def _ordered(
    out: Path, settings: Write, selection_name: str, memory_mb: int, *, redacted: bool
) -> Iterator[pa.Table]:
    """Tables of `samples_per_shard` rows (the last may be shorter) in PLAN_SCHEMA, in the dataset's order.

    redacted: with the pairs that were redacted, each in its place.
    """
    import duckdb

    raw, language, noise = (
        _parquet_in(out / folder) for folder in ("raw", "scores/language", "scores/noise")
    )
    if not raw:
        raise DataError(f"{out / 'raw'}: no raw shards: run the fetch stage first")
    near = _near(out)
    sql = PLAN_SQL.format(
        language=LANGUAGE_SQL if language else NO_LANGUAGE_SQL,
        noise=NOISE_SQL if noise else NO_NOISE_SQL,
        near=ADOPTED_SQL if near else NO_ADOPTED_SQL,
        selected=WITH_REDACTED_SQL if redacted else SELECTED_SQL,
        shown=_Shown(),
    )
    values: dict[str, Any] = {"seed": str(settings.seed), "raw": raw}
    values["selection"] = str(out / "selection" / f"{selection_name}.parquet")
    if redacted:
        values["reasons"] = str(out / "selection" / f"{selection_name}.reasons.parquet")
    optional = (("language", language), ("noise", noise), ("near", near))
    values |= {name: files for name, files in optional if files}
    try:
        with (
            scratch_folder(out / "_plan" / "write-spill") as spill,
            duckdb.connect(
                config={"memory_limit": f"{memory_mb}MB", "temp_directory": str(spill)}
            ) as connection,
            reading(connection, out),
        ):
            rows = connection.sql(sql, params=values)  # not execute(): that would hold all rows in memory
            yield from _cut(rows.to_arrow_reader(settings.samples_per_shard), settings.samples_per_shard)
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"plan-write in {out}: DuckDB needs more than {memory_mb} MB: raise run.memory_mb"
        ) from error
    except duckdb.Error as error:
        kind = OutputError if "No space left" in str(error) else DataError
        raise kind(f"plan-write in {out}: {error}") from error


def _near(out: Path) -> list[str]:
    """The file of near-copies that is valid: the one by embedding, where there is one."""
    return _parquet_in(out / "scores/near-embedding") or _parquet_in(out / "scores/near")


def _parquet_in(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.parquet"))]


def _cut(batches: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """The rows of `batches` again, `rows` at a time."""
    rest = PLAN_SCHEMA.empty_table()
    for batch in batches:
        rest = pa.concat_tables([rest, pa.table(batch).cast(PLAN_SCHEMA)])
        while rest.num_rows >= rows:
            yield rest.slice(0, rows)
            rest = rest.slice(rows)
    if rest.num_rows:
        yield rest


def _forget(out: Path, *, keep: set[str]) -> None:
    """Remove plans, shards and tallies that an earlier plan had and this one has not."""
    for path in (out / PLAN).glob("*.parquet"):
        if path.stem not in keep:
            path.unlink()
    for path in (out / "shards").glob("*.tar"):
        if path.stem not in keep:
            tally_path(out, "write", path.stem).unlink(missing_ok=True)
            for name in (f"{path.stem}_stats.json", f"{path.stem}.parquet", path.name):
                path.with_name(name).unlink(missing_ok=True)
