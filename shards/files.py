"""Files of an output folder, read alike on a disk and in an object store.

A local file is read where it lies, by its name. Of an object store small files are fetched whole, large ones
by ranges, and what a library wants as a file on a disk is copied into the temporary folder of the machine
(`TMPDIR`) for as long as it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ..errors import ShardError
from .store import RangeReader
from .store_path import StorePath

WHOLE = 32 << 20  # bytes of a file that is fetched in one go
BLOCK = 8 << 20  # bytes that a large file asks for at once where it is read from front to back
CHUNK = 64 << 20  # bytes of a copy in memory at once
PREFIX = "pairmill-"


class RemoteFile(io.BufferedReader):
    """A large file of an object store; `pread` may be called from many threads.

    ahead: it is read from front to back, so that what follows a place is fetched with it.
    """

    def __init__(self, path: StorePath, *, ahead: bool = False) -> None:
        self.path, self.ahead, self._mutex = path, ahead, threading.Lock()
        reader = RangeReader(path.store, path.key)
        self.size = reader.size
        super().__init__(reader, BLOCK)

    @property
    def name(self) -> str:  # type: ignore[override]
        return str(self.path)

    def pread(self, size: int, offset: int) -> bytes:
        """The bytes at a place, fewer where the file ends."""
        if not self.ahead:
            return self.path.store.ranges(self.path.key, [(offset, size)])[0]
        with self._mutex:
            self.seek(offset)
            return self.read(size)


class HeldFile(io.BytesIO):
    """A small file of an object store, whole in memory."""

    def __init__(self, path: StorePath, data: bytes) -> None:
        super().__init__(data)
        self.name, self._view = str(path), memoryview(data)

    @property
    def size(self) -> int:
        return len(self._view)

    def pread(self, size: int, offset: int) -> bytes:
        """The bytes at a place, fewer where the file ends."""
        return bytes(self._view[offset : offset + size])


def open_file(path: Path, *, ahead: bool = False) -> BinaryIO:
    """A file to read bytes of, at any place. Raises FileNotFoundError where there is none.

    ahead: it is going to be read from front to back.
    """
    if not isinstance(path, StorePath):
        return open(path, "rb")
    data, size = path.store.start(path.key, WHOLE)
    if size > len(data):
        return cast("BinaryIO", RemoteFile(path, ahead=ahead))
    return HeldFile(path, data)


def pread(file: BinaryIO, size: int, offset: int) -> bytes:
    """The bytes at a place of an `open_file`, fewer where it ends; from many threads at once."""
    if isinstance(file, RemoteFile | HeldFile):
        return file.pread(size, offset)
    return os.pread(file.fileno(), size, offset)


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    if isinstance(file, RemoteFile | HeldFile):
        return file.size
    return os.fstat(file.fileno()).st_size


def sha256_of(path: Path) -> tuple[str, int]:
    """sha256 in hex of a file, and its bytes."""
    with open_file(path, ahead=True) as file:
        return hashlib.file_digest(cast("Any", file), "sha256").hexdigest(), size_of(file)


def read_spans(file: BinaryIO, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The `size` bytes at each (offset, size) of an open file, in the order asked; fewer where it ends."""
    if isinstance(file, RemoteFile):  # many at once: each waits for tens of milliseconds
        return file.path.store.ranges(file.path.key, spans)
    return [pread(file, size, offset) for offset, size in spans]


def readable(path: Path) -> Any:
    """What Arrow and numpy read a file from: its path, or in an object store a file object."""
    return open_file(path) if isinstance(path, StorePath) else path


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """A file with the bytes of `path` on this machine's disk: itself, or a copy that goes with the block."""
    if not isinstance(path, StorePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        copy = Path(folder) / path.name
        size = path.store.size(path.key)
        with open(copy, "wb") as file:
            for start in range(0, size, CHUNK):
                data = path.store.read(path.key, start, min(size, start + CHUNK))
                if len(data) != min(CHUNK, size - start):
                    raise ShardError(path, start, f"{len(data)} bytes, expected {min(CHUNK, size - start)}")
                file.write(data)
        yield copy


def map_array(path: Path) -> np.ndarray:
    """A .npy file as an array whose rows are read when they are used.

    Raises what `np.load` raises for what is none. A mapped copy stays on the disk until it is let go of.
    """
    with local_copy(path) as copy:
        return np.load(copy, mmap_mode="r", allow_pickle=False)


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder on a disk for what does not fit into memory: `folder` itself, or a temporary one.

    It is removed at the end, and with it the folder above where that is empty by then.
    """
    if isinstance(folder, StorePath):
        with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)
        return
    shutil.rmtree(folder, ignore_errors=True)  # a killed run's
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another task's is still there
            folder.parent.rmdir()


def spool_folder(folder: Path) -> Path | None:
    """Where a file without a name is put while it grows: beside the output, or the temporary folder."""
    return None if isinstance(folder, StorePath) else folder


def remove_folder(folder: Path) -> None:
    """Remove a folder with all files below it; one that is not there is no error."""
    if isinstance(folder, StorePath):
        folder.store.remove([name for name, _ in folder.store.list(folder.key)])
    else:
        shutil.rmtree(folder, ignore_errors=True)


def move_file(path: Path, to: Path) -> None:
    """Give a file another name in the same folder; a file that bears it is replaced."""
    if isinstance(path, StorePath) and isinstance(to, StorePath):
        path.store.move(path.key, to.key)
    else:
        os.replace(path, to)
