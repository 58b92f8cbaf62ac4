"""A path in an object store, for whoever is written for a path on a disk.

`open_path` gives a plain `Path` for a local folder and a `StorePath` for `s3://bucket/prefix`; names are made
with `/` on both. The rule: a `StorePath` never reaches the operating system. It has no `__fspath__`, so
`open`, `os` and libraries refuse it instead of making a local folder named `s3:`; what reads and writes files
of either kind is in `commit.py` and `files.py`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigError
from .store import LOCK, SCHEMES

if TYPE_CHECKING:
    from .object_store import ObjectStore

UNCLEAR = "%?#*[]\\"  # of a bucket's prefix: signs that URLs and patterns take for something else
REGULAR = 0o100644


class StorePath(PosixPath):
    """`s3://bucket/some/name`: a file, or the folder of all files whose names go on from there."""

    __slots__ = ()

    @property
    def store(self) -> ObjectStore:
        """The bucket."""
        return _bucket(f"{self.parts[0]}//{self.parts[1]}")

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[2:])

    def __str__(self) -> str:
        text = super().__str__()
        scheme, mark, rest = text.partition(":/")
        return f"{scheme}://{rest}" if mark and scheme in SCHEMES else text

    def __fspath__(self) -> NoReturn:  # type: ignore[override]
        raise TypeError(f"{self} is in an object store: read and write it through shards/files.py, commit.py")

    def absolute(self) -> StorePath:
        """Itself: there is no folder that it could be relative to."""
        return self

    def resolve(self, strict: bool = False) -> StorePath:
        """Itself: there are no links."""
        return self

    def exists(self, **_: Any) -> bool:
        """Whether it is a file, or a folder with files."""
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        """Whether there is a file of that name."""
        return bool(self.key) and self.store.exists(self.key)

    def is_dir(self, **_: Any) -> bool:
        """Whether there are files below it."""
        folders, files = self.store.level(self.key)
        return bool(folders or files)

    def stat(self, **_: Any) -> os.stat_result:
        """Only the size is true."""
        return os.stat_result((REGULAR, 0, 0, 1, 0, 0, self.store.size(self.key), 0, 0, 0))

    def iterdir(self) -> Iterator[StorePath]:  # type: ignore[override]
        """Files and folders right below, sorted."""
        folders, files = self.store.level(self.key)
        names = sorted([*folders, *(name for name in files if name.rpartition("/")[2] != LOCK)])
        return (self._of(name) for name in names)

    def glob(self, pattern: str, **_: Any) -> Iterator[StorePath]:  # type: ignore[override]
        """Files below it whose names match, sorted; folders where the pattern ends with a slash."""
        *outer, last = pattern.rstrip("/").split("/")
        places = [self]
        for part in outer:
            places = [inner for place in places for inner in place._folders(part)]
        for place in places:
            if pattern.endswith("/"):
                yield from place._folders(last)
            elif not _is_pattern(last):
                yield from [found for found in (place / last,) if found.is_file()]
            else:
                _, files = place.store.level(place.key)
                found = (place._of(name) for name in sorted(files))
                yield from (path for path in found if path.name != LOCK and fnmatchcase(path.name, last))

    def _folders(self, pattern: str) -> list[StorePath]:
        if not _is_pattern(pattern):
            return [self / pattern]
        folders, _ = self.store.level(self.key)
        return [path for path in map(self._of, sorted(folders)) if fnmatchcase(path.name, pattern)]

    def rglob(self, pattern: str, **_: Any) -> Iterator[StorePath]:  # type: ignore[override]
        """Files at any depth below it whose last component matches, sorted."""
        found = (self._of(name) for name, _ in self.store.list(self.key))
        return (path for path in found if fnmatchcase(path.name, pattern))

    def _of(self, key: str) -> StorePath:
        return StorePath(*self.parts[:2], key)

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **__: Any) -> Any:  # type: ignore[override]
        """For reading only."""
        if mode not in ("r", "rb"):
            raise TypeError(f"{self}: opened with {mode!r}: files are written through shards/commit.py")
        return io.BytesIO(self.read_bytes()) if mode == "rb" else io.StringIO(self.read_text(encoding))

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self.store.read(self.key)

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:  # type: ignore[override]
        """The whole file as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file; one that is not there is no error."""
        self.store.remove([self.key])

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there once it has a file."""

    def rmdir(self) -> None:
        """Nothing: a folder goes with its last file."""


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def reach(place: Path) -> None:
    """Find at once that a store cannot be used: not there, no bucket, no credentials. Nothing on a disk."""
    if isinstance(place, StorePath):
        from .store import open_store

        open_store(place).reach()


@cache
def _bucket(url: str) -> ObjectStore:
    from .object_store import ObjectStore

    return ObjectStore(url)


def open_path(place: str | Path) -> Path:
    """A local folder or file as a `Path`, one at `s3://`, `gs://` or `az://BUCKET/PREFIX` as a `StorePath`.

    Nothing is asked of the store yet. Raises ConfigError for another kind of URL, or one without a bucket.
    """
    if isinstance(place, Path):
        scheme, mark, rest = str(place).partition(":/")
        if isinstance(place, StorePath) or not mark or not scheme.isalnum():
            return place
        place = f"{scheme}://{'/' * (scheme == 'file')}{rest}"  # a path has one slash where the URL had two
    scheme, mark, rest = place.partition("://")
    if not mark:
        return Path(place)
    if scheme == "file":
        return Path(rest)
    if scheme not in SCHEMES:
        raise ConfigError(f"{place}: an output folder is local, or at s3://, gs:// or az://BUCKET/PREFIX")
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if not bucket:
        raise ConfigError(f"{place}: no bucket is named: {scheme}://BUCKET/PREFIX")
    unclear = [sign for sign in UNCLEAR if sign in prefix]
    if unclear or {"", ".", ".."} & {*prefix.split("/")[bool(not prefix) :]}:
        found = f"{unclear[0]!r} in" if unclear else "an empty or dotted folder in"
        raise ConfigError(f"{place}: {found} the prefix: choose another name")
    return StorePath(f"{SCHEMES[scheme]}://{bucket}/{prefix}")
