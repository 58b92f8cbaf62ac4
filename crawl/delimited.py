"""CSV and TSV as records: RFC 4180, with every line accounted for where a list does not keep to it.

A record may take several lines inside quotes. Where a quote cannot be what it seems (it is never closed, text
follows the closing one, or half of the lines that it would swallow are rows of their own), the record's first
line alone is damaged, and reading goes on with the next line. A damaged line is read all the same where some
other habit of writers gives it the right number of fields: backslashes before quotes, a space after the
delimiter, empty fields at its end, carriage returns between rows, and in TSV quotes that mean nothing.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from .encoding import MAX_CHARS

Record = list[str] | None  # None: could not be taken apart
DELIMITERS = ",;\t|"
_OPEN = "unexpected end of data"  # csv's words for a quote that is not closed
_RUN = 64  # lines that are read at once where each is a record
_AHEAD = 50  # lines behind a damaged one that are looked at
_WHOLE_URL = re.compile(r"\s*(?:https?:)?//[^\s/\"][^\s\"]*\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\s\"]+")
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Delimited:
    """Takes lines apart. width: fields of a row; url_at: which of them is the URL; None: not known yet."""

    delimiter: str = ","
    width: int | None = None
    url_at: int | None = None

    def records(self, blocks: Iterator[list[str] | None]) -> Iterator[tuple[list[Record], int]]:
        """Records, many at a time, with the number of characters that they were read from."""
        csv.field_size_limit(MAX_CHARS)
        waiting: list[str] = []  # begin with a quote that is still open
        for block in blocks:
            lines = waiting + (block or [])
            records, waiting = self._parse(lines, last=block is None)
            if block is None:
                records.append(None)
            yield records, sum(map(len, lines)) - sum(map(len, waiting))
        yield self._parse(waiting, last=True)[0], sum(map(len, waiting))

    def _parse(self, lines: list[str], *, last: bool) -> tuple[list[Record], list[str]]:
        """The records in `lines`, and the lines that need more to be understood."""
        found: list[Record] = []
        at, is_plain = 0, True  # as far as the run before tells
        while at < len(lines):
            rows = self._single_lines(lines[at : at + _RUN]) if is_plain else None
            if rows is not None:
                found += rows
                at += _RUN
                continue
            begin, n_found = at, len(found)
            at, is_done = self._one_by_one(lines, at, found, last=last)
            if not is_done:
                return found, lines[at:]
            is_plain = at - begin == len(found) - n_found
        return found, []

    def _single_lines(self, lines: list[str]) -> list[Record] | None:
        """The records of lines that each hold one, or None where they do not."""
        try:
            rows = list(csv.reader(lines, delimiter=self.delimiter, strict=True))
        except csv.Error:
            return None
        if len(rows) != len(lines):
            return None
        if self.width != 1 and set(map(len, rows)) == {self.width}:
            return rows  # pyright: ignore[reportReturnType]
        return [record for row, line in zip(rows, lines, strict=True) for record in self._checked(row, line)]

    def _one_by_one(self, lines: list[str], at: int, found: list[Record], *, last: bool) -> tuple[int, bool]:
        """Put the records of some lines from `at` on into `found`.

        Returns the line to go on with, and whether that can be done without more lines.
        """
        stop = min(at + _RUN, len(lines))
        while at < stop:
            try:
                for row, end in self._rows(lines, at):
                    if end - at == 1:
                        found += [row] if len(row) == self.width != 1 else self._checked(row, lines[at])
                    else:
                        found.append(self._believed(row, lines[at + 1 : end]))
                    at = end
                    if at >= stop:
                        break
            except csv.Error as error:
                is_open = str(error) == _OPEN and sum(map(len, lines[at:])) < MAX_CHARS
                if not last and (is_open or (at and at + _AHEAD > len(lines))):
                    return at, False
                rows, at = self._mended(lines, at)
                found += rows
        return at, True

    def _rows(
        self, lines: Sequence[str], at: int, *, spaced: bool = False
    ) -> Iterator[tuple[list[str], int]]:
        """Strictly read rows from line `at` on, each with the number of the line behind it."""
        rest = map(lines.__getitem__, range(at, len(lines)))
        reader = csv.reader(rest, delimiter=self.delimiter, strict=True, skipinitialspace=spaced)
        for row in reader:
            yield row, at + reader.line_num

    def _believed(self, row: list[str], swallowed: Sequence[str]) -> list[str]:
        """A row of several lines. Raises csv.Error where its width is wrong or it holds other rows."""
        if len(row) != (self.width or len(row)) or self._are_rows(swallowed, row):
            raise csv.Error("a quote that was never closed")
        return row

    def _are_rows(self, lines: Sequence[str], row: Sequence[str]) -> bool:
        """Whether half of the lines are rows like the one that would swallow them."""
        if self.url_at is None or self.width is None:
            return False
        at, looks = self.url_at, _WHOLE_URL if _WHOLE_URL.match(row[self.url_at]) else _WORD
        cut = [line.rstrip("\r\n").split(self.delimiter) for line in lines]
        n_rows = sum(len(fields) == self.width and looks.fullmatch(fields[at]) is not None for fields in cut)
        return 2 * n_rows >= len(lines) and (looks is _WHOLE_URL or self.width > 1)

    def _checked(self, row: list[str], line: str) -> list[Record]:
        """A row of one line, if it is one: nothing for a blank line."""
        if not line.strip(" \t\r\n\0"):
            return []
        if self.width in (None, len(row)):
            return [row]
        return self._mended([line], 0)[0]

    def _mended(self, lines: Sequence[str], at: int) -> tuple[list[Record], int]:
        """What other habits of writing make of the record at line `at`, and the line to go on with."""
        line = lines[at]
        if not line.strip(" \t\r\n\0"):
            return [], at + 1
        ahead = lines[at : at + _AHEAD]
        if any('\\"' in each for each in ahead):
            plain = [_ESCAPED.sub(lambda found: found[1].replace('"', '""'), each) for each in ahead]
            if record := self._first(plain):
                return [record[0]], at + record[1]
        if f'{self.delimiter} "' in line and (record := self._first(ahead, spaced=True)):
            return [record[0]], at + record[1]
        if pieces := self._pieces(line):
            return pieces, at + 1
        return [self._padded(line) or self._literal(line)], at + 1

    def _first(self, lines: Sequence[str], *, spaced: bool = False) -> tuple[list[str], int] | None:
        """The first record of `lines` with the number of its lines, if it is a whole one."""
        try:
            row, end = next(self._rows(lines, 0, spaced=spaced))
            if len(row) != (self.width or len(row)):
                return None
            return (row if end == 1 else self._believed(row, lines[1:end])), end
        except (csv.Error, StopIteration):
            return None

    def _pieces(self, line: str) -> list[Record] | None:
        """The rows of a line that holds carriage returns: between rows, or as text within one."""
        line = line.rstrip("\r\n")
        if "\r" not in line:
            return None
        rows = [self._first([piece]) for piece in line.split("\r") if piece.strip()]
        if self.width is not None and all(rows):
            return [row[0] for row in rows if row]
        row = self._first([line.replace("\r", " ")])
        return [row[0]] if row else None

    def _padded(self, line: str) -> Record:
        """A row with empty fields behind its last one, without them."""
        try:
            row = next(csv.reader([line], delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return None
        if self.width is None or len(row) <= self.width or any(row[self.width :]):
            return None
        return row[: self.width]

    def _literal(self, line: str) -> Record:
        """In TSV a quote may be just a quote; and where there is one column, a comma just a comma."""
        line = line.rstrip("\r\n")
        if self.width == 1 and '"' not in line:
            return [line]
        if self.delimiter != "\t":
            return None
        fields = [_unquoted(field) for field in line.split("\t")]
        return fields if self.width in (None, len(fields)) else None


def _unquoted(field: str) -> str:
    """A TSV field without the quotes that some writers add; a stray quote stays, and eats no line."""
    if field[:1] == '"' == field[-1:] and len(field) > 1 and '"' not in field[1:-1].replace('""', ""):
        return field[1:-1].replace('""', '"')
    return field


def find_delimiter(lines: list[str], usual: str) -> str:
    """The delimiter that cuts most of `lines` into as many fields, more than one; the usual one in doubt."""

    def evenness(delimiter: str) -> float:
        rows, _ = Delimited(delimiter)._parse(lines, last=True)
        widths = Counter(len(row) for row in rows if row)
        width, n_rows = max(widths.items(), key=lambda item: item[1], default=(0, 0))
        return n_rows / len(rows) if width > 1 and rows[0] and len(rows[0]) == width else 0.0

    return max((usual, *DELIMITERS), key=evenness)


def take(records: Iterator[tuple[list[Record], int]], n_rows: int) -> list[Record]:
    """The first `n_rows` records."""
    return list(islice((record for rows, _ in records for record in rows), n_rows))
