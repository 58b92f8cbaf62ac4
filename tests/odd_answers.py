"""Answers that break the rules of HTTP, as servers on the web give them, around one small picture."""

from __future__ import annotations

import zlib

from fetching import picture  # pyright: ignore[reportImplicitRelativeImport]

PICTURE = picture(3)
LENGTH = b"Content-Length: %d" % len(PICTURE)
HALF = len(PICTURE) // 2
CHUNKED = b"Transfer-Encoding: chunked"


def whole(
    *fields: bytes, first: bytes = b"HTTP/1.1 200 OK", body: bytes = PICTURE, end: bytes = b"\r\n"
) -> bytes:
    """An answer of a status line, fields and a body."""
    return end.join((first, *fields, b"", body))


def pieces(size: bytes = b"%x", end: bytes = b"\r\n", last: bytes = b"0\r\n\r\n") -> bytes:
    """The picture in two chunks."""
    parts = PICTURE[:HALF], PICTURE[HALF:]
    return b"".join(size % len(part) + end + part + end for part in parts) + last


def packed(wbits: int, body: bytes = PICTURE) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(body) + packer.flush()


HEADS: dict[str, bytes] = {
    # fields
    "no colon": whole(b"Nonsense", LENGTH),
    "no colon, spaces": whole(b"this is no field", LENGTH),
    "no colon at the end": whole(LENGTH, b"Nonsense"),
    "space in the name": whole(b"Bad Name: x", LENGTH),
    "space before the colon": whole(b"Content-Type : image/jpeg", LENGTH),
    "space before the length's colon": whole(b"Content-Length : %d" % len(PICTURE)),
    "tab before the colon": whole(b"Server\t: x", LENGTH),
    "quoted name": whole(b'"X": y', LENGTH),
    "NULs for a field": whole(LENGTH, b"\0\0\0"),
    "blanks for a field": whole(LENGTH, b"  "),
    "n,": whole(LENGTH + b","),
    "empty name": whole(b": value", LENGTH),
    "brackets in the name": whole(b"[X](Y): z", LENGTH),
    "non-ASCII name": whole("Zürich: x".encode(), LENGTH),
    "Latin-1 value": whole("X-Place: Zürich".encode("latin-1"), LENGTH),
    "control characters in a value": whole(b"X-A: a\x01\x02\x7fb", LENGTH),
    "NUL in a value": whole(b"X-A: a\0b", LENGTH),
    "NUL in a name": whole(b"X\0A: b", LENGTH),
    "carriage return in a value": whole(b"X-A: a\rb", LENGTH),
    "folded field": whole(b"X-A: a\r\n  b", LENGTH),
    "folded by a tab": whole(b"X-A: a\r\n\tb", LENGTH),
    "first field folded": whole(b" X-A: a", LENGTH),
    "folded length": whole(b"Content-Length:\r\n %d" % len(PICTURE)),
    "long field": whole(b"X-A: " + b"a" * 40_000, LENGTH),
    "very long field": whole(b"X-A: " + b"a" * 99_000, LENGTH),
    "long cookie": whole(b"Set-Cookie: a=" + b"a" * 20_000, LENGTH),
    "long name": whole(b"X" * 20_000 + b": a", LENGTH),
    "200 fields": whole(*(b"X-%d: a" % n for n in range(200)), LENGTH),
    "2000 fields": whole(*(b"X-%d: a" % n for n in range(2000)), LENGTH),
    "bad cookie": whole(b"Set-Cookie: \x01=;;;=\x02", LENGTH),
    "status line twice": whole(b"HTTP/1.1 200 OK", LENGTH),
    "an HTML field": whole(b"<br />", b"<b>Warning</b>: Cannot modify header", LENGTH),
    # lengths
    "two equal lengths": whole(LENGTH, LENGTH),
    "n, n": whole(LENGTH + b", %d" % len(PICTURE)),
    "n,n,n": whole(LENGTH + b",%d,%d" % (len(PICTURE), len(PICTURE))),
    "two lengths, 0 first": whole(b"Content-Length: 0", LENGTH),
    "two lengths, 0 last": whole(LENGTH, b"Content-Length: 0"),
    "plus sign": whole(b"Content-Length: +%d" % len(PICTURE)),
    "negative length": whole(b"Content-Length: -1"),
    "empty length": whole(b"Content-Length:"),
    "length in words": whole(b"Content-Length: unknown"),
    "length with a unit": whole(LENGTH + b" bytes"),
    "length with a semicolon": whole(LENGTH + b";"),
    "length in quotes": whole(b'Content-Length: "%d"' % len(PICTURE)),
    "length as a decimal": whole(LENGTH + b".0"),
    "length with thousands": whole(b"Content-Length: 1,%03d" % (len(PICTURE) % 1000)),
    "hexadecimal length": whole(b"Content-Length: 0x%x" % len(PICTURE)),
    "zeros in front": whole(b"Content-Length: 000%d" % len(PICTURE)),
    "huge length": whole(b"Content-Length: 99999999999999999999999999"),
    "length too small": whole(b"Content-Length: %d" % len(PICTURE), body=PICTURE + b"<!-- behind -->"),
    "no length": whole(b"Content-Type: image/jpeg"),
    # chunks
    "length and chunks": whole(CHUNKED, b"Content-Length: 5", body=pieces()),
    "true length and chunks": whole(LENGTH, CHUNKED, body=pieces()),
    "length and chunks that are none": whole(LENGTH, CHUNKED),
    "chunks that are none": whole(CHUNKED),
    "chunked twice": whole(CHUNKED, CHUNKED, body=pieces()),
    "chunked, chunked": whole(CHUNKED + b", chunked", body=pieces()),
    "identity": whole(b"Transfer-Encoding: identity", LENGTH),
    "identity, chunked": whole(b"Transfer-Encoding: identity, chunked", body=pieces()),
    "chunked in quotes": whole(b'Transfer-Encoding: "chunked"', body=pieces()),
    "Chunked;": whole(b"Transfer-Encoding: Chunked;", body=pieces()),
    "unknown coding": whole(b"Transfer-Encoding: binary", LENGTH),
    "no coding": whole(b"Transfer-Encoding:", LENGTH),
    "none": whole(b"Transfer-Encoding: none", LENGTH),
    "gzip, chunked": whole(
        b"Transfer-Encoding: gzip, chunked",
        body=b"%x\r\n" % len(packed(31)) + packed(31) + b"\r\n0\r\n\r\n",
    ),
    "chunk sizes with spaces": whole(CHUNKED, body=pieces(b"%x   ")),
    "chunk sizes after spaces": whole(CHUNKED, body=pieces(b"  %x")),
    "chunk sizes with 0x": whole(CHUNKED, body=pieces(b"0x%x")),
    "chunk sizes with a plus": whole(CHUNKED, body=pieces(b"+%x")),
    "chunks of two carriage returns": whole(CHUNKED, body=pieces(end=b"\r\r\n")),
    "chunked; q=1": whole(CHUNKED + b"; q=1", body=pieces()),
    "chunk sizes with zeros": whole(CHUNKED, body=pieces(b"00000000%x")),
    "chunk sizes with many zeros": whole(CHUNKED, body=pieces(b"0" * 40 + b"%x")),
    "chunk extensions": whole(CHUNKED, body=pieces(b'%x;a="b;c"')),
    "odd chunk extensions": whole(CHUNKED, body=pieces(b"%x ; =\x01=;;")),
    "chunks of bare line feeds": whole(CHUNKED, body=pieces(end=b"\n", last=b"0\n\n")),
    "last chunk without its end": whole(CHUNKED, body=pieces(last=b"0\r\n")),
    "last chunk bad": whole(CHUNKED, body=pieces(last=b"zz\r\n\r\n")),
    "no last chunk": whole(CHUNKED, body=pieces(last=b"")),
    "junk after the last chunk": whole(CHUNKED, body=pieces(last=b"0\r\n\r\njunk")),
    "odd trailers": whole(CHUNKED, body=pieces(last=b"0\r\nno colon\r\n\r\n")),
    "no line end after a chunk": whole(CHUNKED, body=b"%x\r\n%b0\r\n\r\n" % (len(PICTURE), PICTURE)),
    # status lines and line ends
    "HTTP/2": whole(LENGTH, first=b"HTTP/2 200 OK"),
    "HTTP/2.0": whole(LENGTH, first=b"HTTP/2.0 200 OK"),
    "HTTP/3": whole(LENGTH, first=b"HTTP/3 200"),
    "HTTP/1": whole(LENGTH, first=b"HTTP/1 200 OK"),
    "HTTP/1.2": whole(LENGTH, first=b"HTTP/1.2 200 OK"),
    "HTTP/0.9": whole(LENGTH, first=b"HTTP/0.9 200 OK"),
    "HTTP/01.01": whole(LENGTH, first=b"HTTP/01.01 200 OK"),
    "HTTP 200": whole(LENGTH, first=b"HTTP 200 OK"),
    "HTTP/": whole(LENGTH, first=b"HTTP/ 200 OK"),
    "HTTP1.1": whole(LENGTH, first=b"HTTP1.1 200 OK"),
    "HTTPS/1.1": whole(LENGTH, first=b"HTTPS/1.1 200 OK"),
    "HTTP/1.1:": whole(LENGTH, first=b"HTTP/1.1: 200 OK"),
    "http/1.1": whole(LENGTH, first=b"http/1.1 200 OK"),
    "ICY": whole(LENGTH, first=b"ICY 200 OK"),
    "no reason": whole(LENGTH, first=b"HTTP/1.1 200"),
    "no reason, a space": whole(LENGTH, first=b"HTTP/1.1 200 "),
    "two spaces": whole(LENGTH, first=b"HTTP/1.1  200  OK"),
    "tabs": whole(LENGTH, first=b"HTTP/1.1\t200\tOK"),
    "reason glued": whole(LENGTH, first=b"HTTP/1.1 200OK"),
    "reason with a colon": whole(LENGTH, first=b"HTTP/1.1 200: OK"),
    "non-ASCII reason": whole(LENGTH, first="HTTP/1.1 200 Très bien".encode("latin-1")),
    "control characters in the reason": whole(LENGTH, first=b"HTTP/1.1 200 O\x01\0K"),
    "long reason": whole(LENGTH, first=b"HTTP/1.1 200 " + b"O" * 20_000),
    "empty lines before": whole(LENGTH, first=b"\r\n\r\nHTTP/1.1 200 OK"),
    "junk before": whole(LENGTH, first=b"\xef\xbb\xbfHTTP/1.1 200 OK"),
    "space before": whole(LENGTH, first=b" HTTP/1.1 200 OK"),
    "bare line feeds": whole(LENGTH, end=b"\n"),
    "bare line feeds in part": whole(LENGTH, b"Server: x\nX-A: y"),
    "line feed and carriage return": whole(LENGTH, end=b"\n\r"),
    "two carriage returns": whole(LENGTH, end=b"\r\r\n"),
    "continue first": b"HTTP/1.1 100 Continue\r\n\r\n" + whole(LENGTH),
    "early hints first": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + whole(LENGTH),
    "odd early hints first": b"HTTP/1.1 103 Early Hints\r\nno colon\r\n\r\n" + whole(LENGTH),
    "no fields": whole(),
    "switching protocols": whole(b"Upgrade: h2c", b"Connection: Upgrade, close", LENGTH),
    "Upgrade": whole(b"Upgrade: h2,h2c", b"Connection: Upgrade", LENGTH),
    "two types": whole(b"Content-Type: image/jpeg", b"Content-Type: text/html", LENGTH),
    "odd type": whole(b"Content-Type: image/jpeg; charset=\xff;;=", LENGTH),
    "old websocket": whole(b"Sec-WebSocket-Key1: x", LENGTH),
}

