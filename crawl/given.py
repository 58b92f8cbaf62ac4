"""A list's further columns as one JSON object per row: lists with other columns need no common schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

_TEXT = (pt.is_string, pt.is_large_string, pt.is_string_view)
_AS_TEXT = (pt.is_decimal, pt.is_date, pt.is_time, pt.is_timestamp)
_BARE = (pt.is_boolean, pt.is_integer)


def json_objects(columns: Mapping[str, pa.Array], n_rows: int) -> pa.Array:
    """(n_rows,) JSON objects with the columns' names as keys, sorted; NULLs where there is no column.

    NaN and infinities become null; dates, times and decimals become strings, bytes hexadecimal strings;
    lists and structs stay what they are.
    """
    if not columns:
        return pa.nulls(n_rows, pa.string())
    pieces: list[Any] = []
    for i, name in enumerate(sorted(columns)):
        pieces.append(f"{',' if i else '{'}{json.dumps(name, ensure_ascii=False)}:")
        pieces.append(_json_values(columns[name]))
    return pc.binary_join_element_wise(*pieces, "}", "")


def _json_values(column: pa.Array) -> pa.Array:
    kind = column.type
    if pt.is_dictionary(kind):
        return _json_values(column.dictionary_decode())
    if any(is_kind(kind) for is_kind in _TEXT):
        return _json_strings(readable(column.cast(pa.string())))
    if any(is_kind(kind) for is_kind in _BARE):
        return pc.fill_null(column.cast(pa.string()), "null")
    if pt.is_floating(kind):
        column = column.cast(pa.float32()) if pt.is_float16(kind) else column
        finite = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        return pc.fill_null(finite.cast(pa.string()), "null")
    if any(is_kind(kind) for is_kind in _AS_TEXT):
        try:
            return _json_strings(column.cast(pa.string()))
        except pa.ArrowException:  # an unknown time zone
            pass
    return pa.array([to_json(value) for value in column.to_pylist()], pa.string())


def _json_strings(column: pa.Array) -> pa.Array:
    must_escape = pc.fill_null(pc.match_substring_regex(column, r'[\x00-\x1f"\\]'), False)
    quoted = pc.binary_join_element_wise('"', column, '"', "")
    escaped = [to_json(value) for value in column.filter(must_escape).to_pylist()]
    if escaped:
        quoted = pc.replace_with_mask(quoted, must_escape, pa.array(escaped, pa.string()))
    return pc.fill_null(quoted, "null")


def to_json(value: Any) -> str:
    """Compact JSON with sorted keys; what JSON does not know becomes a string.

    Raises TypeError for text that is not Unicode and for integers past 64 bits.
    """
    options = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
    return orjson.dumps(value, default=_plain, option=options).decode()


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def readable(column: pa.Array) -> pa.Array:
    """The same strings, with U+FFFD for bytes that are not UTF-8."""
    raw = column.view(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist()]
        return pa.array(texts, pa.string())
