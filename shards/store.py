"""Where an output folder lies: a local folder, or a prefix of an object store.

Above this file nothing knows which: files have names such as `raw/00017.tar`, relative to the store. A name
holds a whole file or none, whatever was killed when: on a disk by a temporary name, fsync and rename, in an
object store by one PUT or by an upload that is completed last.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import xxhash

from ..errors import ConfigError

SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
}
LOCK = "_lock.json"  # of a run, in an object store
BLOCK = 1 << 20  # bytes that a file which is read piece by piece asks for at least


class Writable(Protocol):
    """What a sink writes into."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class Sink(io.RawIOBase):
    """The file that `Store.writer` yields: append-only, counted and hashed while it is written."""

    def __init__(self, file: Writable) -> None:
        self._file, self.size, self._hash = file, 0, xxhash.xxh3_128()

    def write(self, data: object, /) -> int:
        """Append bytes, or anything that offers a contiguous buffer of them."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        self._file.write(view)
        self._hash.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size

    def writable(self) -> bool:
        return True

    @property
    def digest(self) -> str:
        """xxh3-128 of what was written, 32 hex digits."""
        return self._hash.hexdigest()


class Store(ABC):
    """A folder of named files. It is cheap to make, pickles as its `url`, and may be used by many threads.

    Methods raise FileNotFoundError for a name that is not there, OutputError where the store cannot be
    written (full, read-only, refused), RetryableError where it failed for as long as it was asked again.
    """

    url: str  # a local folder as it was given, or scheme://bucket/prefix
    where: str  # 'local', 's3', 'gs' or 'az'

    def __init__(self, url: str) -> None:
        self.url = url

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return open_store, (self.url,)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"open_store({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def place(self, name: str) -> str:
        """The name as a person would open it: a path or a URL."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Give `name` these bytes, all or none; an older file of that name is replaced."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """As `put`, but only where the name is free: of many that try at once, one gets True."""

    @abstractmethod
    def writer(self, name: str, *, synced: bool = True) -> AbstractContextManager[Sink]:
        """A file to append to, which bears its name when the block ends without an error.

        synced: False for a file that can be made anew, and whose reader knows it from a torn one: on a disk
        nobody waits for it, a power cut may take it, and the task's tally says what it must hold.
        """

    @abstractmethod
    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (not included; None: the last) of a file; fewer where it ends before."""

    @abstractmethod
    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """The `size` bytes at each (offset, size), in the order asked for; fewer where the file ends."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file whose name begins with the folder `prefix`, sorted by name."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove files; those that are not there are no error."""

    @abstractmethod
    def claim(self, run: str) -> AbstractContextManager[Claim]:
        """Hold the folder for one run, named `run` in what others are told. Raises OutputError where held."""

    @abstractmethod
    def sweep(self) -> int:
        """Remove what killed writers left under temporary names; call it with the folder claimed."""

    @abstractmethod
    def reach(self) -> None:
        """Raises what any use would raise, but within seconds."""

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """Stems of the files right in `folder` that end with `suffix`, sorted: `00017` of `raw/00017.tar`."""
        start = len(folder.rstrip("/")) + 1
        found = (name[start:] for name, _ in self.list(folder))
        return [
            name[: len(name) - len(suffix)] for name in found if name.endswith(suffix) and "/" not in name
        ]

    def open(self, name: str) -> io.BufferedReader:
        """A file to read from any place; small reads of neighbouring bytes are taken together."""
        return io.BufferedReader(RangeReader(self, name), BLOCK)


class Claim(Protocol):
    """A folder that is held."""

    def check(self) -> None:
        """Raises OutputError where another run has taken the folder over meanwhile."""
        ...


class RangeReader(io.RawIOBase):
    """A file of a store, read by ranges."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self.name, self._at = store, name, 0
        self.size = store.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self._store.read(self.name, self._at, min(self._at + len(buffer), self.size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_store(place: str | Path | Store) -> Store:
    """The store at a local folder or at `s3://`, `gs://` or `az://bucket/prefix`; nothing is asked of it yet.

    Raises ConfigError for another kind of URL, or a store that is not set up (credentials, package).
    """
    if isinstance(place, Store):
        return place
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        from .local_store import LocalStore

        return LocalStore(str(place))
    if scheme == "file":
        from .local_store import LocalStore

        return LocalStore(rest)
    if scheme not in SCHEMES:
        raise ConfigError(f"{place}: an output folder is local, or at s3://, gs:// or az://BUCKET/PREFIX")
    from .object_store import ObjectStore

    return ObjectStore(f"{SCHEMES[scheme]}://{rest.rstrip('/')}")
