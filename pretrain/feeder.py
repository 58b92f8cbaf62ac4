"""Fills a ring with batches: which pairs are in them, their tokens, their pictures decoded by a pool.

It runs within the training process where there is little to decode, else in a process of its own, so that
neither its Python nor the decoders' stands in the way of the training thread. The batches are the same.
Imports no torch, so that such a process starts in half a second.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from .crew import Crew
from .decoding import Tars, decode_jobs
from .ring import GOOD, KEPT, KNOWN, OFFSET, PLACE, SIZE, TAR, WAITING, Ring, Shape
from .samples import Rows
from .share import AnyOrder
from .tokenizer import pad_groups

CHUNK = 32  # pictures decoded by one call of a thread, at most; fewer where a batch has few for each thread
SWITCH_S = 0.0005  # a thread that has the next work for a decoder does not wait for one that makes tokens
COPIES = 256  # the same where they are only copied

Work = Callable[[int, slice], None]  # does a span of a slot's jobs; called by several threads
Free = queue.SimpleQueue[int]  # slots that nobody reads any more


@dataclass(frozen=True, slots=True)
class Filled:
    """A slot that holds a batch."""

    slot: int
    pairs: int
    pictures: int
    tokens: int  # length of the rows of `text`
    grouped: bool
    lost: list[int]  # uids of pairs whose picture could not be decoded


@dataclass(frozen=True, slots=True)
class Request:
    """What a feeder's process is started with."""

    order: AnyOrder
    shape: Shape
    threads: int
    start: int
    stop: int


@dataclass(slots=True)
class _Pending:
    slot: int
    rows: Rows
    pictures: int
    tokens: int
    grouped: bool
    kept: np.ndarray  # places among the kept pictures that this batch fills
    work: list[Future[None]]

    def done(self) -> bool:
        return all(work.done() for work in self.work)


