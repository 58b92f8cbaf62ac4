"""Parquet and JSON in a store: read by columns, streamed file by file, the same bytes wherever written."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ShardError
from .store import Sink, Store

ROWS_PER_GROUP = 100_000
AHEAD = 3  # files of a stream that are opened before they are asked for


def write_table(store: Store, name: str, table: pa.Table, *, rows_per_group: int = ROWS_PER_GROUP) -> Sink:
    """Write a Parquet file whose bytes depend on the table's values alone. Returns its size and digest."""
    whole = table.combine_chunks()  # Arrow ends a page where a chunk ends
    with store.writer(name) as file:
        pq.write_table(whole, file, row_group_size=rows_per_group, compression="zstd")
    return file


def write_json(store: Store, name: str, value: Any) -> None:
    """Write a JSON file: one space a level, keys sorted, a line break at the end."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    store.put(name, (text + "\n").encode("utf-8"))


def read_json(store: Store, name: str) -> Any:
    """The value of a JSON file. Raises FileNotFoundError, and ShardError where it is not JSON."""
    try:
        return json.loads(store.read(name))
    except ValueError as error:
        raise ShardError(store.place(name), None, f"not JSON: {error}") from error


def open_parquet(store: Store, name: str) -> pq.ParquetFile:
    """A Parquet file to read columns and row groups of; close it, or use it in a `with`.

    Raises ShardError where it is missing or not whole.
    """
    try:
        return pq.ParquetFile(store.open(name), pre_buffer=True)
    except FileNotFoundError as error:
        raise ShardError(store.place(name), None, "missing: run the stage that writes it first") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ShardError(store.place(name), None, f"not readable as Parquet: {error}") from error


def read_table(
    store: Store, name: str, columns: Collection[str] | None = None, *, schema: pa.Schema | None = None
) -> pa.Table:
    """The wanted columns of a Parquet file (all when None; those that it has not are left out), in its order.

    schema: what the columns are cast to. Raises ShardError where the file is missing or not whole.
    """
    with open_parquet(store, name) as file:
        held = file.schema_arrow.names
        wanted = held if columns is None else [column for column in held if column in columns]
        try:
            table = file.read(columns=wanted, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            raise ShardError(store.place(name), None, f"not readable as Parquet: {error}") from error
    return table if schema is None else table.cast(schema)


def count_rows(store: Store, name: str) -> int:
    """How many rows a Parquet file has, by its footer."""
    with open_parquet(store, name) as file:
        return int(file.metadata.num_rows)


def tables(
    store: Store, names: Iterable[str], columns: Collection[str] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """(name, table) of one file after the other; the next ones are read meanwhile."""
    with ThreadPoolExecutor(AHEAD, "read") as threads:
        waiting: deque[tuple[str, Any]] = deque()
        for name in names:
            waiting.append((name, threads.submit(read_table, store, name, columns)))
            if len(waiting) > AHEAD:
                first, found = waiting.popleft()
                yield first, found.result()
        for first, found in waiting:
            yield first, found.result()


def stream(
    store: Store, names: Sequence[str], columns: Sequence[str], schema: pa.Schema
) -> pa.RecordBatchReader:
    """The rows of many files as one stream in `schema`, for DuckDB to register; some files in memory at once.

    columns: in the order of `schema`.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        for _, table in tables(store, names, columns):
            yield from table.select(list(columns)).cast(schema).to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())
