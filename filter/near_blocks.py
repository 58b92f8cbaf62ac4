"""Near-copies by hash in blocks of places: block k is held against the leaders of each earlier block.

Pictures lie in blocks by the stated order, the best in block 0. Tasks (j, k) for every j < k run side by side
and say for each picture of block k the first leader of block j within reach; then one task takes the first of
them all, and settles among themselves the pictures that have none. So the answer is that of one picture after
the other, a process holds two blocks, and what comes behind never changes an answer.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..recipe import Near
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.exchange import exchange_folder, gather, reply
from ..shards.selection import uids_to_array
from ..shards.store import Store, open_store
from .colours import WIDTH, SameColours
from .groups import follow
from .hamming import HASH, Hamming
from .near_order import ordered
from .sql import database

HIT = np.dtype([("row", "<u4"), ("leader", "V16")])  # a row of a block, and the url_hash of what it follows
# in a window a number is a value, in an ORDER BY of its own it would be a column
PLACED = "SELECT n, url_hash, code FROM placed ORDER BY row_number() OVER (ORDER BY {keep}, url_hash)"


@dataclass(frozen=True, slots=True)
class Cut:
    """A stage `near` that is cut into partitions; the folders of its exchanges by the rows that they bear."""

    out: Path
    settings: Near
    memory_mb: int
    parts: int

    @property
    def store(self) -> Store:
        return open_store(self.out)

    def folder(self, name: str) -> str:
        """Where an exchange, or what one phase leaves for another, lies."""
        return exchange_folder("near", name)

    def phase(self, name: str, work: object, names: list[str]) -> tuple[list[Task], Stage]:
        """A phase: `work(cut, task)` for a task of each name."""
        stage = f"near.{name}"
        return [Task(stage, each) for each in names], Stage(stage, _start, (work, self))

    @property
    def names(self) -> list[str]:
        return [f"{part:05d}" for part in range(self.parts)]


def _start(work: object, cut: Cut) -> Worker:
    return partial(work, cut)  # type: ignore[arg-type]


def save(store: Store, name: str, array: np.ndarray) -> None:
    """Write an array as .npy."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    store.put(name, buffer.getbuffer())


def load(store: Store, name: str) -> np.ndarray:
    """An array that `save` wrote."""
    return np.load(io.BytesIO(store.read(name)), allow_pickle=False)


def block_phases(cut: Cut) -> Iterator[tuple[list[Task], Stage]]:
    """Place the rows of every block, then join and settle one block after the other."""
    yield cut.phase("place", place, cut.names)
    for block in cut.names:
        if earlier := [name for name in cut.names if name < block]:
            yield cut.phase(f"join-{block}", join, earlier)
        yield cut.phase(f"settle-{block}", settle_block, [block])


def place(cut: Cut, task: Task) -> Tally:
    """Put the pictures of one block into their order."""
    store, block = cut.store, cut.folder(f"blocks/{task.name}")
    tables = [table for _, table in gather(store, cut.folder("places"), int(task.name))]
    rows = pa.concat_tables(tables)
    name = f"{task.stage}-{task.name}"
    with database(cut.out, name, memory_mb=cut.memory_mb, threads=cut.settings.threads) as connection:
        connection.register("placed", rows.append_column("n", pa.array(np.arange(len(rows)))))
        placed = ordered(connection, PLACED, cut.settings)
    save(store, f"{block}.codes.npy", rows_of_bytes(placed.column("code"), HASH + WIDTH))
    save(store, f"{block}.urls.npy", uids_to_array(placed.column("url_hash")))
    save(store, f"{block}.order.npy", placed.column("n").to_numpy())
    save(store, f"{block}.lengths.npy", np.array([len(table) for table in tables]))
    return Tally({"placed": len(rows)})


def join(cut: Cut, task: Task) -> Tally:
    """Hold one block (by the stage's name) against the leaders of an earlier one (by the task's)."""
    store, (block, earlier) = cut.store, (task.stage.rpartition("-")[2], task.name)
    codes = load(store, f"{cut.folder('blocks')}/{block}.codes.npy")
    leaders = load(store, f"{cut.folder('leaders')}/{earlier}.codes.npy")
    first = reach(cut.settings, threads=1).join(leaders, codes)  # others run beside it
    rows = np.flatnonzero(first >= 0)
    hits = np.empty(len(rows), HIT)
    hits["row"] = rows
    hits["leader"] = load(store, f"{cut.folder('leaders')}/{earlier}.urls.npy")[first[rows]]
    save(store, f"{cut.folder('hits')}/{block}/{earlier}.npy", hits)
    return Tally({"compared": len(codes)}, {"hits": len(hits)})


def settle_block(cut: Cut, task: Task) -> Tally:
    """Take the first leader of an earlier block; what has none is settled among itself."""
    store, block = cut.store, cut.folder(f"blocks/{task.name}")
    urls, codes = load(store, f"{block}.urls.npy"), load(store, f"{block}.codes.npy")
    leader, waiting = urls.copy(), np.ones(len(urls), bool)
    for earlier in [name for name in cut.names if name < task.name]:
        hits = load(store, f"{cut.folder('hits')}/{task.name}/{earlier}.npy")
        hits = hits[waiting[hits["row"]]]
        leader[hits["row"]] = hits["leader"]
        waiting[hits["row"]] = False
    beat(task, 1, 2, "comparing pictures")
    rows = np.flatnonzero(waiting)
    found = follow(codes[rows], reach(cut.settings))
    leader[rows] = urls[rows[found]]
    leading = rows[found == np.arange(len(rows))]
    save(store, f"{cut.folder('leaders')}/{task.name}.codes.npy", codes[leading])
    save(store, f"{cut.folder('leaders')}/{task.name}.urls.npy", urls[leading])
    answers = np.empty_like(leader)
    answers[load(store, f"{block}.order.npy")] = leader
    lengths = load(store, f"{block}.lengths.npy").tolist()
    reply(store, cut.folder("places"), int(task.name), pa.table({"leader": as_hashes(answers)}), lengths)
    near = len(urls) - len(leading)
    return Tally({"settled": len(urls)}, {"near": near})


def reach(settings: Near, threads: int | None = None) -> Hamming:
    """What is near by hash and colours; by as many threads as the recipe says where None are given."""
    import faiss

    faiss.omp_set_num_threads(threads or settings.threads)
    return Hamming(settings.max_distance, SameColours(settings.plain_distance))


def rows_of_bytes(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """(N, width) uint8 of a column of blobs without NULLs."""
    fixed = column.combine_chunks().cast(pa.binary(width))
    if len(fixed) == 0:
        return np.empty((0, width), np.uint8)
    return np.frombuffer(fixed.buffers()[1], np.uint8).reshape(-1, width)[fixed.offset :][: len(fixed)]


def as_hashes(array: np.ndarray) -> pa.Array:
    """A column of binary(16) from (N,) V16."""
    data = pa.py_buffer(np.ascontiguousarray(array).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(array), [None, data])
