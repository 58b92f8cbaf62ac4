"""A deterministic ustar writer, and a reader by byte offset that never extracts anything.

Same members, same bytes: fixed owner, mode and time, members in the order given. The reader walks
512-byte headers itself, takes regular files only, and refuses what it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ShardError

BLOCK = 512
END = bytes(2 * BLOCK)
NAME_MAX = 100
SIZE_MAX = 8**11 - 1
EXTENDED_MAX = 65_536
HARMLESS = {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment", b"charset"}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: where its bytes lie."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        """The WebDataset key: the name up to the first dot of its last component."""
        folder, _, base = self.name.rpartition("/")
        stem = base.partition(".")[0]
        return f"{folder}/{stem}" if folder else stem

    @property
    def suffix(self) -> str:
        """What follows the key, without the dot, lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def _header(name: str, size: int) -> bytes:
    encoded = name.encode("ascii")
    if len(encoded) > NAME_MAX or size > SIZE_MAX:
        raise ValueError(f"member {name!r} of {size} bytes does not fit a ustar header")
    fields = b"".join(
        (
            encoded.ljust(100, b"\0"),
            b"0000644\0",
            b"0000000\0",
            b"0000000\0",
            b"%011o\0" % size,
            b"00000000000\0",
            b" " * 8,
            b"0",
            bytes(100),
            b"ustar\x0000",
            b"root".ljust(32, b"\0"),
            b"root".ljust(32, b"\0"),
            b"0000000\0",
            b"0000000\0",
            bytes(155 + 12),
        )
    )
    checksum = b"%06o\0 " % sum(fields)
    return fields[:148] + checksum + fields[156:]


class TarWriter:
    """Appends members to an open file; `close` writes the end mark. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115  closed by close()
        self._at = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member. Returns the byte offset of its data."""
        padding = bytes(-len(data) % BLOCK)
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        self._file.write(padding)
        start = self._at + BLOCK
        self._at = start + len(data) + len(padding)
        return start

    def close(self) -> None:
        """Write the end mark and close the file."""
        self._file.write(END)
        self._file.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _octal(field: bytes, path: str, at: int) -> int:
    if field[:1] in (b"\x80", b"\xff"):
        raise ShardError(path, at, "base-256 size field, which no shard needs: refused")
    text = field.strip(b"\0 ")
    if text.strip(b"01234567"):  # int() would also take signs, underscores and 0o
        raise ShardError(path, at, f"number field {field!r} is not octal")
    return int(text or b"0", 8)


def _check(header: bytes, path: str, at: int) -> None:
    said = _octal(header[148:156], path, at)
    if said != sum(header[:148]) + sum(header[156:]) + 8 * 32:
        raise ShardError(path, at, "header checksum is wrong: not a tar, or cut and overwritten")


def members(path: Path) -> Iterator[Member]:
    """Yield the regular files of a tar in order, reading headers only.

    Raises ShardError for a broken header, a member past the end of the file, a link or a device, an
    extended header that changes more than times and owners, and for a tar without its end mark (cut
    at a member's border).
    """
    with open(path, "rb") as file:
        yield from _walk(file, str(path))


def _walk(file: BinaryIO, path: str) -> Iterator[Member]:
    end = os.fstat(file.fileno()).st_size
    at = 0
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise ShardError(path, at, "the tar ends without its end mark: it was cut")
        if header == bytes(BLOCK):
            return
        _check(header, path, at)
        size = _octal(header[124:136], path, at)
        kind = header[156:157]
        start = at + BLOCK
        if start + size > end:
            raise ShardError(path, at, f"member of {size} bytes reaches past the end of the file")
        if kind in (b"0", b"\0"):
            yield Member(_name(header, path, at), start, size)
        elif kind in (b"g", b"x"):
            _check_extended(os.pread(file.fileno(), min(size, EXTENDED_MAX + 1), start), path, at)
        elif kind != b"5":
            raise ShardError(path, at, f"member of type {kind!r} (link, device or long name): refused")
        at = start + size + (-size % BLOCK)


def _check_extended(body: bytes, path: str, at: int) -> None:
    """Refuse a PAX header by which the next member has another name, size or kind than it says itself."""
    if len(body) > EXTENDED_MAX:
        raise ShardError(path, at, f"extended header longer than {EXTENDED_MAX} bytes: refused")
    while body:
        length = body.partition(b" ")[0]
        end = int(length) if length.isdigit() and len(length) < 9 else 0
        key, equals, _ = body[len(length) + 1 : end].partition(b"=")
        if not equals or body[end - 1 : end] != b"\n":
            raise ShardError(path, at, "extended header is malformed")
        if key not in HARMLESS and not key.startswith((b"SCHILY.", b"LIBARCHIVE.")):
            raise ShardError(path, at, f"extended header sets {key!r}: refused; pack without it (ustar)")
        body = body[end:]


def _name(header: bytes, path: str, at: int) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    try:
        text = (prefix + b"/" + name if prefix else name).decode("utf-8")
    except UnicodeDecodeError:
        raise ShardError(path, at, "member name is not UTF-8") from None
    if text.startswith("/") or ".." in text.split("/"):
        raise ShardError(path, at, f"member name {text!r} leaves the archive: refused")
    return text


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """The `size` bytes at `offset`, safe to call from many threads on one open file."""
    place = getattr(file, "name", "?")
    if offset < 0 or size < 0:
        raise ShardError(place, offset, f"no place in a file: offset {offset}, size {size}")
    data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise ShardError(place, offset, f"{len(data)} bytes, expected {size}")
    return data
