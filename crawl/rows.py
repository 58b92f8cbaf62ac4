"""What every reader yields: rows as the list gives them, in batches, nothing judged yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

ROWS = pa.schema(
    [
        ("url", pa.binary()),  # as given, perhaps not UTF-8; NULL where missing
        ("caption", pa.binary()),  # NULL where the list has none to give; empty where this row lacks its own
        ("given", pa.string()),  # JSON object of the further columns, or NULL
        ("unreadable", pa.string()),  # the reason of a row that could not be taken apart, or NULL
        ("tar_path", pa.string()),  # where the picture already lies, or NULL
        ("tar_offset", pa.int64()),
        ("tar_size", pa.int64()),
    ]
)
UNREADABLE = "row_unreadable"
BATCH_ROWS = 32_768
BATCH_CHARS = 16 * 2**20  # a batch of huge rows ends sooner


def rows_batch(n_rows: int, **columns: pa.Array) -> pa.RecordBatch:
    """(n_rows,) rows; columns that are not given are NULL."""
    arrays = [
        columns[field.name].cast(field.type) if field.name in columns else pa.nulls(n_rows, field.type)
        for field in ROWS
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)


def chosen_columns(batch: pa.RecordBatch) -> dict[str, Any]:
    """Which columns of its list a batch was made of, as `Layout.choice` has it; else nothing."""
    said = (batch.schema.metadata or {}).get(b"columns")
    return json.loads(said) if said else {}


def as_binary(values: Sequence[str | None]) -> pa.Array:
    """(N,) bytes; text with stray surrogates becomes bytes that are not UTF-8, to be refused as such."""
    try:
        return pa.array(values, pa.string()).cast(pa.binary())
    except UnicodeEncodeError:
        raw = [None if value is None else value.encode("utf-8", "surrogatepass") for value in values]
        return pa.array(raw, pa.binary())
