"""A store on a disk: names are files below one folder, written aside, synced and renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from ..runner import DISK_ERRORS
from .store import Claim, Sink, Store

PART = ".part"
LOCK = ".lock"


class LocalStore(Store):
    """Files below a local folder, which is made when something is first written."""

    where = "local"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = Path(url)

    def put(self, name: str, data: bytes | memoryview) -> None:
        with self.writer(name) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        temporary = self._temporary(path)
        with self._blamed(path, temporary):
            make_folder(path.parent)
            with open(temporary, "wb") as file:
                file.write(data)
                _sync(file)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)
        return True

    @contextmanager
    def writer(self, name: str) -> Iterator[Sink]:
        path = self._path(name)
        temporary = self._temporary(path)
        with self._blamed(path, temporary):
            make_folder(path.parent)
            with open(temporary, "wb", buffering=1 << 20) as file:
                yield Sink(file)
                _sync(file)
            os.replace(temporary, path)
            sync_folder(path.parent)

    def _temporary(self, path: Path) -> Path:
        return path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}{PART}"

    @contextmanager
    def _blamed(self, path: Path, temporary: Path) -> Iterator[None]:
        """On an error remove the temporary file, and say it in words where the output is what failed."""
        try:
            yield
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and _is_ours(error, path, temporary):
                raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
            raise

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if start == 0 and end is None:
            return self._path(name).read_bytes()
        if end is None:
            end = self.size(name)
        return self.ranges(name, [(start, end - start)])[0]

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found: list[bytes] = [b""] * len(spans)
        with open(self._path(name), "rb", buffering=0) as file:
            for index in sorted(range(len(spans)), key=spans.__getitem__):  # in the order on disk
                offset, size = spans[index]
                found[index] = os.pread(file.fileno(), size, offset)
        return found

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for path in self._files(self.root / prefix):
            with suppress(FileNotFoundError):  # removed meanwhile
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def _files(self, folder: Path) -> list[Path]:
        found = (
            Path(where, name)
            for where, _, names in os.walk(folder)
            for name in names
            if not (name.startswith(".") and (name.endswith(PART) or name == LOCK))
        )
        return sorted(found, key=lambda path: path.relative_to(self.root).as_posix())

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            path = self._path(name)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: cannot be removed: {error.strerror}") from error

    def sweep(self) -> int:
        stale = [path for path in self.root.rglob(f".*{PART}") if path.is_file()]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    @contextmanager
    def claim(self, run: str) -> Iterator[Claim]:
        """The lock is the kernel's and goes with the process, however that ends."""
        root = self.root
        try:
            make_folder(root)
            file = open(root / LOCK, "a")  # noqa: SIM115  closed below, held meanwhile
        except FileExistsError as error:
            raise OutputError(f"{root}: a file bears the output folder's name: give another --out") from error
        except OSError as error:
            raise OutputError(f"{root}: the output folder cannot be written: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise OutputError(f"{root}: this file system has no locks: {error.strerror}") from error
                raise OutputError(
                    f"{root}: another pairmill run is working in this folder; wait for it, or give another"
                    " --out"
                ) from error
            yield Held()

    def _path(self, name: str) -> Path:
        return self.root / name


class Held:
    """A lock that lasts as long as this process."""

    def check(self) -> None:
        """The kernel gives such a lock to nobody else."""


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; each new name is synced in the folder that holds it."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, path in enumerate(missing) if path.exists()), len(missing))]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(file: object) -> None:
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]


def _is_ours(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether the output is what failed, and not something that was read meanwhile."""
    place = str(error.filename)
    return error.errno in DISK_ERRORS or place == str(temporary) or path.is_relative_to(place)