class Feeder:
    """Gives slot after slot of a ring, filled."""

    def __init__(self, order: AnyOrder, ring: Ring, work: Work, threads: int) -> None:
        self.order, self.ring, self._work = order, ring, work
        self._pool, self._threads = ThreadPoolExecutor(threads), threads
        self._kept: dict[tuple[int, int], int] = {}  # place among the kept by tar and offset
        self._there = np.zeros(ring.shape.cached, bool)  # whose batch is finished

    def feed(self, start: int, stop: int, free: Free) -> Iterator[Filled]:
        """Batches `start` to `stop` (exclusive), in their order, as slots become free."""
        pending: deque[_Pending] = deque()
        number = start
        while pending or number < stop:
            while number < stop and not (pending and pending[0].done()):
                slot = _next(free, wait=not pending)
                if slot is None:
                    break
                pending.append(self._begin(self.order[number], slot))
                number += 1
            yield self._finish(pending.popleft())

    def _begin(self, rows: Rows, slot: int) -> _Pending:
        fields = self.ring.slots[slot]
        _, first, of_picture = np.unique(rows.picture, return_index=True, return_inverse=True)
        given = text_fields(rows, self.ring.shape.context) | {"of_picture": of_picture.reshape(-1)}
        given |= {"length": np.minimum(rows.length, self.ring.shape.context)}
        for name, value in given.items():
            fields[name][: value.size] = value.reshape(-1)
        jobs = np.empty((len(first), fields["jobs"].shape[1]), np.int64)
        jobs[:, PLACE] = np.arange(len(first))
        for column, name in ((TAR, "tar"), (OFFSET, "offset"), (SIZE, "size")):
            jobs[:, column] = getattr(rows, name)[first]
        kept = self._assign(jobs)
        jobs = jobs[np.lexsort((jobs[:, OFFSET], jobs[:, TAR], jobs[:, KNOWN]))]
        fields["jobs"][: len(jobs)] = jobs
        fields["state"][: len(jobs)] = WAITING
        anew = int((jobs[:, KNOWN] == 0).sum())
        chunk = min(CHUNK, -(-anew // (4 * self._threads)))
        spans = [slice(at, min(at + chunk, anew)) for at in range(0, anew, max(1, chunk))]
        spans += [slice(at, min(at + COPIES, len(jobs))) for at in range(anew, len(jobs), COPIES)]
        work = [self._pool.submit(self._work, slot, span) for span in spans]
        tokens = given["text"].size // len(rows)
        return _Pending(slot, rows, len(first), tokens, "group" in given, kept, work)

    def _assign(self, jobs: np.ndarray) -> np.ndarray:
        """Say of each job which kept picture it copies or fills; returns those that are filled.

        A picture that another batch is just filling is decoded here again: nobody waits. Kept is what lies at
        one place, for near-copies are one picture to a batch, which shows the copy of its own first pair: no
        pixel may depend on what happens to be kept by now.
        """
        jobs[:, KEPT], jobs[:, KNOWN] = -1, 0
        room = self.ring.shape.cached
        if not room:
            return np.empty(0, np.int64)
        for job, place in enumerate(zip(jobs[:, TAR].tolist(), jobs[:, OFFSET].tolist(), strict=True)):
            kept = self._kept.get(place)
            if kept is None:
                if len(self._kept) < room:
                    jobs[job, KEPT] = self._kept[place] = len(self._kept)
            elif self._there[kept]:
                jobs[job, KEPT], jobs[job, KNOWN] = kept, 1
        return jobs[(jobs[:, KEPT] >= 0) & (jobs[:, KNOWN] == 0), KEPT]

    def _finish(self, pending: _Pending) -> Filled:
        for work in pending.work:
            work.result()
        self._there[pending.kept] = True
        fields, pairs = self.ring.slots[pending.slot], len(pending.rows)
        valid = fields["state"][fields["of_picture"][:pairs]] == GOOD
        fields["valid"][:pairs] = valid
        lost = pending.rows.uid[~valid].tolist()
        return Filled(pending.slot, pairs, pending.pictures, pending.tokens, pending.grouped, lost)

    def close(self) -> None:
        """Stop the threads; work that is begun is ended."""
        self._pool.shutdown(cancel_futures=True)


def _next(free: Free, *, wait: bool) -> int | None:
    try:
        return free.get(block=wait)
    except queue.Empty:
        return None


def text_fields(rows: Rows, context: int) -> dict[str, np.ndarray]:
    """What a batch has besides its pictures."""
    text, group = pad_groups(rows.tokens, rows.start, rows.length, context)
    fields = {name: getattr(rows, name) for name in ("uid", "picture", "caption", "label")}
    return fields | {"text": text} | ({} if group is None else {"group": group})


def local_work(ring: Ring, tars: Tars) -> Work:
    """Decoding in this process."""
    return partial(_decode_here, ring, tars)


def _decode_here(ring: Ring, tars: Tars, slot: int, span: slice) -> None:
    decode_jobs(ring, slot, span, tars)


def tar_paths(order: AnyOrder) -> list[Path]:
    """The tars of an order's source, by their numbers."""
    return [order.source.tar(number) for number in range(len(order.source.tables))]


def main() -> None:
    """Feed the process at the other end of the channel until it closes it, or is gone."""
    sys.setswitchinterval(SWITCH_S)
    channel, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    shape: Shape = channel.recv()
    ring = Ring(shape, memory)
    crew: Crew | None = None
    request: Request | None = None
    try:
        request = channel.recv()
        assert request is not None
        free: Free = queue.SimpleQueue()
        for slot in range(shape.slots):
            free.put(slot)
        tars = tar_paths(request.order)
        if request.threads > 1:
            crew = Crew(ring, memory, tars, request.threads)
        work = crew or local_work(ring, Tars(dict(enumerate(tars))))
        feeder = Feeder(request.order, ring, work, request.threads)
        threading.Thread(target=_listen, args=(channel, free, crew), daemon=True).start()
        for filled in feeder.feed(request.start, request.stop, free):
            channel.send(filled)
        threading.Event().wait()  # what was sent is still read; the listener ends this process
    except Exception as error:  # noqa: BLE001  told to who waits for batches
        _tell(channel, error)
    if crew is not None:
        crew.close()
    os._exit(1)


def _tell(channel: Connection, error: Exception) -> None:
    try:
        channel.send(error)
    except OSError:
        os._exit(1)  # nobody is there to be told
    except Exception:  # noqa: BLE001  an error that cannot be sent: its words can
        channel.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _listen(channel: Connection, free: Free, crew: Crew | None) -> None:
    """Take back slots; end this process and its decoders when the channel is closed."""
    try:
        while True:
            free.put(channel.recv())
    except (EOFError, OSError):
        if crew is not None:
            crew.close()
        os._exit(0)
