"""What lies where in a tar of whatever tool: names, places and links, from its 512-byte headers alone.

Read are V7, ustar, GNU (long names, sizes in base 256, old sparse files) and PAX. One rule: a member whose
bytes do not lie in one piece is yielded all the same, with its problem; nothing is passed over unsaid but
folders and devices, which hold nothing. Sources: POSIX.1-2017 pax; GNU tar manual, appendix D.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from ..errors import ShardError
from .files import open_file, pread, size_of

BLOCK = 512
EXTENDED_MAX = 2**20  # bytes of one extended header: macOS puts whole attributes into them
CHUNK = 128 * BLOCK
LINKS = {b"1", b"2"}  # hard, symbolic
EMPTY = {b"3", b"4", b"5", b"6", b"V"}  # devices, folders, pipes, a volume's name: their size means nothing
LONG_NAMES = {b"L": b"path", b"K": b"linkpath"}  # GNU's own, said as PAX says it
MOVES = {b"path", b"size", b"linkpath"}  # what one header may not say for all that follow
PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"), b"BZh": ("bzip2", "bunzip2"), b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"), b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\3\4": ("zip", "unzip"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: where its bytes lie, or why they cannot be read in place."""

    name: str
    offset: int
    size: int
    problem: str = ""

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


@dataclass(slots=True)
class _Entry:
    """One header with what the extended headers before it say."""

    kind: bytes
    name: str
    link: str
    offset: int
    size: int
    sparse: bool
    at: int = field(default=0)


def entries(path: Path) -> Iterator[Member]:
    """Yield every file of a tar in order; a link has the place of the file that it leads to.

    Tars joined with `cat` are read to the last one's end. Raises ShardError for a broken header, a member
    past the end of the file, a compressed tar, and for a tar without its end mark (cut at a member's border).
    """
    places: dict[str, Member] | None = None
    with open_file(path, ahead=True) as file:
        for entry in _walk(file, str(path)):
            if entry.kind in LINKS:
                places = _places(path) if places is None else places
                yield _linked(entry, places)
            elif entry.kind not in EMPTY and not entry.name.endswith("/"):
                yield _member(entry)


def _member(entry: _Entry) -> Member:
    problem = "a sparse file, which does not lie in one piece" if entry.sparse else ""
    problem = "the rest of a file that begins in another volume" if entry.kind == b"M" else problem
    return Member(entry.name, entry.offset, entry.size, problem)


def _places(path: Path) -> dict[str, Member]:
    """The files that links may lead to, by name."""
    with open_file(path, ahead=True) as file:
        found = (e for e in _walk(file, str(path)) if e.kind not in EMPTY | LINKS)
        return {os.path.normpath(entry.name): _member(entry) for entry in found}


def _linked(entry: _Entry, places: dict[str, Member]) -> Member:
    folder = os.path.dirname(entry.name) if entry.kind == b"2" else ""
    target = places.get(os.path.normpath(os.path.join(folder, entry.link)))
    if target is None:
        return Member(entry.name, entry.offset, 0, f"a link to {entry.link!r}, which is no file of this tar")
    return replace(target, name=entry.name)


def _walk(file: BinaryIO, path: str) -> Iterator[_Entry]:
    end = size_of(file)
    said: dict[bytes, bytes] = {}
    at: int | None = 0
    while at is not None:
        header = pread(file, BLOCK, at)
        if len(header) < BLOCK:
            _refuse_packed(header, path, at)
            raise ShardError(path, at, "the tar ends without its end mark: it was cut")
        if header == bytes(BLOCK):
            at = _behind_end_mark(file, at)
            continue
        _check(header, path, at)
        entry = _entry(file, header, said, path, at)
        if entry.offset + entry.size > end:
            raise ShardError(path, at, f"member of {entry.size} bytes reaches past the end of the file")
        if entry.kind in (b"x", b"X", b"g", *LONG_NAMES):
            said |= _extension(file, entry, path)
        else:
            yield entry
            said = {}
        at = entry.offset + entry.size + (-entry.size % BLOCK)


