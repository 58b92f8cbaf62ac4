"""JSON in the shapes that lists have, as rows that are objects.

One object on each line is the usual shape and the fast one. Also read: an array of objects, on one line or
many (streamed); and, held in memory up to MAX_DOCUMENT characters: an object of columns, each an array or
numbered by keys (pandas' default), pandas' other orients (split, index, table, values), objects over several
lines one after another, and any of these below a key such as `data` or `rows`. A line may hold columns, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import CAPTION_NAMES, URL_NAMES, is_url, usual_name
from .encoding import MAX_CHARS, TextForm, line_blocks
from .header import has_header, made_names

MAX_DOCUMENT = 2**28  # characters of a JSON document that cannot be streamed
Object = dict[str, Any] | None  # None: could not be taken apart
_BETWEEN = re.compile(r"[\s,\0]*")
_NEXT = re.compile(r"[}\]]\s*,?\s*(?=[{])")  # where reading goes on behind a broken element
_NESTS = ("data", "rows", "records", "items", "images", "results")


def json_object(line: str) -> Object:
    """The JSON object in a line, or None. NaN and lone surrogates, which orjson refuses, are read too."""
    try:
        found = orjson.loads(line)
    except ValueError:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def find_shape(lines: Sequence[str]) -> str:
    """jsonl, array or document: by the first lines of a list, none of them blank."""
    begins = lines[0].lstrip()[:1]
    n_objects = sum(json_object(line) is not None for line in lines)
    is_object = json_object(lines[0]) is not None
    if len(lines) > 1 and (is_object or 2 * n_objects > len(lines)):
        return "jsonl"
    if begins == "[" and "".join(lines).lstrip()[1:].lstrip()[:1] == "{":
        return "array"
    return "document" if begins in ("{", "[") else "jsonl"


def json_rows(pieces: Iterator[str], form: TextForm, settings: Ingest) -> Iterator[tuple[list[Object], int]]:
    """The rows of a JSON list, many at a time, with the number of characters that they were read from.

    Raises ConfigError for a document that is too long or no table, ValueError where an array breaks off.
    """
    if form.kind == "jsonl":
        for lines in line_blocks(pieces):
            found: list[Object] = [None] if lines is None else [*map(json_object, filter(_is_line, lines))]
            yield _spread_all(found, form, settings), sum(map(len, lines or ()))
    elif form.kind == "array":
        for value, size in _values(pieces, closes="]"):
            yield _spread_all([value if isinstance(value, dict) else None], form, settings), size
    else:
        rows = _document(pieces, settings)
        for at in range(0, len(rows), 1_000):
            yield [row if isinstance(row, dict) else None for row in rows[at : at + 1_000]], 0


def _is_line(line: str) -> bool:
    return line.strip(" \t\r\n\0") != ""


def _spread_all(rows: list[Object], form: TextForm, settings: Ingest) -> list[Object]:
    if not form.holds_columns:
        return rows
    return [part for row in rows for part in ([None] if row is None else _spread(row, settings))]


def url_key(row: Mapping[str, Any], settings: Ingest) -> str | None:
    """The key of an object that holds its URL, or its URLs."""
    return settings.url_column if settings.url_column in row else usual_name(list(row), URL_NAMES)


def holds_columns(row: Mapping[str, Any], settings: Ingest) -> bool:
    """Whether an object holds many rows: an array, or an object of numbered values, where a URL should be."""
    name = url_key(row, settings)
    return name is not None and isinstance(row[name], list | dict)


def _spread(row: dict[str, Any], settings: Ingest) -> list[Object]:
    """The rows of an object of columns; None alone where URLs and captions differ in number."""
    name = url_key(row, settings)
    if name is None or not isinstance(row[name], list | dict):
        return [row]
    rest = [key for key in row if key != name]
    caption = settings.caption_column or usual_name(rest, CAPTION_NAMES)
    places: Any = range(len(row[name])) if isinstance(row[name], list) else list(row[name])
    if caption in row and isinstance(row[caption], list | dict) and len(row[caption]) != len(places):
        return [None]
    kind = type(row[name])
    columns = {
        key: value for key, value in row.items() if isinstance(value, kind) and len(value) == len(places)
    }
    shared = {key: value for key, value in row.items() if key not in columns}
    try:
        return [{**shared, **{key: value[i] for key, value in columns.items()}} for i in places]
    except KeyError:  # columns that are numbered differently
        return [None]


def _document(pieces: Iterator[str], settings: Ingest) -> list[Any]:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_DOCUMENT:
            raise ConfigError(
                f"one JSON document of over {MAX_DOCUMENT:,} characters, not an array of objects: make JSON"
                " lines of it, one object on each (jq -c '.data[]' FILE)"
            )
        parts.append(piece)
    text = "".join(parts)
    try:
        found = [orjson.loads(text)]
    except ValueError:
        found = [value for value, _ in _values(iter([text]))]
    is_whole = found and None not in found
    rows = json_table(found[0] if len(found) == 1 else found, settings) if is_whole else None
    if rows is None:
        raise ConfigError(
            "JSON that is no table: expected one object on each line, an array of objects, or an object of"
            f" columns; it begins with {text[:60]!r} (jq -c '.[]' makes JSON lines of an array)"
        )
    return rows


def json_table(found: Any, settings: Ingest, depth: int = 3) -> list[Any] | None:
    """The rows in a JSON value, or None where it is no table."""
    if isinstance(found, list):
        return _rows_of_array(found, settings)
    if not isinstance(found, dict):
        return None
    columns, data = found.get("columns"), found.get("data")
    if "schema" in found and isinstance(data, list):  # pandas' table orient, with its row numbers
        return [_without_index(row) for row in data]
    if isinstance(columns, list) and isinstance(data, list) and data and isinstance(data[0], list):
        names = [str(name) for name in columns]
        return [_named(row, names) for row in data]
    if url_key(found, settings) is not None:
        return _spread(found, settings)
    values = list(found.values())
    inner = [value for value in values if isinstance(value, dict) and url_key(value, settings) is not None]
    if inner and 2 * len(inner) > len(values):  # pandas' index orient: rows by their names
        return values
    keys = sorted(found, key=lambda key: (key not in _NESTS, _NESTS.index(key) if key in _NESTS else 0))
    nested = [found[key] for key in keys if isinstance(found[key], list | dict)] if depth else []
    tables = [rows for value in nested if (rows := json_table(value, settings, depth - 1))]
    good = [rows for rows in tables if isinstance(rows[0], dict) and url_key(rows[0], settings) is not None]
    return next(iter(good or tables), None)


def _without_index(row: Any) -> Object:
    return {key: value for key, value in row.items() if key != "index"} if isinstance(row, dict) else None


def _rows_of_array(found: list[Any], settings: Ingest) -> list[Any] | None:
    first = next((row for row in found if row is not None), None)
    if isinstance(first, dict):
        if url_key(first, settings) is None and isinstance(first.get("row"), dict):  # datasets-server
            return [row.get("row") if isinstance(row, dict) else None for row in found]
        if holds_columns(first, settings):
            return [
                part
                for row in found
                for part in (_spread(row, settings) if isinstance(row, dict) else [None])
            ]
        return found
    if isinstance(first, str) and is_url(first):
        return [{"column_1": row} for row in found]
    if not isinstance(first, list) or not first:
        return None if found else []
    cells = [
        ["" if cell is None else str(cell) for cell in row] for row in found[:100] if isinstance(row, list)
    ]
    names, begin = (list(cells[0]), 1) if has_header(cells, settings) else (list(made_names(len(first))), 0)
    return [_named(row, names) for row in found[begin:]]


def _named(row: Any, names: Sequence[str]) -> Object:
    return dict(zip(names, row, strict=True)) if isinstance(row, list) and len(row) == len(names) else None


def _values(pieces: Iterator[str], closes: str = "") -> Iterator[tuple[Any, int]]:
    """JSON values one after another with their sizes; None for what is broken, up to the next object.

    closes: the bracket that ends an array; its opening one comes first. Raises ValueError where it lacks.
    """
    decoder = json.JSONDecoder()
    text, at = "", 0
    is_open = closes == ""
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            text, at = next(pieces, None), 0  # type: ignore[assignment]
            if text is None:
                break
        elif not is_open:
            is_open, at = True, at + 1
        elif text[at] == closes:
            return
        else:
            value, end, text, at = _value(decoder, pieces, text, at)
            yield value, end - at
            at = end
    if closes:
        raise ValueError(f"a JSON array without its closing {closes}")


def _value(decoder: json.JSONDecoder, pieces: Iterator[str], text: str, at: int) -> tuple[Any, int, str, int]:
    """The value at `at`, its end, and text and place, which change where more had to be read."""
    while True:
        try:
            value, end = decoder.raw_decode(text, at)
            return value, end, text, at
        except (ValueError, RecursionError):
            more = next(pieces, None) if len(text) - at < MAX_CHARS else None
            if more is None:
                break
            text, at = text[at:] + more, 0
    found = _NEXT.search(text, at + 1)
    return None, found.end() if found else len(text), text, at
