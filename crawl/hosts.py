"""Which shard a host's URLs go to: one, where the host is small; several, where it is a giant.

Hosts of one domain stand side by side, so that most redirects stay within a shard. Giants are put together in
groups, whose URLs are mixed: a task that may ask each of them but slowly then still has enough to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import duckdb
import pyarrow as pa

from .generations import PLAN

GIANT = 4  # a host with more than a fourth of a shard's URLs is one
GIANTS_PER_GROUP = 16
ROWS_PER_BATCH = 50_000
HOST = r"regexp_extract(url, '^[a-z]+://(\[[^\]]*\]|[^/:?#]*)', 1)"

# bins by host: small hosts, up to a shard's worth together, in an order that is nobody's; groups of giants
BINS = f"""
CREATE OR REPLACE TEMP TABLE bins AS
WITH apart AS (SELECT DISTINCT {HOST} AS host, url_hash FROM asked),
    urls AS (SELECT host, count(*) AS n FROM apart GROUP BY host),
    ranked AS (
        SELECT host, n, n > $urls // {GIANT} AND sum(n) OVER () > $urls AS giant,
            md5(regexp_extract(host, '([^.]*\\.)?[^.]*$')) AS domain
        FROM urls
    ), placed AS (
        SELECT host, giant, CASE WHEN giant
            THEN (row_number() OVER (PARTITION BY giant ORDER BY md5(host), host) - 1) // {GIANTS_PER_GROUP}
            ELSE (sum(n) OVER (PARTITION BY giant ORDER BY domain, host) - n) // $urls END AS place
        FROM ranked
    )
SELECT host, giant, CAST(place AS BIGINT) AS place FROM placed
"""
BINNED = f"""
SELECT asked.*, giant, place FROM asked JOIN bins ON bins.host = {HOST}
ORDER BY giant, place, url_hash, uid, tar_path, tar_offset
"""


@dataclass(frozen=True, slots=True)
class Bin:
    """A part of the rows: of small hosts, which make one shard, or of a group of giants."""

    is_giant: bool
    place: int


def bin_hosts(database: duckdb.DuckDBPyConnection, urls_per_shard: int) -> dict[int, list[str]]:
    """Put the hosts of `asked`, a view of the database, into bins. Returns the giants of each group."""
    database.execute(BINS, {"urls": urls_per_shard})
    found: dict[int, list[str]] = {}
    query = "SELECT place, host FROM bins WHERE giant ORDER BY place, host"
    for place, host in database.execute(query).fetchall():
        found.setdefault(place, []).append(host)
    return found


def binned(database: duckdb.DuckDBPyConnection) -> Iterator[tuple[Bin, Iterator[pa.RecordBatch]]]:
    """Each bin with its rows of `asked` as PLAN, by (url_hash, uid); to be taken in order, to the end."""
    batches = _split(database.sql(BINNED).to_arrow_reader(ROWS_PER_BATCH))
    for bin_, group in groupby(batches, key=itemgetter(0)):
        yield bin_, (batch for _, batch in group)


def _split(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Bin, pa.RecordBatch]]:
    """Batches of one bin each."""
    for batch in batches:
        table = pa.Table.from_batches([batch])
        names = table.select(["giant", "place"]).to_pydict()
        bins = [Bin(*pair) for pair in zip(names["giant"], names["place"], strict=True)]
        plan, start = table.select(PLAN.names).cast(PLAN).combine_chunks(), 0
        for at in range(1, len(bins) + 1):
            if at == len(bins) or bins[at] != bins[start]:
                yield bins[start], plan.slice(start, at - start).combine_chunks().to_batches()[0]
                start = at
