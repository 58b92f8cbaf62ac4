"""Bodies without their codings. The bytes decide: where they show a picture, they are one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from multidict import MultiMapping

from .answer import Ended
from .decode import sniff

MAX_LAYERS = 3  # `gzip, gzip` is met; more is made to keep a client busy
GZIP = b"\x1f\x8b\x08"
ZLIB, RAW = 15, -15
_UNPACKED = {
    "br",
    "zstd",
    "compress",
    "x-compress",
    "dcb",
    "dcz",
}  # asked for by nobody, and not unpacked here
CHUNK = re.compile(rb"[ \t]*\+?(?:0[xX])?([0-9A-Fa-f]{1,64})[ \t]*(?:;[^\n]*)?\r*\n")


def shows_picture(body: bytes) -> bool:
    """Whether the first bytes are those of a picture of any kind."""
    return sniff(body[:512]) is not None


def codings(fields: Mapping[str, str] | MultiMapping[str]) -> set[str]:
    """The names in Transfer-Encoding and Content-Encoding, lower case."""
    said = [*_all(fields, "Transfer-Encoding"), *_all(fields, "Content-Encoding")]
    return set(re.findall(r"[a-z0-9-]+", ",".join(said).lower()))


def _all(fields: Mapping[str, str] | MultiMapping[str], name: str) -> list[str]:
    return fields.getall(name, []) if isinstance(fields, MultiMapping) else [fields.get(name, "")]


def unpack(body: bytes, fields: Mapping[str, str] | MultiMapping[str], most: int) -> bytes:
    """What lies in a body that was packed though nobody asked for it; a picture is left as it is.

    Raises Ended: too_big past `most` bytes, bad_response where it cannot be unpacked.
    """
    if shows_picture(body):
        return body
    said = codings(fields)
    for _ in range(MAX_LAYERS):
        inner = _without_a_layer(body, said, most)
        if inner is None:
            break
        body = inner
        if shows_picture(body):
            return body
    if said & _UNPACKED:
        raise Ended("bad_response", f"coded as {' '.join(sorted(said & _UNPACKED))}, and not asked for so")
    return body


def _without_a_layer(body: bytes, said: set[str], most: int) -> bytes | None:
    """The content of one coding that the bytes show, or None where they show none."""
    if body.startswith(GZIP):
        return _gunzip(body, most)
    if said & {"chunked", "aws-chunked"} and CHUNK.match(body):
        return _unchunk(body)
    if said & {"deflate", "gzip", "x-gzip", "zlib"}:
        for wbits in (ZLIB, RAW):
            try:
                return _inflate(body, wbits, most)[0]
            except zlib.error:
                continue
    return None


def _inflate(body: bytes, wbits: int, most: int) -> tuple[bytes, bytes]:
    """The plain bytes and what lies behind the packed ones."""
    unpacker = zlib.decompressobj(wbits)
    plain = unpacker.decompress(body, most + 1)
    if len(plain) > most:
        raise Ended("too_big", f"unpacked from {len(body)} bytes")
    return plain, unpacker.unused_data


def _gunzip(body: bytes, most: int) -> bytes:
    """All members of a gzip file; what lies behind them is no part of it."""
    plain = bytearray()
    while body.startswith(GZIP):
        try:
            part, body = _inflate(body, 31, most - len(plain))
        except zlib.error as error:
            raise Ended("bad_response", f"gzip: {error}") from error
        plain += part
    return bytes(plain)


def _unchunk(body: bytes) -> bytes:
    """The content of chunks that nobody has taken apart; ends at the first that is none."""
    plain, place = bytearray(), 0
    while (match := CHUNK.match(body, place)) is not None and (size := int(match[1], 16)):
        plain += body[match.end() : match.end() + size]
        place = match.end() + size
        place += len(re.match(rb"\r?\n?", body[place : place + 2])[0])  # type: ignore[index]
    return bytes(plain)
