"""Readers of CSV, TSV, JSON lines and plain text, plain or compressed, as streams of batches.

CSV follows RFC 4180, quoted line breaks included. In TSV and plain text a line is a row, whatever its quotes.
Blank lines are no rows. Only UTF-8 is read; a row with other bytes is refused later, by its own reason.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import Columns, EmptyListError, Layout, find_columns, is_url
from .given import json_objects, readable, to_json
from .rows import BATCH_CHARS, BATCH_ROWS, UNREADABLE, as_binary, rows_batch

MAX_CHARS = 2 * 2**20  # of one line, and of one CSV field: what is longer is no caption
SAMPLE_ROWS = 100
STEP_ROWS = 16  # between two looks at how much was read
Record = Sequence[str | None] | None  # None: could not be taken apart


class LineTooLongError(ValueError):
    """A line past MAX_CHARS."""


def describe_text(file: BinaryIO, path: str, kind: str, codec: str | None, settings: Ingest) -> Layout:
    """The layout of a list of text, from its first rows. Raises EmptyListError or ConfigError."""
    try:
        with open_text(file, codec, path) as text:
            sample = list(islice(_rows(Lines(text), kind), SAMPLE_ROWS))
    except (OSError, EOFError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as {kind} ({error}): fetch the file again") from error
    if not sample:
        raise EmptyListError(f"{path}: the list holds no rows")
    if kind == "jsonl":
        return _describe_objects(sample, path, settings)
    if sample[0] is None:
        raise ConfigError(f"{path}: the first line is no {kind} row (over {MAX_CHARS} characters)")
    if kind == "txt":
        return _describe_lines([row for row in sample if row], path)
    return _describe_table(sample[0], len(sample), path, settings)


def read_text(
    file: BinaryIO, path: str, kind: str, codec: str | None, layout: Layout
) -> Iterator[pa.RecordBatch]:
    """The rows of a list as ROWS batches. Raises OSError or ArrowException where the file breaks off."""
    with open_text(file, codec, path) as text:
        lines = Lines(text)
        rows = islice(_rows(lines, kind), int(layout.has_header), None)
        while chunk := _chunk(rows, lines):
            yield _objects_batch(chunk, layout) if kind == "jsonl" else _table_batch(chunk, layout)


@contextmanager
def open_text(file: BinaryIO, codec: str | None, path: str) -> Iterator[io.TextIOWrapper]:
    """The file as decompressed text; bytes that are not UTF-8 come as lone surrogates."""
    file.seek(0)
    if codec is None and file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{path}: UTF-16 text, expected UTF-8: convert it (iconv -f UTF-16 -t UTF-8)")
    file.seek(0)
    stream: Any = _Lent(file)
    if codec is not None:
        stream = pa.input_stream(stream, compression=codec)
    buffered = io.BufferedReader(stream, 2**20)
    # only \n ends a line: csv finds \r by itself, and elsewhere it is text
    with io.TextIOWrapper(buffered, "utf-8-sig", "surrogateescape", newline="\n") as text:
        yield text


class _Lent(io.RawIOBase):
    """A file that stays open when its readers close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file: Any = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)


class Lines:
    """Lines of at most MAX_CHARS characters; raises LineTooLongError for another and goes on after it."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._read = text.readline
        self.chars = 0  # read so far

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._read(MAX_CHARS)
        if not line:
            raise StopIteration
        if len(line) == MAX_CHARS and line[-1] != "\n":
            while len(line) == MAX_CHARS and line[-1] != "\n":
                line = self._read(MAX_CHARS)
            raise LineTooLongError
        self.chars += len(line)
        return line


def _rows(lines: Lines, kind: str) -> Iterator[Any]:
    """Every row as fields (csv, tsv, txt) or object (jsonl); None for one that cannot be taken apart."""
    rows: Iterator[Any]  # never a generator: those end at their first error
    if kind == "csv":
        csv.field_size_limit(MAX_CHARS)
        rows = csv.reader(lines)
    else:
        split = {"tsv": _tsv_fields, "txt": _txt_fields, "jsonl": _object}[kind]
        rows = map(split, filter(str.strip, lines))
    rows = filter(_is_row, rows)
    while True:
        try:
            yield from rows
            return
        except (csv.Error, LineTooLongError):
            yield None


def _is_row(row: Any) -> bool:
    return row not in ([], [""])


def _txt_fields(line: str) -> list[str | None]:
    url, tab, caption = line.rstrip("\r\n").partition("\t")
    return [url, caption if tab else None]


def _tsv_fields(line: str) -> list[str]:
    fields = line.rstrip("\r\n").split("\t")
    return [_unquoted(field) for field in fields] if '"' in line else fields


def _unquoted(field: str) -> str:
    """A TSV field without the quotes that some writers add; a stray quote stays, and eats no line."""
    if field[:1] == '"' == field[-1:] and len(field) > 1 and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object in a line, or None. NaN and lone surrogates, which orjson refuses, are read too."""
    try:
        found = orjson.loads(line)
    except ValueError:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return found if isinstance(found, dict) else None


