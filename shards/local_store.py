"""A store on a disk: names are files below one folder, written aside, synced and renamed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError
from .commit import PART, FileDigest, is_ours, locked, make_folder, record, sweep, sync_folder
from .store import Claim, Sink, Store

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
    def writer(self, name: str, *, synced: bool = True) -> Iterator[Sink]:
        path = self._path(name)
        temporary = self._temporary(path)
        with self._blamed(path, temporary):
            make_folder(path.parent, synced=synced)
            with open(temporary, "wb", buffering=1 << 20) as file:
                sink = Sink(file)
                yield sink
                if synced:
                    _sync(file)
            os.replace(temporary, path)
            if synced:
                sync_folder(path.parent)
            else:
                record(path, FileDigest(sink.size, sink.digest))

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
            if isinstance(error, OSError) and is_ours(error, path, temporary):
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

    def reach(self) -> None:
        """Nothing: there is no network between."""

    def sweep(self) -> int:
        return sweep(self.root)

    @contextmanager
    def claim(self, run: str) -> Iterator[Claim]:
        """The lock is the kernel's and goes with the process, however that ends."""
        with locked(self.root):
            yield Held()

    def _path(self, name: str) -> Path:
        return self.root / name


class Held:
    """A lock that lasts as long as this process."""

    def check(self) -> None:
        """The kernel gives such a lock to nobody else."""


def _sync(file: object) -> None:
    file.flush()  # type: ignore[attr-defined]
    os.fsync(file.fileno())  # type: ignore[attr-defined]
