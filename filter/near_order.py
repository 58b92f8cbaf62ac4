"""Which picture of a group stays: `near.keep`, an SQL ORDER BY over the columns of `raw/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, DataError
from ..recipe import Near
from ..shards.files import readable
from ..shards.schema import RAW
from ..shards.selection import unwanted_file
from .colours import UNKNOWN, WIDTH
from .sql import database, quoted, value_error

CHROMA_UNKNOWN = r"\x00" * (WIDTH - 1) + rf"\x{UNKNOWN:02X}"  # as a BLOB in SQL
# one attempt of each pair, the last, where it brought a picture; then one row of each picture
FETCHED = """
CREATE TABLE fetched AS
SELECT * FROM {rows}
QUALIFY row_number() OVER (PARTITION BY uid ORDER BY wave DESC) = 1 AND outcome = 'ok'
"""
FIRST_OF_URL = "(SELECT DISTINCT ON (url_hash) * FROM fetched ORDER BY url_hash, uid)"
PICTURES = f"""
CREATE TABLE pictures AS
SELECT row_number() OVER (ORDER BY {{keep}}, url_hash) - 1 AS place,
  url_hash, sha256, pdq_v1, pdq_quality_v1, {{chroma}} AS chroma_v1
FROM {FIRST_OF_URL}
"""


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


@contextmanager
def evaluated(settings: Near) -> Iterator[None]:
    """Around a query that holds `near.keep`. Raises DataError where it fails on a value."""
    try:
        yield
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise DataError(f"near.keep ({settings.keep}) cannot be evaluated: {value_error(error)}") from error


def ordered(connection: duckdb.DuckDBPyConnection, sql: str, settings: Near, **values: str) -> pa.Table:
    """The rows of a query that holds `{keep}`."""
    with evaluated(settings):
        return connection.sql(sql.format(keep=settings.keep, **values)).to_arrow_table()


def columns_of_keep(settings: Near) -> list[str]:
    """The columns of `raw/` that `near.keep` may name; all of them where it does not name them one by one."""
    words = {word.lower() for word in re.findall(r"\w+", settings.keep)}
    return [name for name in RAW.names if name in words or "columns" in words]


def chroma_sql(paths: Iterable[Path], settings: Near) -> str:
    """SQL of a picture's colours, which are unknown where they were not asked for.

    Raises DataError where a raw table has none.
    """
    unknown = f"'{CHROMA_UNKNOWN}'::BLOB"
    if not settings.colour:
        return unknown
    for path in paths:
        if "chroma_v1" not in pq.read_schema(readable(path)).names:
            raise DataError(
                f"{path}: no column chroma_v1, for an earlier pairmill fetched it: fetch into a new folder,"
                " or compare without colours (near.colour: false)"
            )
    return f"coalesce(chroma_v1, {unknown})"


def but_unwanted(out: Path) -> str:
    """SQL that leaves out what was fetched for a pair that is dropped by now; empty where there is none."""
    path = unwanted_file(out)
    return f"WHERE uid NOT IN (SELECT uid FROM read_parquet({quoted(str(path))}))" if path.exists() else ""
