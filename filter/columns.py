"""The columns that rules see: which a stage has, and how the files of one part lie side by side.

The rule: a row of `scores/<kind>/<part>.parquet` belongs to the same row of `pairs/<part>.parquet`;
that is checked by uid, never assumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DataError, ShardError, may_pass
from ..shards.files import readable
from ..shards.schema import (
    COPIES,
    ENTRIES,
    FREQUENCY,
    LANGUAGE,
    LEAKS,
    MISMATCH,
    NEAR,
    NOISE,
    PAIRS,
    RAW,
    SCREEN,
)
from .text import TEXT

BESIDE = {"scores/copies": COPIES, "scores/language": LANGUAGE, "scores/frequency": FREQUENCY}
BESIDE |= {"scores/entries": ENTRIES}
# what an adopted pair takes over from the picture that it is written with
OF_PICTURE = ("format", "original_bytes", "original_width", "original_height", "sha256", "width", "height")
OF_PICTURE += ("pdq_v1", "pdq_quality_v1", "chroma_v1", "offset", "size", "stored_xxh3", "host_copies_v1")
SOME = 100  # rows that tell what columns a list carries
SCREENED = {"selection/screen": SCREEN}
NO_RULE = ("url_hash", "url", "caption", "key", "tar")  # known from pairs/, or how raw/ is arranged
OF_RAW = pa.schema([field for field in RAW if field.name not in NO_RULE])
FETCHED = (OF_RAW, NEAR, LEAKS)


def stage_columns(stage: str) -> pa.Schema:
    """Every column that a rule of `stage` ('screen', 'choose' or 'decide') can name."""
    fields: dict[str, pa.Field] = {}
    later = {"screen": (), "choose": FETCHED, "decide": (*FETCHED, NOISE, MISMATCH)}[stage]
    for schema in (PAIRS, *BESIDE.values(), TEXT, *later):
        fields.update({field.name: field for field in schema})
    return pa.schema(list(fields.values()))


def written_by() -> dict[str, str]:
    """Every stored column that a rule can name, and the stage that writes it."""
    stages = {"ingest": PAIRS, "dedup": COPIES, "language": LANGUAGE, "frequency": FREQUENCY}
    stages |= {"entries": ENTRIES, "fetch": OF_RAW, "near": NEAR, "decontaminate": LEAKS}
    stages |= {"noise": NOISE, "train": MISMATCH}
    found: dict[str, str] = {}
    for stage, schema in stages.items():
        found |= {name: stage for name in schema.names if name not in found}
    return found


def check_given(out: Path, columns: Collection[str], origin: str) -> None:
    """Raises DataError for a column that none of the lists carries; looks no further than it must."""
    waiting, there = {*columns}, set[str]()
    for part in part_names(out) if waiting else ():
        given = _read(out / "pairs" / f"{part}.parquet", {"given"}).column("given")
        for name in tuple(waiting):
            if pc.any(pc.match_substring(given, json.dumps(name, ensure_ascii=False))).as_py():
                waiting.discard(name)
        if not waiting:
            return
        there.update(*(json.loads(row) for row in given.drop_null().slice(0, SOME).to_pylist()))
    if waiting:
        said = ", ".join(sorted(there)) or "none"
        raise DataError(
            f"{origin}: column {min(waiting)!r} is in none of the lists, and pairmill cannot compute it:"
            f" stage ingest carries columns of lists (ingest.carry); there are: {said}"
        )


def part_names(out: Path) -> list[str]:
    """Names of the parts of pairs/, in the order that makes a row the first of its uid."""
    return sorted(path.stem for path in (out / "pairs").glob("*.parquet"))


def read_part(out: Path, part: str, columns: Collection[str], *, screened: bool = False) -> pa.Table:
    """The wanted columns of one part, rows in order; `uid` is always among them.

    screened: with the screen's `reason`.
    Raises ShardError where a score file is missing or holds other rows than the part.
    """
    table = _read(out / "pairs" / f"{part}.parquet", {"uid", *columns})
    for folder, schema in {**BESIDE, **(SCREENED if screened else {})}.items():
        wanted = [name for name in schema.names if name != "uid" and (name in columns or name == "reason")]
        if not wanted:
            continue
        path = out / folder / f"{part}.parquet"
        if not path.exists():
            stage = written_by().get(wanted[0], "screen")
            raise ShardError(
                path, None, f"missing: column {wanted[0]} is asked for: run stage {stage}, which writes it"
            )
        beside = _read(path, {"uid", *wanted})
        if not beside.column("uid").equals(table.column("uid")):
            raise ShardError(
                path, None, f"its rows are not those of pairs/{part}.parquet: remove it, run again"
            )
        for name in wanted:
            table = table.append_column(schema.field(name), beside.column(name))
    return table


def _read(path: Path, columns: set[str]) -> pa.Table:
    try:
        with pq.ParquetFile(readable(path)) as file:
            return file.read(columns=[name for name in file.schema_arrow.names if name in columns])
    except FileNotFoundError as error:
        raise ShardError(path, None, "missing: run the stage that writes it first") from error
    except (pa.ArrowInvalid, OSError) as error:
        if may_pass(error):
            raise
        raise ShardError(path, None, f"not readable as Parquet: {error}") from error


def first_rows(out: Path, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    """The first row of every uid, part by part, with the wanted columns and the screen's `reason`."""
    for part in part_names(out):
        table = read_part(out, part, {*columns, "pair_rank_v1"}, screened=True)
        yield from table.filter(pc.equal(table.column("pair_rank_v1"), 0)).combine_chunks().to_batches()
