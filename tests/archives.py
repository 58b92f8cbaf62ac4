"""Web archives made on the spot: WARC, WAT and ARC records."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

DATE = "2026-01-02T03:04:05Z"
PAGE = "https://a.org/dir/page.html"


def warc_record(
    body: bytes, *, kind: str, content_type: str, url: str = PAGE, length: int | None = None
) -> bytes:
    """One record; `length` is what its header says of its body's."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: {DATE}\r\n"
        f"WARC-Record-ID: <urn:uuid:1>\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def page_record(
    html: bytes, *, url: str = PAGE, content_type: str = "text/html", status: int = 200, headers: str = ""
) -> bytes:
    """A response with a page."""
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {content_type}\r\n{headers}\r\n".encode()
    kind = "application/http; msgtype=response"
    return warc_record(head + html, kind="response", content_type=kind, url=url)


def wat_json(
    links: Sequence[Mapping[str, Any]], *, url: str = PAGE, head: Any = None, headers: Any = None
) -> bytes:
    """The JSON of a WAT record of a page."""
    said = {
        "Container": {"Filename": "x.warc.gz"},
        "Envelope": {
            "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Date": DATE, "WARC-Target-URI": url},
            "Payload-Metadata": {
                "HTTP-Response-Metadata": {
                    "Headers": {"Content-Type": "text/html", **(headers or {})},
                    "HTML-Metadata": {"Head": head or {}, "Links": links},
                }
            },
        },
    }
    return json.dumps(said, separators=(",", ":")).encode()


def wat_record(body: bytes, *, url: str = PAGE, length: int | None = None) -> bytes:
    """A WAT record of some JSON."""
    return warc_record(body, kind="metadata", content_type="application/json", url=url, length=length)


def image(url: str, **said: str) -> dict[str, str]:
    """A link as a WAT has it of an `img`."""
    return {"path": "IMG@/src", "url": url, **said}


def gzipped(records: Sequence[bytes]) -> bytes:
    """A gzip member for each record."""
    return b"".join(gzip.compress(record, mtime=0) for record in records)