NOBODYS = {"no last chunk", "line feed and carriage return"}  # nor urllib nor curl nor we get these


def _coded(coding: bytes, body: bytes = PICTURE) -> bytes:
    return whole(b"Content-Encoding: " + coding, b"Content-Length: %d" % len(body), body=body)


CODINGS: dict[str, bytes] = {
    **{
        f"plain picture as {name}": _coded(name.encode())
        for name in (
            *(
                "utf-8",
                "UTF-8",
                "binary",
                "none",
                "null",
                "aws-chunked",
                "gzip",
                "x-gzip",
                "deflate",
                "br",
                "zstd",
            ),
            *(
                "compress",
                "base64",
                "8bit",
                "7bit",
                "identity",
                "Identity, identity",
                "image/jpeg",
                "jpeg",
                "utf8",
            ),
            *(
                "gzip, gzip",
                "gzip;q=1.0",
                '"gzip"',
                "gzip,",
                ",",
                "",
                "*",
                "text",
                "iso-8859-1",
                "undefined",
                "false",
            ),
        )
    },
    "gzip": _coded(b"gzip", packed(31)),
    "GZIP": _coded(b"GZIP", packed(31)),
    "x-gzip": _coded(b"x-gzip", packed(31)),
    "zlib": _coded(b"deflate", packed(15)),
    "raw deflate": _coded(b"deflate", packed(-15)),
    "gzip as deflate": _coded(b"deflate", packed(31)),
    "zlib as gzip": _coded(b"gzip", packed(15)),
    "gzip as br": _coded(b"br", packed(31)),
    "gzip as utf-8": _coded(b"utf-8", packed(31)),
    "gzip twice": _coded(b"gzip, gzip", packed(31, packed(31))),
    "gzip once, said twice": _coded(b"gzip, gzip", packed(31)),
    "gzip twice, said once": _coded(b"gzip", packed(31, packed(31))),
    "aws-chunked indeed": _coded(
        b"aws-chunked", b"%x;chunk-signature=a\r\n%b\r\n0;chunk-signature=b\r\n\r\n" % (len(PICTURE), PICTURE)
    ),
    "gzip of two members": _coded(b"gzip", packed(31, PICTURE[:HALF]) + packed(31, PICTURE[HALF:])),
    "gzip with junk behind": _coded(b"gzip", packed(31) + b"junk"),
    "gzip without its check": _coded(b"gzip", packed(31)[:-8]),
    "gzip in two fields": whole(b"Content-Encoding: gzip", b"Content-Encoding: identity", body=packed(31)),
    "gzip, unsaid": whole(LENGTH.replace(b"%d" % len(PICTURE), b"%d" % len(packed(31))), body=packed(31)),
}
