"""A deterministic ustar writer, and a reader by byte offset that never extracts anything.

Same members, same bytes: fixed owner, mode and time, members in the order given. Which members a tar has is
read in tar_headers.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import ShardError
from .files import pread, read_spans
from .tar_headers import BLOCK, Member, entries

__all__ = ["BLOCK", "END", "NAME_MAX", "SIZE_MAX", "Member", "TarWriter", "entries", "members", "read_at"]

END = bytes(2 * BLOCK)
NAME_MAX = 100
SIZE_MAX = 8**11 - 1


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


def members(path: Path) -> Iterator[Member]:
    """Yield the files of a tar that we wrote, or that is as plain: `entries`, and nothing doubtful.

    Raises ShardError also for a link, a sparse file, and a name that leaves the archive.
    """
    for member in entries(path):
        if member.problem:
            raise ShardError(path, None, f"member {member.name!r} is {member.problem}: refused")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ShardError(path, None, f"member name {member.name!r} leaves the archive: refused")
        yield member


def read_all(files: Sequence[BinaryIO], places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (offset, size) of the open file beside it; those of one file are asked for together.

    Raises ShardError as `read_at` does.
    """
    found: list[bytes] = [b""] * len(places)
    for file in dict.fromkeys(files):
        mine = [index for index, other in enumerate(files) if other is file]
        for index, data in zip(mine, read_spans(file, [places[index] for index in mine]), strict=True):
            offset, size = places[index]
            if len(data) != size:
                raise ShardError(getattr(file, "name", "?"), offset, f"{len(data)} bytes, expected {size}")
            found[index] = data
    return found


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """The `size` bytes at `offset`, safe to call from many threads on one open file."""
    place = getattr(file, "name", "?")
    if offset < 0 or size < 0:
        raise ShardError(place, offset, f"no place in a file: offset {offset}, size {size}")
    data = pread(file, size, offset)
    if len(data) != size:
        raise ShardError(place, offset, f"{len(data)} bytes, expected {size}")
    return data
