"""Batches for training: bytes read by offset in threads, decoded once, in an order that a seed fixes."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ..errors import DataError, may_pass
from ..shards.files import open_file
from ..shards.tar import read_all
from .batch import Batch
from .order import Order
from .pictures import decode_square
from .samples import Rows
from .tokenizer import pad_groups

AHEAD = 3  # batches being decoded while one is used
CHUNK = 16  # pictures decoded by one call of a thread
OPEN_FILES = 256


class Tars:
    """Open tars, at most OPEN_FILES of them; `read` may be called from many threads."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getitem__(self, tar: int) -> BinaryIO:
        """The open file of a tar. Called by one thread; a reader keeps the file that it was given."""
        if tar not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)  # closed when its last reader lets it go
            try:
                self._open[tar] = open_file(self.paths[tar])  # closed as above
            except OSError as error:
                if may_pass(error):
                    raise
                raise DataError(f"{self.paths[tar]}: {error.strerror}: the shard's table names it") from error
        self._open.move_to_end(tar)
        return self._open[tar]

    def close(self) -> None:
        """Let go of all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


def text_fields(rows: Rows, context: int) -> dict[str, np.ndarray]:
    """What a batch has besides its pictures."""
    tokens, group = pad_groups(rows.tokens, rows.start, rows.length, context)
    fields = {name: getattr(rows, name) for name in ("uid", "picture", "caption", "label")}
    return fields | {"text": tokens} | ({} if group is None else {"group": group})


@dataclass(slots=True)
class _Pending:
    """A batch on its way: where each of its pictures is going to lie."""

    rows: Rows
    of_picture: np.ndarray  # (B,)
    slot: np.ndarray  # (P,) place in the cache, or -1
    own: np.ndarray  # (P, S, S, 3) for pictures that the cache has no room for; else empty
    good: np.ndarray  # (P,) bool, for those outside the cache
    work: list[Future[None]]


class Loader:
    """Gives batch after batch; `wait_s` is how long the trainer stood waiting for them."""

    def __init__(self, order: Order, *, size: int, threads: int, cache_mb: int, context: int) -> None:
        """size: side of the pictures, pixels. context: most tokens of a caption."""
        self.order, self.size, self.context = order, size, context
        self._tars = Tars([order.source.tar(number) for number in range(len(order.source.tables))])
        self._pool = ThreadPoolExecutor(threads)
        room = min(cache_mb * 1_000_000 // (size * size * 3), order.samples)
        self._cache = np.empty((room, size, size, 3), np.uint8)  # costs memory only where it is written
        self._cache_good = np.zeros(room, bool)
        self._slots: dict[int, int] = {}  # by the picture's number
        self.wait_s = 0.0
        self.undecodable: set[int] = set()  # uids of pairs that were not valid because of their picture

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (exclusive), each the same whenever and wherever it is asked for."""
        pending: deque[_Pending] = deque()
        for number in range(start, stop):
            while len(pending) < AHEAD and number + len(pending) < stop:
                pending.append(self._submit(self.order[number + len(pending)]))
            begun = time.perf_counter()
            batch = self._finish(pending.popleft())
            self.wait_s += time.perf_counter() - begun
            yield batch

    def _submit(self, rows: Rows) -> _Pending:
        _, first, of_picture = np.unique(rows.picture, return_index=True, return_inverse=True)
        slot, fresh = self._assign(rows, first)
        own = np.empty((int((slot < 0).sum()), self.size, self.size, 3), np.uint8)
        pending = _Pending(rows, of_picture.reshape(-1), slot, own, np.zeros(len(own), bool), [])
        outside = np.cumsum(slot < 0) - 1
        jobs = [(index, slot[i], outside[i]) for i, index in enumerate(first) if fresh[i]]
        jobs.sort(key=lambda job: (rows.tar[job[0]], rows.offset[job[0]]))
        for at in range(0, len(jobs), CHUNK):
            files = [self._tars[int(rows.tar[index])] for index, _, _ in jobs[at : at + CHUNK]]
            pending.work.append(self._pool.submit(self._decode, pending, jobs[at : at + CHUNK], files))
        return pending

    def _assign(self, rows: Rows, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cache slot of each picture (-1 where there is no room), and whether it must be decoded."""
        slot, fresh = np.full(len(first), -1), np.ones(len(first), bool)
        for i, index in enumerate(first):
            picture = int(rows.picture[index])
            known = self._slots.get(picture)
            if known is not None:
                slot[i], fresh[i] = known, False
            elif len(self._slots) < len(self._cache):
                slot[i] = self._slots[picture] = len(self._slots)
        return slot, fresh

    def _decode(self, pending: _Pending, jobs: list[tuple[int, int, int]], files: list[BinaryIO]) -> None:
        rows = pending.rows
        places = [(int(rows.offset[index]), int(rows.size[index])) for index, _, _ in jobs]
        for (_, slot, outside), data in zip(jobs, read_all(files, places), strict=True):
            if slot >= 0:
                self._cache_good[slot] = decode_square(data, self._cache[slot])
            else:
                pending.good[outside] = decode_square(data, pending.own[outside])

    def _finish(self, pending: _Pending) -> Batch:
        for work in pending.work:
            work.result()
        cached = pending.slot >= 0
        pictures = np.empty((len(cached), self.size, self.size, 3), np.uint8)
        pictures[cached], pictures[~cached] = self._cache[pending.slot[cached]], pending.own
        good = np.empty(len(cached), bool)
        good[cached], good[~cached] = self._cache_good[pending.slot[cached]], pending.good
        pictures[~good] = 0
        valid = good[pending.of_picture]
        self.undecodable.update(pending.rows.uid[~valid].tolist())
        return self._batch(pending.rows, pictures, pending.of_picture, valid)

    def _batch(self, rows: Rows, pictures: np.ndarray, of_picture: np.ndarray, valid: np.ndarray) -> Batch:
        fields = text_fields(rows, self.context) | {"image": pictures, "valid": valid}
        shared = {"image": torch.from_numpy(of_picture.astype(np.int64))}
        lengths = {"text": np.minimum(rows.length, self.context)}
        return Batch({name: torch.from_numpy(value) for name, value in fields.items()}, shared, lengths)

    def close(self) -> None:
        """Stop the threads, close the files."""
        self._pool.shutdown(cancel_futures=True)
        self._tars.close()
        self.order.close()
