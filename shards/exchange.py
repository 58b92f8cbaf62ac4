"""Rows sent from tasks to partitions, and answers sent back, through files of the store.

A source writes one file: for each of P partitions an Arrow IPC stream of the rows that belong there, behind a
head that says where each begins. A partition reads its stream of every source, in the order of the sources'
names, so what it sees depends on the rows alone. Answers travel the same way, from partitions to sources, and
come back in the order in which the rows were sent.

At a billion rows that is one file per source and one ranged read per source and partition; a row group per
partition in Parquet took 17 times as long to write and read, a file per source and partition 9 times.

Nobody waits until such a file has reached the disk, for most are removed before that. A machine that loses
its power may therefore lose one whose phase has a tally: each stream ends with a hash, so that what is torn
is never taken for rows, and a run that goes on holds the files against the tallies first (`shards/job.py`).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import xxhash

from ..errors import ShardError
from .store import Sink, Store

MAGIC = b"PMX2"
HEAD = struct.Struct("<4sI")
SUFFIX = ".exchange"
INDEX = "index.npy"
HASH_BYTES = 16  # xxh3-128 behind each stream
LOST = "lost with a machine? the same command again makes it anew"
IN_FLIGHT = 32  # reads of one gather at a time: in an object store each waits for tens of milliseconds


def exchange_folder(stage: str, name: str = "") -> str:
    """Where the rows of a stage lie on their way; `name` where it has several exchanges."""
    return f"_exchange/{stage}/{name}".rstrip("/")


def scatter(store: Store, folder: str, source: str, rows: pa.Table, part: np.ndarray, parts: int) -> None:
    """Send each row to its partition: write `<folder>/<source>.exchange`.

    part: (N,) integers in [0, parts), the partition of each row of `rows`; rows keep their order within one.
    Rows that come by partition already are not copied.
    """
    order, edges = _grouped(part, parts)
    by_part = (rows if order is None else rows.take(pa.array(order))).combine_chunks()
    cut = [by_part.slice(edges[p], edges[p + 1] - edges[p]) for p in range(parts)]
    offsets = np.cumsum([_head_size(parts), *map(_stream_size, cut)])
    with store.writer(f"{folder}/{source}{SUFFIX}", synced=False) as file:
        file.write(HEAD.pack(MAGIC, parts) + offsets.astype("<i8").tobytes())
        for table in cut:
            _write_hashed(file, table)


def sources(store: Store, folder: str) -> list[str]:
    """Names of the sources that have sent rows to `folder`, sorted."""
    return store.names(folder, SUFFIX)


def write_index(store: Store, folder: str) -> None:
    """Gather the heads of all sources into one small file, so that a partition need not ask each for its own.

    Call it when every source has written. Raises ShardError where two sources have other partitions.
    """
    names = sources(store, folder)
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        heads = list(threads.map(lambda name: _read_head(store, folder, name), names))
    if len({len(head) for head in heads}) > 1:
        raise ShardError(
            store.place(folder), None, "its sources were cut into different numbers of partitions"
        )
    matrix = np.stack(heads) if heads else np.zeros((0, 1), np.int64)
    store.put(f"{folder}/{INDEX}", matrix.astype("<i8").tobytes())


def gather(store: Store, folder: str, part: int) -> Iterator[tuple[str, pa.Table]]:
    """(source, its rows for partition `part`) in the order of the sources' names; reads run ahead."""
    names = sources(store, folder)
    offsets = _index(store, folder, names)

    def read(number: int) -> pa.Table:
        start, end = (int(offset) for offset in offsets[number, part : part + 2])
        name = f"{folder}/{names[number]}{SUFFIX}"
        data = store.read(name, start, end) if start < end else b""  # no more is certain of a torn head
        if len(data) != end - start:
            raise ShardError(store.place(name), start, f"{len(data)} bytes, expected {end - start}: {LOST}")
        return _read_hashed(data, store.place(name), start)

    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        ahead = deque(threads.submit(read, number) for number in range(min(IN_FLIGHT, len(names))))
        for number, name in enumerate(names):
            table = ahead.popleft().result()
            if number + IN_FLIGHT < len(names):
                ahead.append(threads.submit(read, number + IN_FLIGHT))
            yield name, table


def reply(store: Store, folder: str, part: int, answers: pa.Table, lengths: Sequence[int]) -> None:
    """Send an answer to each row that `gather` gave partition `part`.

    answers: a row for each, in the order in which they came.
    lengths: (S,) rows that came from each source.
    """
    source = np.repeat(np.arange(len(lengths)), lengths)
    scatter(store, f"{folder}/answers", f"{part:06d}", answers, source, len(lengths))


