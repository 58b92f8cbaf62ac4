"""The records of a web archive, WARC or ARC, one after the other: what is broken costs itself.

After a record that cannot be read the next one is looked for: a gzip member that unpacks to a header, or a
line that begins one. What such a gap held is counted once. A file that ends within a record loses that one.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecordType

from ..errors import DataError
from .arc import ARC_HEAD, as_warc, read_arc
from .encoding import open_bytes
from .page import MAX_PAGE

MAX_RECORD = 64 * 2**20  # bytes of one record; a page of 100,000 pictures makes 20 MB of WAT
MAX_GAPS = 10_000  # places in a row that look like a record's beginning and are none
GZIP = b"\x1f\x8b\x08"
HEAD = b"WARC/"
_BLOCK = 2**20
_OK = range(200, 300)


class Record(NamedTuple):
    """A record whose bytes are at hand: the JSON of a WAT, or a page."""

    raw: Any  # as fastwarc has it: what few records need is asked for late
    body: bytes
    header: Callable[[str], str | None] | None = None  # of a page: an HTTP header by name; None: JSON

    @property
    def url(self) -> str:
        return _url(self.raw)

    @property
    def is_cut_short(self) -> bool:
        """Whether it is a page too long to be read on: the next record may have to be looked for."""
        return self.header is not None and len(self.body) > MAX_PAGE

    @property
    def date(self) -> str | None:
        """When it was crawled, ISO 8601."""
        return self.raw.headers.get("WARC-Date")


@dataclass(frozen=True, slots=True)
class Gap:
    """What stood where a record was expected: the reason that it counts under, and where."""

    reason: str
    where: str


@dataclass(frozen=True, slots=True)
class _Form:
    packed: bool  # in gzip members, by which a record is found again
    quirks: bool  # lines that end in a bare newline


Skipped = Callable[[str], None]


def read_archive(file: BinaryIO, codec: str | None, skipped: Skipped) -> Iterator[Record | Gap]:
    """The pages and WAT records of an archive in order.

    skipped: gets a word for each other record: its WARC type, `not_ok` (a redirect, an error), `no_page`.
    Raises DataError for a file that is no web archive or next to nothing but gaps, and the system's errors.
    """
    head = _first_bytes(file, codec)
    if head.startswith(ARC_HEAD):
        for record in read_arc(open_bytes(file, codec)):
            yield from [Gap(*record)] if len(record) == 2 else _read_one(as_warc(*record), skipped)
        return
    if head and not head.startswith(HEAD):
        raise DataError(f"begins with {head[:20]!r}: no web archive")
    file.seek(0)
    form = _Form(packed=file.read(len(GZIP)) == GZIP, quirks=b"\r\n" not in head)
    yield from _read_warc(file, form, skipped)


def _first_bytes(file: BinaryIO, codec: str | None) -> bytes:
    file.seek(0)
    raw = file.read(4_096)
    if not raw.startswith(GZIP):
        return open_bytes(file, codec).read(64) if codec in ("zstd", "lz4") else raw[:64]
    try:
        return zlib.decompressobj(31).decompress(raw, 64)
    except zlib.error as error:
        raise DataError(f"the first gzip member is broken ({error}): no web archive") from error


def _read_one(raw: BinaryIO, skipped: Skipped) -> Iterator[Record | Gap]:
    for record in ArchiveIterator(raw, parse_http=False):
        found = _record(record, skipped)
        yield from () if found is None else (found,)


def _read_warc(file: BinaryIO, form: _Form, skipped: Skipped) -> Iterator[Record | Gap]:
    begin: int | None = 0
    in_gap, n_gaps = False, 0
    while begin is not None:
        run = _Run(file, begin, form, skipped)
        for found in run:
            in_gap = isinstance(found, Gap) or found.is_cut_short
            yield found
        n_gaps = 0 if run.n_records else n_gaps + 1
        if run.resume is None:
            return
        if not in_gap:
            yield Gap("record_broken", f"near byte {run.resume:,}")
            in_gap = True
        if n_gaps > MAX_GAPS:
            raise DataError(f"{n_gaps:,} places up to byte {begin:,} look like records and are none")
        begin = next_record(file, run.resume, form.packed)


class _Run:
    """The records from one place on as far as they follow each other.

    Afterwards `resume` is where to look for the next, or None at the end of the file.
    """

    def __init__(self, file: BinaryIO, begin: int, form: _Form, skipped: Skipped) -> None:
        self._file, self._begin, self._form, self._skipped = file, begin, form, skipped
        self._ended = False
        self.resume: int | None = begin + 1
        self.n_records = 0

    def __iter__(self) -> Iterator[Record | Gap]:
        self._file.seek(self._begin)
        records = ArchiveIterator(self._file, parse_http=False, quirks_mode=self._form.quirks)
        is_gap, at = False, self._begin
        while (record := self._next(records)) is not None:
            self.n_records += 1
            at = record.stream_pos
            length = record.content_length
            if length > MAX_RECORD:  # passed over in the file rather than read to its end
                self.resume = at + 1
                yield Gap("record_too_long", f"byte {at:,}")
                return
            found = _record(record, self._skipped)
            if found is not None:
                yield found
            is_gap = isinstance(found, Gap)
            if isinstance(found, Gap) and found.reason == "record_cut":
                self.resume = at + 1
                return
            self.resume = at + (1 if self._form.packed or is_gap else max(length, 1))
        if self._ended:
            self.resume = None
            if self._form.packed and not is_gap and not _ends_whole(self._file, at):
                yield Gap("record_cut", f"byte {at:,}")

    def _next(self, records: Iterator[Any]) -> Any:
        """The next record; None at the end of the file, or where none can be read."""
        try:
            return next(records)
        except StopIteration:
            self._ended = True
        except OSError as error:
            if error.errno is not None:  # the disk's or the network's, not the archive's
                raise
        return None


def _url(record: Any) -> str:
    return (record.headers.get("WARC-Target-URI") or "").strip("<> ")


def _record(record: Any, skipped: Skipped) -> Record | Gap | None:
    """What a record holds, where it is a page or a WAT record; None, and a word to `skipped`, for others."""
    kind = record.record_type
    said = record.headers.get("Content-Type") or ""
    if kind == WarcRecordType.metadata and said.startswith("application/json"):
        body = record.reader.read()
        if len(body) < record.content_length:
            return Gap("record_cut", _url(record))
        return Record(record, body) if body else Gap("record_empty", _url(record))
    if kind == WarcRecordType.response and said.lower().startswith("application/http"):
        return _response(record, skipped)
    if kind == WarcRecordType.resource and "html" in said.lower():
        body = record.reader.read(MAX_PAGE + 1)
        return Record(record, body, {"content-type": said}.get) if body else Gap("record_empty", _url(record))
    skipped(str(kind))
    return None


def _response(record: Any, skipped: Skipped) -> Record | Gap | None:
    try:
        record.parse_http(auto_decode="all", quirks_mode=True)
        status = record.http_headers.status_code
        if status is not None and status not in _OK:
            skipped("not_ok")
            return None
        kind = (record.http_content_type or "").lower()
        if kind and "html" not in kind:
            skipped("no_page")
            return None
        body = record.reader.read(MAX_PAGE + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return Gap("record_unreadable", _url(record))
    coded = any(record.http_headers.get(name) for name in ("Content-Encoding", "Transfer-Encoding"))
    if not coded and len(body) < min(record.content_length, MAX_PAGE):
        return Gap("record_cut", _url(record))
    if not body:
        return Gap("record_empty", _url(record))
    if not kind and not body[:512].lstrip().startswith(b"<"):
        skipped("no_page")
        return None
    return Record(record, body, record.http_headers.get)


def next_record(file: BinaryIO, at: int, packed: bool) -> int | None:
    """Where the next record seems to begin, `at` or later; None where none does."""
    mark = GZIP if packed else HEAD + b"1."
    overlap = len(mark) - 1
    file.seek(at)
    block, start = b"", at
    while more := file.read(_BLOCK):
        block += more
        found = block.find(mark)
        while found >= 0:
            if _begins_record(file, start + found, packed):
                return start + found
            found = block.find(mark, found + 1)
        kept = min(overlap, len(block))
        start += len(block) - kept
        block = block[len(block) - kept :]
        file.seek(start + kept)
    return None


def _begins_record(file: BinaryIO, at: int, packed: bool) -> bool:
    if not packed:
        file.seek(max(at - 1, 0))
        return at == 0 or file.read(1) == b"\n"
    file.seek(at)
    try:
        return zlib.decompressobj(31).decompress(file.read(512), len(HEAD)) == HEAD
    except zlib.error:
        return False


def _ends_whole(file: BinaryIO, at: int) -> bool:
    """Whether the last gzip member of a file, looked for from `at` on, is whole."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(at)
    rest = b""
    while rest or file.tell() < size:
        unpack, n_out = zlib.decompressobj(31), 0
        while not unpack.eof:
            rest = rest or file.read(_BLOCK)
            if not rest:
                return False
            try:
                n_out += len(unpack.decompress(rest, _BLOCK))
            except zlib.error:
                return True  # padding behind the last member
            rest = unpack.unconsumed_tail
            if n_out > MAX_RECORD:
                return True
        rest = unpack.unused_data
    return True
