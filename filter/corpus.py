"""Finished corpora that a list is held against: what lies in their shards is not fetched once more.

A corpus is the folder of an earlier run, local or in a store. A picture is known by its URL: that of the
pair, and, where a near-copy's caption was taken over, that of the picture shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..errors import ConfigError
from ..shards.layout import MANIFEST, SIDECAR
from ..shards.store import Store, open_store
from ..shards.store_path import open_path
from ..shards.tables import tables
from .sql import database

IN_CORPUS = "in_corpus"  # the reason of a pair whose picture a corpus has
URLS = ("url", "picture_url")  # of SIDECAR
# the corpus streams past the rows at hand, whatever its size
KNOWN = "SELECT DISTINCT url FROM corpus SEMI JOIN (SELECT DISTINCT url FROM part) USING (url)"


def check_corpora(against: Sequence[str], out: Path) -> None:
    """Raises ConfigError for a folder that is no finished dataset, or is the one that is being made."""
    for place in against:
        store = open_store(place)
        if open_path(place).resolve() == out.resolve():
            raise ConfigError(f"ingest.against: {place} is the output folder itself: name another run's")
        if not store.exists(MANIFEST):
            raise ConfigError(
                f"ingest.against: {store.place(MANIFEST)} is missing: expected the folder of a finished run"
            )


def corpora_digest(against: Sequence[str]) -> str:
    """Changes with any byte of the datasets, whose hashes are in their manifests; empty without any."""
    return "".join(xxhash.xxh3_64_hexdigest(open_store(place).read(MANIFEST)) for place in against)


def in_corpora(
    urls: pa.ChunkedArray, against: Sequence[str], out: Path, name: str, memory_mb: int
) -> pa.ChunkedArray:
    """(N,) bool: whether the picture at each URL lies in one of the corpora.

    name: of the folder to spill to.
    """
    schema = pa.schema([("url", pa.string())])
    with database(out, name, memory_mb=memory_mb) as connection:
        connection.register("part", pa.table([urls], schema=schema))
        corpus = (batch for place in against for batch in _urls(open_store(place), schema))
        connection.register("corpus", pa.RecordBatchReader.from_batches(schema, corpus))
        known = connection.sql(KNOWN).to_arrow_table()["url"]
    return pc.is_in(urls, value_set=known.combine_chunks().cast(pa.string()))


def _urls(store: Store, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for _, table in tables(store, SIDECAR.files(store), URLS):
        for name in table.column_names:
            yield from pa.table([table[name]], schema=schema).to_batches()
