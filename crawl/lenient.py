"""HTTP as servers speak it: a second reading of answers that the strict parser refuses.

One connection for one answer, to addresses that the guard has judged, and closed behind it: what a wrong
length would smuggle into the next answer finds none. Reads what urllib, curl or browsers read.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import yarl
from multidict import CIMultiDict

from .address import Guard
from .answer import Ended
from .body import CHUNK, shows_picture
from .optout import ROBOTS_FIELD

MAX_HEAD = 300 * 1024  # bytes of status lines and fields, as in curl
MAX_CHUNK_LINE = 16_384
READ = 65_536
# up to four bytes of junk may stand before, as in browsers; any version, or none; ICY is SHOUTcast's
_STATUS = re.compile(rb"[^\n]{0,4}?(?:HTTP\S*|ICY)[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_LINE_END = re.compile(rb"\r{0,2}\n")
_LENGTH = re.compile(r"[^\w-]*(\d{1,18})(?:\.0+)?[^\w]*(?:bytes?)?\W*", re.ASCII)
_ROBOTS_LINE = re.compile(rb"\s*(" + ROBOTS_FIELD.pattern.encode() + rb")[\s:=]", re.IGNORECASE)


class _Wire:
    """What a connection brings, held until it is taken."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader, self.held = reader, bytearray()

    async def more(self) -> bool:
        data = await self.reader.read(READ)
        self.held += data
        return bool(data)

    def take(self, size: int) -> bytes:
        taken = bytes(self.held[:size])
        del self.held[:size]
        return taken

    async def line(self, most: int) -> bytes:
        """The next line without its end. Raises Ended past `most` bytes, ConnectionError at the end."""
        start = 0
        while (end := self.held.find(b"\n", start)) < 0:
            if len(self.held) > most:
                raise Ended("bad_response", f"fields of more than {MAX_HEAD} bytes")
            start = len(self.held)
            if not await self.more():
                if not start:
                    raise ConnectionError("closed within the fields")
                return self.take(start)
        return self.take(end + 1).strip(b"\r\n")

    async def upto(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end of the connection."""
        while len(self.held) < size and await self.more():
            pass
        return self.take(size)


class LenientResponse:
    """An answer whose head has been read."""

    def __init__(self, wire: _Wire, status: int, headers: CIMultiDict[str]) -> None:
        self._wire, self.status, self.headers = wire, status, headers

    async def read(self, most: int, *, cut: bool = False) -> bytes:
        """The body: at most `most` bytes, else Ended too_big; where `cut`, the beginning of a plain one.

        Where the framing contradicts itself or is broken, the bytes decide: Ended bad_response where they
        show no picture. Raises ConnectionError for a body that ends early.
        """
        if cut and "Transfer-Encoding" not in self.headers:
            return await self._wire.upto(most + 1)
        if "chunked" in ",".join(self.headers.getall("Transfer-Encoding", ())).lower():
            body, is_sound = await self._chunks(most)
        else:
            least, length, is_sound = self._lengths(most)
            body = _capped(await self._wire.upto(length), most)
            if len(body) < least:
                raise ConnectionError(f"{len(body)} of {least} bytes")
        if not is_sound and not shows_picture(body):
            raise Ended("bad_response", "framing that makes no sense, around no picture")
        return body

    def _lengths(self, most: int) -> tuple[int, int, bool]:
        """The fewest and most bytes that Content-Length speaks of, and whether it speaks plainly."""
        parts = [part for field in self.headers.getall("Content-Length", ()) for part in field.split(",")]
        if not parts:
            return 0, most + 1, True
        found = [_LENGTH.fullmatch(part) for part in parts]
        sizes = {int(match[1]) for match in found if match is not None}
        if len(sizes) != 1 or None in found:
            return 0, most + 1, False  # to the end of the connection
        (size,) = sizes
        if size > most:
            raise Ended("too_big", f"Content-Length {size}")
        return size, size, True

    async def _chunks(self, most: int) -> tuple[bytes, bool]:
        """The content of the chunks, and whether they were sound; what are no chunks is taken as it is."""
        body = bytearray()
        while True:
            size = await self._chunk_size()
            if size is None:
                return (bytes(body) or await self._unchunked(most)), False
            if size == 0:
                return bytes(body), True  # trailers are nobody's concern
            _capped(body, most - size)
            body += await self._exactly(size)
            await self._line_end()

    async def _unchunked(self, most: int) -> bytes:
        """A body that was said to be chunked, and is not."""
        _, length, _ = self._lengths(most)
        return _capped(await self._wire.upto(length), most)

    async def _chunk_size(self) -> int | None:
        wire = self._wire
        while b"\n" not in wire.held[:MAX_CHUNK_LINE] and len(wire.held) < MAX_CHUNK_LINE:
            if not await wire.more():
                break
        match = CHUNK.match(wire.held)
        if match is None:
            if not wire.held:
                raise ConnectionError("closed before the last chunk")
            return None
        size = int(match[1], 16)
        del wire.held[: match.end()]
        return size

    async def _exactly(self, size: int) -> bytes:
        piece = await self._wire.upto(size)
        if len(piece) < size:
            raise ConnectionError(f"{len(piece)} of {size} bytes of a chunk")
        return piece

    async def _line_end(self) -> None:
        wire = self._wire
        while len(wire.held) < 3 and await wire.more():
            pass
        if end := _LINE_END.match(wire.held):
            del wire.held[: end.end()]


def _capped(body: bytes | bytearray, most: int) -> bytes:
    if len(body) > most:
        raise Ended("too_big")
    return body if isinstance(body, bytes) else bytes(body)


async def read_head(wire: _Wire) -> tuple[int, CIMultiDict[str]]:
    """Status and fields of the first answer that is not merely interim (1xx)."""
    left = MAX_HEAD
    while True:
        lines: list[bytes] = []
        while (line := await wire.line(left)) or not lines:  # empty lines before the first are passed over
            left -= len(line) + 2
            if line:
                lines.append(line)
            if left < 0:
                raise Ended("bad_response", f"fields of more than {MAX_HEAD} bytes")
            if len(lines) == 1 and not _STATUS.match(line):
                raise Ended("bad_response", f"no HTTP: {line[:80]!r}")
        match = _STATUS.match(lines[0])
        assert match is not None
        status = int(match[1])
        if not 100 <= status < 200 or status == 101:
            return status, read_fields(lines[1:])


def read_fields(lines: list[bytes]) -> CIMultiDict[str]:
    """Fields by name. A line that begins with a blank goes on with the field before it; one without a colon
    is passed over, unless it can be read as an X-Robots-Tag."""
    fields: list[tuple[bytes, list[bytes]]] = []
    for line in lines:
        robots = _ROBOTS_LINE.match(line)
        if robots is not None:
            fields.append((robots[1], [line[robots.end(1) :].lstrip(b" \t:=")]))
        elif line[:1] in b" \t" and fields:
            fields[-1][1].append(line)
        elif b":" in line:
            name, _, value = line.partition(b":")
            fields.append((name, [value]))
    found: CIMultiDict[str] = CIMultiDict()
    for name, values in fields:
        value = b" ".join(part.strip() for part in values).replace(b"\0", b"").strip()
        found.add(name.strip().decode("latin-1"), value.decode("utf-8", "surrogateescape"))
    return found


@asynccontextmanager
async def ask_leniently(
    url: yarl.URL, headers: Mapping[str, str], guard: Guard, trusted: ssl.SSLContext
) -> AsyncIterator[LenientResponse]:
    """GET `url` on a connection of its own. Raises what connecting raises, and Ended for what is no HTTP."""
    sock = await _connect(url, guard)
    try:
        secure = {"ssl": trusted, "server_hostname": url.raw_host} if url.scheme == "https" else {}
        reader, writer = await asyncio.open_connection(sock=sock, **secure)
    except BaseException:
        sock.close()
        raise
    try:
        lines = [f"GET {url.raw_path_qs} HTTP/1.1", f"Host: {url.host_port_subcomponent}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1", "replace"))
        wire = _Wire(reader)
        status, fields = await read_head(wire)
        yield LenientResponse(wire, status, fields)
    finally:
        writer.transport.abort()


async def _connect(url: yarl.URL, guard: Guard) -> socket.socket:
    """A socket to the first address of the host that lets us in; the guard judges each.

    Raises OSError; TimeoutError is left to the caller's deadline.
    """
    loop = asyncio.get_running_loop()
    host, port = url.raw_host, url.port
    assert host is not None
    assert port is not None
    found = await guard.places(host, port)
    for place in found:
        sock = guard.open_socket((place["family"], socket.SOCK_STREAM, 0, "", (place["host"], place["port"])))
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, (place["host"], place["port"]))
        except OSError:
            sock.close()
            if place is found[-1]:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise AssertionError("the guard returns places or raises")
