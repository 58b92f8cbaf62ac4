"""A WAT file of any size from a few real records, each time with picture URLs of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from fastwarc.warc import ArchiveIterator

MARK = "PAIRMILL-ROUND"  # stands where the round's number goes


def write_wat(sources: Sequence[Path], path: Path, unpacked_bytes: int) -> dict[str, int]:
    """Repeat the JSON records of `sources` until `path`, a gzip member each, has `unpacked_bytes` unpacked.

    Picture and page URLs get the number of the round, so that no round repeats a pair of another.
    Returns the number of records and of bytes, packed and unpacked.
    """
    templates = [template for source in sources for template in _templates(source)]
    n_records = unpacked = packed = 0
    with open(path, "wb") as file:
        while unpacked < unpacked_bytes:
            number = str(n_records // len(templates)).encode()
            for template in templates:
                record = _record(number.join(template[0]), number.join(template[1]))
                member = _gzip(record)
                packed += file.write(member)
                unpacked += len(record)
                n_records += 1
    return {"records": n_records, "packed": packed, "unpacked": unpacked}


def _templates(source: Path) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The URL and the JSON of each record, cut where the number of the round goes."""
    with open(source, "rb") as file:
        for record in ArchiveIterator(file, parse_http=False, quirks_mode=True):
            if record.headers.get("Content-Type") == "application/json":
                said = orjson.loads(record.reader.read())
                for link in _links(said):
                    if link.get("path", "").startswith("IMG@/") and link.get("url"):
                        link["url"] += f"{'&' if '?' in link['url'] else '?'}r={MARK}"
                header = said["Envelope"].get("WARC-Header-Metadata", {})
                url = f"{header.get('WARC-Target-URI', '')}?r={MARK}"
                header["WARC-Target-URI"] = url
                yield url.encode().split(MARK.encode()), orjson.dumps(said).split(MARK.encode())


def _links(said: dict[str, Any]) -> list[dict[str, str]]:
    answer = said["Envelope"].get("Payload-Metadata", {}).get("HTTP-Response-Metadata", {})
    return answer.get("HTML-Metadata", {}).get("Links", [])


def _record(url: bytes, body: bytes) -> bytes:
    return (
        b"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: %b\r\nWARC-Date: 2015-04-18T03:20:36Z\r\n"
        b"WARC-Record-ID: <urn:uuid:ae89a176-2a4d-495b-8f61-757a9b9664b0>\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n" % (url, len(body), body)
    )


def _gzip(record: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(record) + packer.flush()
