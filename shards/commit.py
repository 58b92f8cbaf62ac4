"""How a file comes into being: written under a temporary name, synced, renamed; the tally last.

In an object store: written to a temporary folder of this machine, then sent in one upload, completed last.
A final name therefore always holds a whole file, whatever was killed when. Each file is hashed before it
gets its name, while its bytes are still in memory: `recorded` collects what a task wrote.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ..errors import DISK_ERRORS, OutputError, may_pass
from .files import open_file, scratch_prefix, sweep_scratch
from .store import Claim, open_store
from .store_path import StorePath

PART = ".part"
AT_ONCE = 2**20  # bytes hashed at once


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What a file must hold: its size in bytes, and the xxh3-128 of them as hex."""

    size: int
    xxh3: str

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.size, "xxh3": self.xxh3}


def file_digest(path: Path) -> FileDigest:
    """Read a file to its end."""
    digest, size = xxhash.xxh3_128(), 0
    with open_file(path, ahead=True) as file:
        while block := file.read(AT_ONCE):
            digest.update(block)
            size += len(block)
    return FileDigest(size, digest.hexdigest())


_recorded: dict[Path, FileDigest] | None = None  # of the task that this process is at; tasks come one by one


@contextmanager
def recorded() -> Iterator[dict[Path, FileDigest]]:
    """Yield a mapping that fills with the files committed meanwhile, by any thread of this process."""
    global _recorded  # a task's files are committed deep down, from threads of its own too
    outer, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = outer


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what is written there gets the name `path` on success.

    On an error nothing bears the final name, and the temporary file is removed.
    """
    if isinstance(path, StorePath):
        with _sent(path) as temporary:
            yield temporary
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}{PART}"
    try:
        make_folder(path.parent)
        yield temporary
        digest = file_digest(temporary) if _recorded is not None else None
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        if digest is not None:
            record(path, digest)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and is_ours(error, path, temporary):
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


@contextmanager
def _sent(path: StorePath) -> Iterator[Path]:
    """`committed` in an object store, which has no file of that name until all of it has arrived."""
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        temporary = Path(scratch) / path.name
        try:
            yield temporary
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise OutputError(
                    f"{scratch}: {error.strerror}: set TMPDIR to a folder with room for the largest file"
                ) from error
            raise
        digest = file_digest(temporary) if _recorded is not None else None
        with open(temporary, "rb") as file:
            path.store.send(path.key, file)
        if digest is not None:
            record(path, digest)


def is_ours(error: OSError, path: Path, temporary: Path) -> bool:
    """Whether the output is what failed, and not something that was read meanwhile."""
    place = str(error.filename)
    if may_pass(error):  # then the task is tried again
        return False
    return error.errno in DISK_ERRORS or place == str(temporary) or path.is_relative_to(place)


def make_folder(folder: Path, *, synced: bool = True) -> None:
    """Make a folder with its parents, each synced into the one above: else a power cut takes all of it."""
    if folder.exists():
        folder.mkdir(exist_ok=True)  # raises where a file bears the name
    missing, above = [], folder
    while not above.exists():
        missing.append(above)
        above = above.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        if synced:
            sync_folder(new.parent)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_table(table: pa.Table, path: Path, *, rows_per_group: int = 100_000) -> None:
    """Commit a Parquet file whose bytes depend on the table's values alone."""
    whole = table.combine_chunks()  # Arrow ends a page where a chunk ends
    with committed(path) as temporary:
        pq.write_table(whole, temporary, row_group_size=rows_per_group, compression="zstd")


def json_text(value: Any) -> str:
    """What `write_json` writes: one space a level, keys sorted, a line break at the end."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(value: Any, path: Path) -> None:
    """Commit a JSON file, keys sorted."""
    with committed(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def write_bytes(data: bytes, path: Path) -> None:
    """Commit a small file."""
    with committed(path) as temporary:
        temporary.write_bytes(data)


def write_once(data: bytes, path: Path) -> bytes:
    """Commit a small file unless another process was first. Returns what lies there; it is recorded too."""
    if isinstance(path, StorePath):
        path.store.create(path.key, data)
    elif not path.exists():
        make_folder(path.parent)
        temporary = path.parent / f".{path.name}.{os.getpid()}{PART}"
        temporary.write_bytes(data)
        try:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.link(temporary, path)  # never over a file that is there
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    if _recorded is not None:
        record(path, file_digest(path))
    return path.read_bytes()


def keep(path: Path) -> FileDigest:
    """Record a file that was there before as one of this task's. Returns what it holds."""
    digest = file_digest(path)
    record(path, digest)
    return digest


def record(path: Path, digest: FileDigest) -> None:
    """Count a file among those that this task wrote, if one is at work."""
    if _recorded is not None:
        _recorded[path] = digest


def sweep(root: Path) -> int:
    """Remove what a killed run left half-written; call it with the folder locked. Returns how many.

    Of an object store that is in the temporary folder: an upload that was not completed has no name.
    """
    if isinstance(root, StorePath):
        return sweep_scratch()
    stale = [path for path in root.rglob(f".*{PART}") if path.is_file()]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


@contextmanager
def locked(root: Path) -> Iterator[Claim | None]:
    """Hold the output folder for this process; a second run on it is refused at once.

    On a disk the lock is the kernel's and goes with the process, however that ends. In an object store it is
    an object, and what is yielded can be asked whether it is still ours.
    """
    if isinstance(root, StorePath):
        with open_store(root).claim(root.name) as claim:
            yield claim
        return
    try:
        make_folder(root)
        file = open(root / ".lock", "a")  # noqa: SIM115  closed below, held meanwhile
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
                f"{root}: another pairmill run is working in this folder; wait for it or give another --out"
            ) from error
        yield