def _behind_end_mark(file: BinaryIO, at: int) -> int | None:
    """Where the next tar begins behind an end mark and its padding, or None at the end of the file."""
    while chunk := pread(file, CHUNK, at):
        if rest := chunk.lstrip(b"\0"):
            return at + (len(chunk) - len(rest)) // BLOCK * BLOCK
        at += len(chunk)
    return None


def _check(header: bytes, path: str, at: int) -> None:
    text = header[148:156].strip(b"\0 ")
    said = int(text, 8) if text and not text.strip(b"01234567") else -1
    found = sum(header) - sum(header[148:156]) + 8 * 32
    if said != found and said != _signed_sum(header):
        _refuse_packed(header, path, at)
        place = "not a tar, or cut and overwritten" if at == 0 else "cut, overwritten, or no tar from here on"
        raise ShardError(path, at, f"header checksum is wrong: {place}")


def _signed_sum(header: bytes) -> int:
    """The checksum as some old tars have it, which add up signed bytes."""
    rest = header[:148] + b" " * 8 + header[156:]
    return sum(rest) - 256 * sum(byte > 127 for byte in rest)


def _refuse_packed(begin: bytes, path: str, at: int) -> None:
    for mark, (name, command) in PACKED.items():
        if at == 0 and begin.startswith(mark):
            raise ShardError(path, at, f"packed with {name}: no picture can be read in place: {command} it")


def _number(field: bytes, path: str, at: int) -> int:
    """Octal digits, or GNU's base 256 behind a byte 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    if text.strip(b"01234567"):  # int() would also take signs, underscores and 0o
        raise ShardError(path, at, f"number field {field!r} is not octal")
    return int(text or b"0", 8)


def _entry(file: BinaryIO, header: bytes, said: dict[bytes, bytes], path: str, at: int) -> _Entry:
    kind, start = header[156:157], at + BLOCK
    size = 0 if kind in EMPTY | LINKS else _number(header[124:136], path, at)
    if kind not in (b"x", b"X", b"g", *LONG_NAMES, *EMPTY, *LINKS) and b"size" in said:
        size = _decimal(said[b"size"], path, at)
    sparse = kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in said)
    more = kind == b"S" and header[482]
    while more:  # old GNU sparse files: maps that found no room in the header
        block = pread(file, BLOCK, start)
        more = len(block) == BLOCK and block[504]
        start += BLOCK
    name = said.get(b"GNU.sparse.name") or said.get(b"path") or _name(header)
    link = said.get(b"linkpath") or header[157:257].split(b"\0", 1)[0]
    return _Entry(kind, _text(name), _text(link), start, size, sparse, at)


def _decimal(text: bytes, path: str, at: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ShardError(path, at, f"extended header says size {text!r}, expected digits")
    return int(text)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    # GNU's magic is b"ustar ", and where ustar has the prefix it keeps times
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(name: bytes) -> str:
    """A name as text: those that are not UTF-8 as Latin-1, which keeps different ones different."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _extension(file: BinaryIO, entry: _Entry, path: str) -> dict[bytes, bytes]:
    """What an extended header says about the next member."""
    if entry.size > EXTENDED_MAX:
        raise ShardError(path, entry.at, f"extended header longer than {EXTENDED_MAX} bytes: refused")
    body = pread(file, entry.size, entry.offset)
    if entry.kind in LONG_NAMES:
        return {LONG_NAMES[entry.kind]: body.split(b"\0", 1)[0]}
    said = dict(_records(body, path, entry.at))
    if entry.kind != b"g":
        return said
    moved = [key for key in said if key in MOVES or key.startswith(b"GNU.sparse.")]
    if moved:
        raise ShardError(path, entry.at, f"a global header sets {moved[0]!r} of all members: refused")
    return {}


def _records(body: bytes, path: str, at: int) -> Iterator[tuple[bytes, bytes]]:
    """The records of a PAX header: `length key=value`, each ended by a newline."""
    while body.strip(b"\0"):
        length = body.partition(b" ")[0]
        end = int(length) if length.isdigit() and len(length) < 9 else 0
        key, equals, value = body[len(length) + 1 : end].partition(b"=")
        if not equals or body[end - 1 : end] != b"\n":
            raise ShardError(path, at, "extended header is malformed")
        yield key, value[:-1]
        body = body[end:]
