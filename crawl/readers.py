"""Reading a list of any kind as a stream of batches: Parquet here, text in text.py.

A reader gets an open file and never holds more than a batch. What it cannot take apart costs a row
(`row_unreadable`) or, where the file itself ends or breaks in the middle, the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import EmptyListError, Layout, find_columns
from .given import json_objects
from .looks import look
from .rows import BATCH_CHARS, BATCH_ROWS, rows_batch
from .text import describe_text, read_text

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "txt",
}  # fmt: skip


def suffixes(path: str) -> tuple[str, str | None]:
    """The kind suffix and the codec of a path: `a/b.csv.gz` is ('.csv', 'gzip')."""
    name = path.rpartition("/")[2].lower()
    stem, dot, last = name.rpartition(".")
    codec = CODECS.get(dot + last)
    if codec is not None:
        _, dot, last = stem.rpartition(".")
    return dot + last if dot else "", codec


def describe(file: BinaryIO, path: str, settings: Ingest) -> Layout:
    """The layout of a list, from its header or first rows.

    Raises EmptyListError, or ConfigError for a list that cannot be read at all.
    """
    kind, codec = KINDS[suffixes(path)[0]], suffixes(path)[1]
    if kind == "parquet":
        return _describe_parquet(file, path, settings)
    return describe_text(file, path, kind, codec, settings)


def read_list(file: BinaryIO, path: str, settings: Ingest) -> Iterator[pa.RecordBatch]:
    """The rows of a list in order, as ROWS batches. Raises what `describe` raises, and pyarrow's and
    the system's errors where the file breaks in the middle."""
    layout = describe(file, path, settings)
    file.seek(0)
    suffix, codec = suffixes(path)
    if KINDS[suffix] == "parquet":
        yield from _read_parquet(file, layout)
        return
    yield from read_text(file, path, codec, layout, settings)


def _open_parquet(file: BinaryIO, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
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
    return Layout(tuple(schema.names), columns)


def _read_parquet(file: BinaryIO, layout: Layout) -> Iterator[pa.RecordBatch]:
    parquet = _open_parquet(file, "")
    columns = layout.columns
    names = [name for name in (columns.url, columns.caption, *columns.others) if name is not None]
    meta = parquet.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    rows = min(max(64, int(BATCH_CHARS * meta.num_rows / max(size, 1))), BATCH_ROWS)
    for batch in parquet.iter_batches(rows, columns=names, use_threads=False):
        texts = {"url": _as_bytes(batch.column(columns.url))}
        if columns.caption is not None:
            texts["caption"] = _as_bytes(batch.column(columns.caption)).fill_null(b"")
        given = json_objects({name: batch.column(name) for name in columns.others}, len(batch))
        yield rows_batch(len(batch), **texts, given=given)


def _as_bytes(column: pa.Array) -> pa.Array:
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pt.is_binary(column.type) or pt.is_string(column.type):
        return column.cast(pa.binary())
    if not pt.is_large_binary(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.binary())