def answers(
    store: Store, folder: str, source: str, part: np.ndarray | None = None, parts: int = 1
) -> pa.Table:
    """The answers to the rows that `source` scattered, in the order in which it gave them.

    part, parts: as given to `scatter`; needed only where rows did not come by partition already.
    """
    number = sources(store, folder).index(source)
    table = pa.concat_tables([table for _, table in gather(store, f"{folder}/answers", number)])
    order = None if part is None else _grouped(part, parts)[0]
    if order is None:
        return table
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return table.take(pa.array(back))


def keep(store: Store, folder: str, name: str, rows: pa.Table) -> None:
    """Leave rows for a later task that will go on with them: `<folder>/<name>.kept`."""
    with store.writer(f"{folder}/{name}.kept", synced=False) as file:
        _write_hashed(file, rows)


def kept(store: Store, folder: str, name: str) -> pa.Table:
    """The rows that were left under that name."""
    file = f"{folder}/{name}.kept"
    return _read_hashed(store.read(file), store.place(file), 0)


def forget(store: Store, folder: str) -> None:
    """Remove an exchange whose rows have arrived."""
    store.remove(name for name, _ in store.list(folder))


def partition_of(keys: np.ndarray, parts: int) -> np.ndarray:
    """(N,) int64 partition of (N,) V16 keys: ranges of their first 32 bits, so in the order of keys."""
    first = np.frombuffer(np.ascontiguousarray(keys).tobytes(), ">u4").reshape(len(keys), 4)[:, 0]
    return (first.astype(np.uint64) * np.uint64(parts) >> np.uint64(32)).astype(np.int64)


def partitions(rows: int, rows_per_partition: int) -> int:
    """How many partitions `rows` are cut into: a function of the input and the recipe, never of workers."""
    return max(1, -(-rows // rows_per_partition))


def _grouped(part: np.ndarray, parts: int) -> tuple[np.ndarray | None, np.ndarray]:
    """(N,) order that puts rows of one partition together, None if they are; and (parts + 1,) its edges."""
    if (part[1:] >= part[:-1]).all():
        return None, np.searchsorted(part, np.arange(parts + 1))
    small = part.astype(np.uint16) if parts <= 1 << 16 else part  # a radix sort, for 16 bits
    order = np.argsort(small, kind="stable")
    return order, np.searchsorted(part[order], np.arange(parts + 1))


def _write_stream(sink: pa.NativeFile, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)


def _write_hashed(file: Sink, rows: pa.Table) -> None:
    """A stream and the hash of it."""
    hashed = Sink(file)
    _write_stream(pa.PythonFile(hashed, "w"), rows)
    file.write(bytes.fromhex(hashed.digest))


def _read_hashed(data: bytes, place: str, start: int) -> pa.Table:
    """The rows of a stream that `_write_hashed` wrote. Raises ShardError where a byte is another one."""
    stream, said = memoryview(data)[:-HASH_BYTES], data[-HASH_BYTES:]
    if len(data) < HASH_BYTES or xxhash.xxh3_128_digest(stream) != said:
        raise ShardError(place, start, f"not the bytes that were written: {LOST}")
    return pa.ipc.open_stream(stream).read_all()


def _stream_size(rows: pa.Table) -> int:
    sink = pa.MockOutputStream()
    _write_stream(sink, rows)
    return sink.size() + HASH_BYTES


def _head_size(parts: int) -> int:
    return HEAD.size + 8 * (parts + 1)


def _read_head(store: Store, folder: str, source: str) -> np.ndarray:
    name = f"{folder}/{source}{SUFFIX}"
    guess = store.read(name, 0, _head_size(1024))
    magic, parts = HEAD.unpack_from(guess) if len(guess) >= HEAD.size else (b"", 0)
    if magic != MAGIC:
        raise ShardError(store.place(name), 0, f"not a file of an exchange: {LOST}")
    size = _head_size(parts)
    head = guess[:size] if len(guess) >= size else store.read(name, 0, size)
    return np.frombuffer(head, "<i8", parts + 1, HEAD.size)


def _index(store: Store, folder: str, names: Sequence[str]) -> np.ndarray:
    """(S, P + 1) where each stream begins; from the index, or from the heads where there is none."""
    try:
        flat = np.frombuffer(store.read(f"{folder}/{INDEX}"), "<i8")
        return flat.reshape(len(names), -1)
    except FileNotFoundError:
        if not names:
            return np.zeros((0, 1), np.int64)
        return np.stack([_read_head(store, folder, name) for name in names])
