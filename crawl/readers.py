"""Reading a list of any kind as a stream of batches: Parquet here, text in text.py.

A reader gets an open file and never holds more than a batch. What it cannot take apart costs a row
(`row_unreadable`) or, where the file itself ends or breaks in the middle, the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import EmptyListError, Layout, find_columns
from .given import json_objects
from .kinds import kind_of
from .looks import look
from .rows import BATCH_CHARS, BATCH_ROWS, rows_batch
from .text import describe_text, read_text

CODE_BYTES = 16  # of a row in a column that is read as a dictionary
_TEXT = (pt.is_string, pt.is_large_string, pt.is_binary, pt.is_large_binary)
PICTURE_BYTES = 1_000  # a row, from which on a column of bytes holds pictures


def describe(file: BinaryIO, path: str, settings: Ingest) -> Layout:
    """The layout of a list, from its header or first rows.

    Raises EmptyListError, or ConfigError for a list that cannot be read at all.
    """
    kind, codec = kind_of(file, path, settings)
    if kind == "parquet":
        return _describe_parquet(file, path, settings)
    return describe_text(file, path, kind, codec, settings)


def read_list(file: BinaryIO, path: str, settings: Ingest) -> Iterator[pa.RecordBatch]:
    """The rows of a list in order, as ROWS batches. Raises what `describe` raises, and pyarrow's and
    the system's errors where the file breaks in the middle."""
    layout = describe(file, path, settings)
    file.seek(0)
    kind, codec = kind_of(file, path, settings)
    is_parquet = kind == "parquet"
    batches = _read_parquet(file, layout) if is_parquet else read_text(file, path, codec, layout, settings)
    for batch in batches:
        yield batch.replace_schema_metadata(layout.metadata())


def _open_parquet(file: BinaryIO, path: str, as_codes: Sequence[str] = ()) -> pq.ParquetFile:
    """as_codes: columns to be read as dictionaries."""
    try:
        return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False, read_dictionary=list(as_codes))
    except (pa.ArrowException, OSError) as error:
        file.seek(0)
        if (said := look(file.read(64))) is not None and not said.startswith("a Parquet"):
            raise ConfigError(f"{path}: is {said}") from error
        raise ConfigError(f"{path}: not a whole Parquet file ({error}): fetch it again") from error


def _describe_parquet(file: BinaryIO, path: str, settings: Ingest) -> Layout:
    parquet = _open_parquet(file, path)
    schema = parquet.schema_arrow
    if parquet.metadata.num_rows == 0:
        raise EmptyListError(f"{path}: the list holds no rows")
    columns = find_columns(schema.names, settings, path)
    for name in (columns.url, columns.caption):
        if name is not None and pt.is_nested(schema.field(name).type):
            found = schema.field(name).type
            raise ConfigError(f"{path}: column {name!r} holds {found}, expected text; name another column")
    if settings.carry is None and (pictures := _pictures(parquet)):
        columns = replace(columns, others=tuple(name for name in columns.others if name not in pictures))
    return Layout(tuple(schema.names), columns)


def _pictures(parquet: pq.ParquetFile) -> set[str]:
    """Columns with pictures in them, as img2dataset and datasets write them: not carried unless named."""
    meta = parquet.metadata
    sizes: Counter[str] = Counter()
    groups = [meta.row_group(i) for i in range(min(meta.num_row_groups, 10))]
    for group in groups:
        for i in range(group.num_columns):
            column = group.column(i)
            sizes[column.path_in_schema.partition(".")[0]] += column.total_uncompressed_size
    large = PICTURE_BYTES * sum(group.num_rows for group in groups)
    return {
        field.name for field in parquet.schema_arrow if sizes[field.name] > large and _has_bytes(field.type)
    }


def _has_bytes(kind: pa.DataType) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return pt.is_binary(kind) or pt.is_large_binary(kind) or any(map(_has_bytes, inner))


def _read_parquet(file: BinaryIO, layout: Layout) -> Iterator[pa.RecordBatch]:
    parquet = _open_parquet(file, "")
    parquet = _open_parquet(file, "", _coded(parquet))
    columns = layout.columns
    names = [name for name in (columns.url, columns.caption, *columns.others) if name is not None]
    meta = parquet.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    rows = min(max(64, int(BATCH_CHARS * meta.num_rows / max(size, 1))), BATCH_ROWS)
    for batch in _bounded(parquet.iter_batches(rows, columns=names, use_threads=False)):
        texts = {"url": _as_bytes(batch.column(columns.url))}
        if columns.caption is not None:
            texts["caption"] = _as_bytes(batch.column(columns.caption)).fill_null(b"")
        given = json_objects({name: batch.column(name) for name in columns.others}, len(batch))
        yield rows_batch(len(batch), **texts, given=given)


def _coded(parquet: pq.ParquetFile) -> list[str]:
    """Columns of text that repeat few values, which may be long: decoded at once they would fill memory."""
    meta, schema = parquet.metadata, parquet.schema_arrow
    flat = {meta.schema.column(i).path: i for i in range(meta.num_columns)}
    found = []
    for column in schema:
        if column.name in flat and any(is_kind(column.type) for is_kind in _TEXT):
            chunks = [meta.row_group(g).column(flat[column.name]) for g in range(meta.num_row_groups)]
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            if size < CODE_BYTES * meta.num_rows and any(chunk.has_dictionary_page for chunk in chunks):
                found.append(column.name)
    return found


def _bounded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most BATCH_CHARS bytes once they are decoded, or of one row."""
    for batch in batches:
        ends = np.cumsum(
            sum((_row_bytes(column) for column in batch.columns), np.zeros(len(batch), np.int64))
        )
        at = 0
        while at < len(batch):
            begin = int(ends[at - 1]) if at else 0
            end = max(at + 1, int(np.searchsorted(ends, begin + BATCH_CHARS, "right")))
            yield batch.slice(at, end - at)
            at = end


def _row_bytes(column: pa.Array) -> Any:
    """(N,) bytes of each value, or their mean where it has no length of its own."""
    if pt.is_dictionary(column.type):
        return (
            _row_bytes(column.dictionary)[pc.fill_null(column.indices, 0).to_numpy()]
            if len(column.dictionary)
            else 0
        )
    if any(is_kind(column.type) for is_kind in _TEXT):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return column.nbytes // max(len(column), 1)


def _as_bytes(column: pa.Array) -> pa.Array:
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pt.is_binary(column.type) or pt.is_string(column.type):
        return column.cast(pa.binary())
    if not pt.is_large_binary(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.binary())