def _describe_objects(sample: list[dict[str, Any] | None], path: str, settings: Ingest) -> Layout:
    names = tuple(dict.fromkeys(name for row in sample if row for name in row))
    if not names:
        raise ConfigError(
            f"{path}: not JSON lines, expected one object on each line (jq -c '.[]' makes them)"
        )
    columns = find_columns(names, settings.model_copy(update={"carry": None}), path)
    return Layout(names, columns, carry=settings.carry)


def _describe_lines(sample: list[list[str]], path: str) -> Layout:
    if not any(is_url(row[0]) for row in sample):
        raise ConfigError(
            f"{path}: no URL in the first {len(sample)} lines, expected URL or URL<tab>caption on each;"
            f" the first is {sample[0][0][:80]!r}"
        )
    return Layout(("url", "caption"), Columns("url", "caption", ()))


def _describe_table(first: list[str], n_rows: int, path: str, settings: Ingest) -> Layout:
    if any(is_url(cell) for cell in first):
        names = tuple(f"column_{i}" for i in range(len(first)))
        return Layout(names, _headless_columns(first, names, settings, path))
    names = tuple(readable(as_binary(first)).to_pylist())
    columns = find_columns(names, settings, path)
    if n_rows == 1:
        raise EmptyListError(f"{path}: the list holds a header and no rows")
    return Layout(names, columns, has_header=True)


def _headless_columns(first: list[str], names: tuple[str, ...], settings: Ingest, path: str) -> Columns:
    """Without a header the URL is where the first row has one, the caption the other of two columns."""
    url = settings.url_column or next(name for name, cell in zip(names, first, strict=True) if is_url(cell))
    known = {"url_column": url}
    rest = [name for name in names if name != url]
    if len(rest) == 1 and settings.caption_column is None:
        known["caption_column"] = rest[0]
    return find_columns(names, settings.model_copy(update=known), f"{path} (no header)")


def _chunk(rows: Iterator[Any], lines: Lines) -> list[Any]:
    """The next rows of a list, fewer where they are huge; empty at its end."""
    chunk: list[Any] = []
    end = lines.chars + BATCH_CHARS
    while len(chunk) < BATCH_ROWS and lines.chars < end:
        more = list(islice(rows, STEP_ROWS))
        if not more:
            break
        chunk += more
    return chunk


def _table_batch(chunk: list[Record], layout: Layout) -> pa.RecordBatch:
    names, columns = layout.names, layout.columns
    bad: Sequence[str | None] = [None] * len(names)
    whole = [row if row is not None and len(row) == len(names) else bad for row in chunk]
    fields = {name: as_binary(values) for name, values in zip(names, zip(*whole, strict=True), strict=True)}
    texts = {"url": fields[columns.url]}
    if columns.caption is not None:
        texts["caption"] = fields[columns.caption]
    given = json_objects({name: readable(fields[name]) for name in columns.others}, len(chunk))
    unreadable = pa.array([UNREADABLE if row is bad else None for row in whole], pa.string())
    return rows_batch(len(chunk), **texts, given=given, unreadable=unreadable)


def _objects_batch(chunk: list[dict[str, Any] | None], layout: Layout) -> pa.RecordBatch:
    url, caption, given, unreadable = zip(*(_object_row(row, layout) for row in chunk), strict=True)
    return rows_batch(
        len(chunk),
        url=as_binary(url),
        caption=as_binary(caption),
        given=pa.array(given, pa.string()),
        unreadable=pa.array(unreadable, pa.string()),
    )


def _object_row(
    row: dict[str, Any] | None, layout: Layout
) -> tuple[str | None, str | None, str | None, str | None]:
    """URL, caption, given and the reason of one object; its URL and caption are taken out of it."""
    columns = layout.columns
    try:
        if row is None:
            raise TypeError("not an object")
        url = _cell(row.pop(columns.url, None))
        caption = None if columns.caption is None else _cell(row.pop(columns.caption, None)) or ""
        if layout.carry is not None:
            row = {name: row[name] for name in layout.carry if name in row}
        return url, caption, to_json(row) if row else None, None
    except TypeError:  # a list where text should be, an integer past 64 bits, text that is not Unicode
        return None, None, None, UNREADABLE


def _cell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        raise TypeError("not text")
    return str(value)
