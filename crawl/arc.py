"""ARC, the form of archives before WARC (Common Crawl until 2012): its records as those of a WARC."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

ARC_HEAD = b"filedesc://"
MAX_LINE = 65_536
MAX_BODY = 64 * 2**20


def read_arc(file: BinaryIO) -> Iterator[tuple[str, str | None, bytes] | tuple[str, str]]:
    """(URL, date, HTTP answer) of each record; (reason, where) of what stands between and is none.

    file: unpacked. Raises OSError where it breaks off within a record.
    """
    n_record, in_gap = 0, False
    while line := file.readline(MAX_LINE):
        if not line.strip():
            continue
        head = _head(line)
        if head is None:
            if not in_gap:
                yield "record_broken", f"after record {n_record:,}"
            in_gap = True
            continue
        in_gap = False
        url, date, length = head
        body = file.read(min(length, MAX_BODY))
        if len(body) < min(length, MAX_BODY):
            yield "record_cut", url
            return
        n_record += 1
        if length > MAX_BODY:
            _skip(file, length - MAX_BODY)
            yield "record_too_long", url
        elif not url.startswith("filedesc:"):
            yield url, date, body


def _skip(file: BinaryIO, length: int) -> None:
    while length > 0 and (passed := len(file.read(min(length, 2**20)))):
        length -= passed


def _head(line: bytes) -> tuple[str, str | None, int] | None:
    """URL, date, length of a record's first line: URL (with spaces perhaps), address, date, type, length."""
    fields = line.decode("utf-8", "replace").rsplit(None, 4)
    if len(fields) < 5 or not fields[4].isdecimal() or "://" not in fields[0]:
        return None
    day = fields[2]
    good = day.isdecimal() and len(day) == 14
    date = f"{day[:4]}-{day[4:6]}-{day[6:8]}T{day[8:10]}:{day[10:12]}:{day[12:]}Z" if good else None
    return fields[0].strip(), date, int(fields[4])


def as_warc(url: str, date: str | None, body: bytes) -> BinaryIO:
    """A WARC file with one response, of an ARC record's parts."""
    url = "".join(url.split("\r")).replace("\n", "")
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        + (f"WARC-Date: {date}\r\n" if date else "")
        + f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return io.BytesIO(head.encode() + body + b"\r\n\r\n")
