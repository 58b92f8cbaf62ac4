"""Files of an object store for DuckDB, under the names that they have: `read_parquet('s3://bucket/...')`.

DuckDB's own way to S3 is an extension that it downloads, and it opens a file several times; here small files
are fetched once for each connection, and large ones read by ranges.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fsspec.spec import AbstractFileSystem

from ..errors import PairmillError
from .files import HeldFile, RemoteFile, open_file
from .store import SCHEMES
from .store_path import StorePath

if TYPE_CHECKING:
    import duckdb

HELD = 256 << 20  # bytes of small files that one connection keeps
NEVER = datetime(2000, 1, 1, tzinfo=UTC)  # no file is written again while a connection reads it


@contextmanager
def reading(connection: duckdb.DuckDBPyConnection, out: Path) -> Iterator[None]:
    """Let a connection read files of the output folder's store, whose errors come out as they are."""
    if not isinstance(out, StorePath):
        yield
        return
    import duckdb

    files = StoreFiles()
    connection.register_filesystem(files)
    try:
        yield
    except duckdb.Error as error:
        if files.failed is not None:
            raise files.failed from error
        raise


class StoreFiles(AbstractFileSystem):
    """The part of fsspec's interface that DuckDB calls, from many threads."""

    protocol = tuple(sorted(set(SCHEMES.values())))
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.failed: PairmillError | None = None
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._sizes: dict[str, int] = {}
        self._mutex = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return path

    def open(self, path: str, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        with self._mutex:
            data = self._held.get(path)
        return io.BytesIO(data) if data is not None else self._kept(path, self._call(open_file, path))

    def _kept(self, path: str, file: BinaryIO) -> BinaryIO:
        assert isinstance(file, HeldFile | RemoteFile)
        with self._mutex:
            self._sizes[path] = file.size
            if isinstance(file, HeldFile):
                self._held[path] = file.getvalue()
                while sum(map(len, self._held.values())) > HELD:
                    self._held.popitem(last=False)
        return file

    def size(self, path: str) -> int:
        if path not in self._sizes:
            self._sizes[path] = self._call(lambda at: at.stat().st_size, path)
        return self._sizes[path]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": self.size(path), "type": "file"}

    def modified(self, path: str) -> datetime:
        return NEVER

    def exists(self, path: str, **_: Any) -> bool:
        return bool(path in self._sizes or self._call(StorePath.is_file, path))

    def glob(self, path: str, **_: Any) -> list[str]:  # type: ignore[override]
        if "*" not in path:  # opening it will tell
            return [path]
        return self._call(lambda at: [str(found) for found in at.parent.glob(at.name)], path)

    def _call(self, call: Any, path: str) -> Any:
        try:
            return call(StorePath(path))
        except PairmillError as error:
            self.failed = error
            raise
