"""A store in S3, Google Cloud Storage or Azure: one PUT, or an upload that is completed last.

Such stores have no rename, no append and no lock, and answer 503 or cut a body now and then. Every request
is asked again for `PATIENCE_S`; a body that is cut is read again.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, Any, TypeVar, cast

from ..errors import OutputError, RetryableError
from .object_client import PATIENCE_S, brief, connect, endpoint, no_bucket
from .store import LOCK, Claim, Sink, Store

TRIES = 8  # of a body that is cut
FIRST_PATIENCE_S = 8.0  # as PATIENCE_S, before anything was begun
CHUNK = 8 << 20  # bytes of one part of an upload, and of one request of a long read
SPOOLED = 64 << 20  # bytes of a file held in memory until it is sent; more goes to the temporary folder
AT_ONCE = 16  # requests in flight for one call
SPAN_GAP = 64 << 10  # spans that lie closer than this are read in one request
DELETE_AT_ONCE = 1_000
T = TypeVar("T")


class ObjectStore(Store):
    """Objects below a prefix of a bucket; the client is made when first used, in the process that uses it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.where = url.partition("://")[0]
        self._clients: dict[tuple[int, str, float], Any] = {}  # by process: no client survives a fork

    @property
    def client(self) -> Any:
        return self._client(PATIENCE_S)

    def _client(self, patience_s: float) -> Any:
        key = os.getpid(), endpoint(), patience_s
        found = self._clients.get(key)
        if found is None:
            found = self._clients.setdefault(key, connect(self.url, patience_s))
        return found

    def reach(self) -> None:
        """Ask the store anything. Raises what any request would, but within seconds."""
        import obstore

        try:
            self.ask("", lambda: obstore.list_with_delimiter(self._client(FIRST_PATIENCE_S), "_done"))
        except RetryableError as error:
            at = endpoint() if self.where == "s3" else ""
            raise RetryableError(f"{error}: is AWS_ENDPOINT_URL={at} right?" if at else str(error)) from error

    def remove_at_once(self, name: str) -> None:
        """Remove a file if that can be done within seconds."""
        import obstore

        with suppress(OutputError, RetryableError, FileNotFoundError):
            self.ask(name, lambda: obstore.delete(self._client(FIRST_PATIENCE_S), [name]))

    def put(self, name: str, data: bytes | memoryview) -> None:
        self.send(name, io.BytesIO(data))

    def send(self, name: str, file: IO[bytes]) -> None:
        """Send a file from its start, and again where an answer was cut."""
        import obstore

        def send() -> None:
            file.seek(0)
            obstore.put(self.client, name, cast("Any", file), chunk_size=CHUNK)

        self.write(name, send)

    def create(self, name: str, data: bytes) -> bool:
        import obstore

        try:
            self.write(name, lambda: obstore.put(self.client, name, data, mode="create"))
        except FileExistsError:  # perhaps by our own request, whose answer was cut
            return self.read(name) == data
        return True

    @contextmanager
    def writer(self, name: str, *, synced: bool = True) -> Iterator[Sink]:
        with tempfile.SpooledTemporaryFile(SPOOLED) as file:
            yield Sink(file)
            self.send(name, file)

    def write(self, name: str, call: Callable[[], T]) -> T:
        """Raises OutputError where the bucket is not there or refuses, FileExistsError for a taken name."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return self._again(name, call)
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.place(name)}: cannot be written: {no_bucket(error, self.url)}"
            ) from error
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(str(error)) from error

    def ask(self, name: str, call: Callable[[], T]) -> T:
        """The answer to one request. Errors of the client become ours, in one line."""
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        try:
            return call()
        except (AlreadyExistsError, PreconditionError):
            raise
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise OutputError(f"{self.place(name)}: the store refuses: {brief(error)}") from error
        except RetryableError:
            raise
        except FileNotFoundError as error:
            if "NoSuchUpload" not in str(error):
                raise  # else its completion was answered, and the answer cut
            raise RetryableError(f"{self.place(name)}: the upload broke off") from error
        except (BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise OutputError(f"{self.place(name)}: {no_bucket(error, self.url)}") from error
            raise RetryableError(f"{self.place(name)}: the store fails: {brief(error)}") from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        if start == 0 and end is None:
            return self._whole(name)
        end = self.size(name) if end is None else end
        cuts = [(at, min(CHUNK, end - at)) for at in range(start, end, CHUNK)]
        return b"".join(_at_once(partial(self._range, name), cuts))

    def _whole(self, name: str) -> bytes:
        import obstore

        def ask() -> bytes:
            answer = obstore.get(self.client, name)
            data = bytes(answer.bytes())
            if len(data) != answer.meta["size"]:
                raise RetryableError(f"{self.place(name)}: {len(data)} of {answer.meta['size']} bytes came")
            return data

        return self._again(name, ask)

    def start(self, name: str, length: int) -> tuple[bytes, int]:
        """At most `length` bytes from the file's start, and how many it has in all."""
        import obstore

        def ask() -> tuple[bytes, int]:
            try:
                answer = obstore.get(self.client, name, options={"range": (0, length)})
            except obstore.exceptions.GenericError as error:
                if ("InvalidRange" not in str(error) and "416" not in str(error)) or self.size(name):
                    raise
                return b"", 0  # of an empty file there is no range
            data, size = bytes(answer.bytes()), int(answer.meta["size"])
            if len(data) != min(length, size):
                raise RetryableError(f"{self.place(name)}: {len(data)} of {min(length, size)} bytes came")
            return data, size

        return self._again(name, ask)

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        joined = _join(spans)
        answers = _at_once(partial(self._range, name), [(start, end - start) for start, end, _ in joined])
        found: list[bytes] = [b""] * len(spans)
        for (start, _, members), data in zip(joined, answers, strict=True):
            for index in members:
                offset, length = spans[index]
                found[index] = data[offset - start : offset - start + length]
        return found

    def _range(self, name: str, place: tuple[int, int]) -> bytes:
        """The bytes of one span; what is shorter than asked was cut, unless the file ends there."""
        import obstore

        start, length = place

        def ask() -> bytes:
            data = b""
            with suppress(obstore.exceptions.GenericError):  # a span that begins behind the end, or a fault
                data = bytes(obstore.get_range(self.client, name, start=start, length=length))
            if len(data) < length and (size := self.size(name)) > start + len(data):
                raise RetryableError(f"{self.place(name)}: {len(data)} of {min(length, size)} bytes came")
            return data

        return self._again(name, ask) if length > 0 else b""

    def size(self, name: str) -> int:
        import obstore

        return int(self.ask(name, lambda: obstore.head(self.client, name))["size"])

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        import obstore

        def ask() -> list[tuple[str, int]]:
            pages = obstore.list(self.client, prefix.rstrip("/") or None, chunk_size=1_000)
            return [(item["path"], item["size"]) for page in pages for item in page]

        found = self._again(prefix, ask)
        yield from sorted(item for item in found if item[0].rpartition("/")[2] != LOCK)

    def level(self, folder: str) -> tuple[list[str], dict[str, str]]:
        """The folders right in `folder`, and by name the tags of its files: another one for other bytes."""
        import obstore

        found = self._again(folder, lambda: obstore.list_with_delimiter(self.client, folder or None))
        return list(found["common_prefixes"]), {item["path"]: str(item["e_tag"]) for item in found["objects"]}

    def move(self, name: str, to: str) -> None:
        """Give a file another name, within the store."""
        import obstore

        self.write(to, lambda: obstore.copy(self.client, name, to))
        self.remove([name])

    def _again(self, name: str, call: Callable[[], T]) -> T:
        """As `ask`, asked again where the answer was cut, which the client itself does not do."""
        begun = time.monotonic()
        for attempt in range(TRIES - 1):
            try:
                return self.ask(name, call)
            except RetryableError:
                if time.monotonic() - begun > PATIENCE_S / 2:  # the client has asked again for long enough
                    raise
                time.sleep(min(0.1 * 2**attempt, 5))
        return self.ask(name, call)

    def remove(self, names: Iterable[str]) -> None:
        import obstore

        waiting = list(names)
        for start in range(0, len(waiting), DELETE_AT_ONCE):
            chunk = waiting[start : start + DELETE_AT_ONCE]
            with suppress(FileNotFoundError):
                self._again(chunk[0], lambda chunk=chunk: obstore.delete(self.client, chunk))

    def sweep(self) -> int:
        """Nothing: an upload that was not completed has no name (a rule of the bucket removes its parts)."""
        return 0

    @contextmanager
    def claim(self, run: str) -> Iterator[Claim]:
        from .object_lock import Lock

        lock = Lock(self, run)
        try:
            yield lock
        finally:
            lock.release()


def _at_once(call: Callable[[T], bytes], places: Sequence[T]) -> list[bytes]:
    if len(places) <= 1:
        return [call(place) for place in places]
    with ThreadPoolExecutor(min(AT_ONCE, len(places)), "store") as threads:
        return list(threads.map(call, places))


def _join(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, list[int]]]:
    """(start, end, indices of spans) of the requests that cover all spans, near ones together."""
    joined: list[tuple[int, int, list[int]]] = []
    for index in sorted(range(len(spans)), key=spans.__getitem__):
        offset, size = spans[index]
        if joined and offset - joined[-1][1] <= SPAN_GAP and offset + size - joined[-1][0] <= CHUNK:
            start, end, members = joined[-1]
            joined[-1] = (start, max(end, offset + size), [*members, index])
        else:
            joined.append((offset, offset + size, [index]))
    return joined
