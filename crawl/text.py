"""Lists of text (CSV, TSV, JSON, plain lines; plain or compressed) as streams of batches.

CSV and TSV follow RFC 4180, quoted line breaks included (`delimited.py`); in plain text a line is a row.
Blank lines are no rows. A row that cannot be taken apart is refused by its own reason; those behind it live.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import URL_NAMES, Columns, EmptyListError, Layout, find_columns, is_url, usual_name
from .delimited import Delimited, find_delimiter, take
from .encoding import MAX_CHARS, TextForm, find_form, line_blocks, read_head, text_pieces
from .given import json_objects, readable, to_json
from .header import has_header, headless_columns, made_names
from .json_rows import Object, find_shape, holds_columns, json_rows
from .looks import refuse_other_kind
from .rows import BATCH_CHARS, BATCH_ROWS, UNREADABLE, as_binary, rows_batch

SAMPLE_ROWS = 100
SAMPLE_CHARS = 2 * MAX_CHARS
Record = Sequence[str | None] | None  # None: could not be taken apart
Blocks = Iterator[tuple[list[Any], int]]  # rows, and the characters that they were read from


def describe_text(file: BinaryIO, path: str, kind: str, codec: str | None, settings: Ingest) -> Layout:
    """The layout of a list of text, from its first rows. Raises EmptyListError or ConfigError."""
    try:
        head = read_head(file, codec)
        refuse_other_kind(head, path)
        form = find_form(head, kind, path, settings.encoding)
        lines = _first_lines(line_blocks(text_pieces(file, codec, form)))
        if not lines:
            raise EmptyListError(f"{path}: the list holds no rows")
        if kind == "jsonl":
            begins = lines[0] or next(text_pieces(file, codec, form))
            form = replace(form, kind=find_shape([begins, *lines[1:SAMPLE_ROWS]]))
            return _describe_json(file, path, codec, form, settings)
    except ConfigError:
        raise
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read as {kind} ({error}): fetch the file again") from error
    first = lines[0].rstrip("\r\n")
    marks = [mark for mark in "\t,;" if usual_name(first.split(mark), URL_NAMES) and mark in first]
    if kind == "txt" and not marks:
        return _describe_lines([line for line in lines if line], path, form)
    return _describe_table(lines, path, form, settings)


def read_text(
    file: BinaryIO, path: str, codec: str | None, layout: Layout, settings: Ingest
) -> Iterator[pa.RecordBatch]:
    """The rows of a list as ROWS batches. Raises OSError or ArrowException where the file breaks off."""
    is_json = layout.form.kind in ("jsonl", "array", "document")
    for chunk in _chunks(_blocks(file, codec, layout, settings)):
        yield _objects_batch(chunk, layout) if is_json else _table_batch(chunk, layout)


def _blocks(file: BinaryIO, codec: str | None, layout: Layout, settings: Ingest) -> Blocks:
    """The rows of a list as fields (csv, tsv, txt) or objects (JSON); None for one that is damaged."""
    form = layout.form
    pieces = text_pieces(file, codec, form)
    if form.kind == "txt":
        return _txt_rows(line_blocks(pieces))
    if form.kind not in ("csv", "tsv"):
        return json_rows(pieces, form, settings)
    url_at = layout.names.index(layout.columns.url)
    blocks = Delimited(form.delimiter, len(layout.names), url_at).records(line_blocks(pieces))
    return _without_first(blocks) if layout.has_header else blocks


def _without_first(blocks: Blocks) -> Blocks:
    for rows, size in blocks:
        if rows:
            yield rows[1:], size
            break
    yield from blocks


def _chunks(blocks: Blocks) -> Iterator[list[Any]]:
    """BATCH_ROWS rows at a time, fewer where they are huge."""
    chunk: list[Any] = []
    size = 0
    for rows, chars in blocks:
        chunk += rows
        size += chars
        while len(chunk) >= BATCH_ROWS or (size >= BATCH_CHARS and chunk):
            yield chunk[:BATCH_ROWS]
            chunk, size = chunk[BATCH_ROWS:], 0
    if chunk:
        yield chunk


def _first_lines(blocks: Iterator[list[str] | None]) -> list[str]:
    """The lines that a list is judged by; "" for one that is too long. Blank ones are left out."""
    lines: list[str] = []
    size = 0
    for block in blocks:
        lines += [""] if block is None else [line for line in block if line.strip(" \t\r\n\0")]
        size += MAX_CHARS if block is None else sum(map(len, block))
        if len(lines) > 4 * SAMPLE_ROWS or size > SAMPLE_CHARS:
            break
    return lines


def _describe_json(file: BinaryIO, path: str, codec: str | None, form: TextForm, settings: Ingest) -> Layout:
    sample = _json_sample(file, path, codec, form, settings)
    first = next((row for row in sample if row is not None), {})
    if form.kind != "document" and holds_columns(first, settings):
        form = replace(form, holds_columns=True)
        sample = _json_sample(file, path, codec, form, settings)
    if not sample:
        raise EmptyListError(f"{path}: the list holds no rows")
    names = tuple(dict.fromkeys(name for row in sample if row for name in row))
    if not names:
        raise ConfigError(f"{path}: not JSON: expected one object on each line, or an array of objects")
    every = settings.model_copy(update={"carry": None})
    if names == made_names(len(names)):  # arrays of values
        columns = headless_columns([[str(row[name]) for name in names] for row in sample if row], every, path)
    else:
        columns = find_columns(names, every, path)
    layout = Layout(names, columns, carry=settings.carry, form=form)
    bad = [_object_row(dict(row) if row else None, layout)[3] is not None for row in sample]
    expected = "JSON objects with text for URL and caption"
    _refuse_unreadable(sum(bad), len(bad), path, settings, expected)
    return layout


def _json_sample(
    file: BinaryIO, path: str, codec: str | None, form: TextForm, settings: Ingest
) -> list[Object]:
    try:
        return take(json_rows(text_pieces(file, codec, form), form, settings), SAMPLE_ROWS)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _describe_lines(lines: list[str], path: str, form: TextForm) -> Layout:
    lines = lines[:SAMPLE_ROWS]
    if not any(map(is_url, lines)):
        raise ConfigError(
            f"{path}: no URL in the first {len(lines)} lines, expected URL or URL<tab>caption on each;"
            f" the first is {lines[0].rstrip()[:80]!r}"
        )
    return Layout(("url", "caption"), Columns("url", "caption", ()), form=form)


def _describe_table(lines: list[str], path: str, form: TextForm, settings: Ingest) -> Layout:
    usual = "," if form.kind == "csv" else "\t"
    form = replace(form, kind="csv" if form.kind == "csv" else "tsv", delimiter=find_delimiter(lines, usual))
    rows = take(Delimited(form.delimiter).records(iter([lines])), SAMPLE_ROWS + 1)
    if not rows or not rows[0]:
        raise ConfigError(f"{path}: the first line is no {form.kind} row: {lines[0][:80]!r}")
    whole = [row for row in rows if row]
    if has_header(whole, settings):
        names = tuple(readable(as_binary(rows[0])).to_pylist())
        layout = Layout(names, find_columns(names, settings, path), has_header=True, form=form)
        if len(rows) == 1:
            raise EmptyListError(f"{path}: the list holds a header and no rows")
    else:
        widths = [len(row) for row in whole]
        width = max(widths, key=widths.count)
        alike = [row for row in whole if len(row) == width]
        layout = Layout(made_names(width), headless_columns(alike, settings, path), form=form)
    _refuse_damaged(lines, layout, path, settings)
    return layout


def _refuse_damaged(lines: list[str], layout: Layout, path: str, settings: Ingest) -> None:
    url_at = layout.names.index(layout.columns.url)
    blocks = Delimited(layout.form.delimiter, len(layout.names), url_at).records(iter([lines]))
    rows = take(blocks, SAMPLE_ROWS + 1)[int(layout.has_header) :]
    used = [
        layout.names.index(name) for name in (layout.columns.url, layout.columns.caption) if name is not None
    ]
    bad = [row is None or not _is_unicode("".join(row[i] for i in used)) for row in rows]
    is_text = all(_is_unicode("".join(row)) for row in rows if row)
    example = lines[-1].rstrip()[:80]
    expected = f"{len(layout.names)} columns parted by {layout.form.delimiter!r}" if is_text else "UTF-8"
    _refuse_unreadable(sum(bad), len(bad), path, settings, f"{expected}, such as {example!r}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_unreadable(n_bad: int, n_rows: int, path: str, settings: Ingest, expected: str) -> None:
    """Raises ConfigError for a list of whose first rows too many cannot be read."""
    if n_bad > settings.max_unreadable * n_rows:
        raise ConfigError(
            f"{path}: {n_bad} of the first {n_rows} rows are not {expected}: convert the list, name"
            " its encoding (--set ingest.encoding=NAME), or bear it (--set ingest.max_unreadable=1)"
        )


def _txt_rows(blocks: Iterator[list[str] | None]) -> Blocks:
    for lines in blocks:
        rows = [None] if lines is None else [_txt_fields(line) for line in lines if line.strip(" \t\r\n\0")]
        yield rows, sum(map(len, lines or ()))


def _txt_fields(line: str) -> list[str | None]:
    url, tab, caption = line.rstrip("\r\n").partition("\t")
    return [url, caption if tab else None]


def _table_batch(chunk: list[Record], layout: Layout) -> pa.RecordBatch:
    names, columns = layout.names, layout.columns
    bad: Sequence[str | None] = [None] * len(names)
    is_bad = [row is None for row in chunk]
    whole = [bad if row is None else row for row in chunk] if any(is_bad) else chunk
    values = list(zip(*whole, strict=True))  # type: ignore[arg-type]
    fields = {
        name: as_binary(values[names.index(name)])
        for name in (columns.url, columns.caption, *columns.others)
        if name is not None
    }
    texts = {"url": fields[columns.url]}
    if columns.caption is not None:
        texts["caption"] = fields[columns.caption]
    given = json_objects({name: readable(fields[name]) for name in columns.others}, len(chunk))
    unreadable = pc.if_else(pa.array(is_bad), UNREADABLE, pa.scalar(None, pa.string()))
    return rows_batch(len(chunk), **texts, given=given, unreadable=unreadable)


def _objects_batch(chunk: list[Object], layout: Layout) -> pa.RecordBatch:
    url, caption, given, unreadable = zip(*(_object_row(row, layout) for row in chunk), strict=True)
    return rows_batch(
        len(chunk),
        url=as_binary(url),
        caption=as_binary(caption),
        given=pa.array(given, pa.string()),
        unreadable=pa.array(unreadable, pa.string()),
    )


def _object_row(row: Object, layout: Layout) -> tuple[str | None, str | None, str | None, str | None]:
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
