"""Several processes that train one model: how they meet, what they must agree on, and who is missed.

torchrun (or whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts them. Rank 0 does what one
process would; the others wait for its word and take their share of every step. Each tells the others that it
lives, by a thread, through a store that rank 0 keeps; one that is silent, or says why it ends, ends them all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ..errors import DataError, PairmillError
from ..progress import note
from .objectives import ranks

BEAT_S = 1.0
SILENT_S = 30.0  # a process that is busy, or swapped out, is silent for some seconds at times
MISSED_S = 6.0  # the same where a message to it could not be sent
AGAIN = "start all of them again, they go on from here"
COLLECTIVES = timedelta(hours=12)  # rank 0 evaluates alone meanwhile; who is gone is found by the beats

Job = Callable[..., Any]


class RankGroup:
    """The processes of one training, as one of them sees them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT."""
        self.rank, self.size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=COLLECTIVES)
        self._ended, self._broken = threading.Event(), threading.Event()
        self._store = self._own_store(environment["MASTER_ADDR"])
        self._store.set(f"beat/{self.rank}", "0")
        dist.barrier()
        self._watch = threading.Thread(target=self._follow_beats, daemon=True)
        self._watch.start()

    def _own_store(self, host: str) -> TCPStore:
        """Kept by rank 0, for the beats alone."""
        wait = timedelta(seconds=10)
        port: list[int] = [0]
        store = None
        if self.rank == 0:
            store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
            port = [store.port]
        dist.broadcast_object_list(port, src=0)
        return store or TCPStore(host, port[0], is_master=False, wait_for_workers=False, timeout=wait)

    def _follow_beats(self) -> None:
        """Beat, and see to the others; whoever is silent too long ends this process."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        heard = {rank: ("", time.monotonic()) for rank in others}
        number = 0
        while not self._ended.wait(BEAT_S):
            number += 1
            try:
                self._store.set(f"beat/{self.rank}", str(number))
                for rank in others:
                    beat = self._store.get(f"beat/{rank}").decode()
                    if beat.startswith("failed"):
                        self._end(f"rank {rank} ended: {beat.removeprefix('failed ')}")
                    if beat != heard[rank][0]:
                        heard[rank] = beat, time.monotonic()
            except (dist.DistError, RuntimeError, OSError):  # the store went with the one who kept it
                time.sleep(BEAT_S)
                if not self._ended.is_set():
                    self._end(f"rank 0 is gone: killed, or its machine off; {AGAIN}")
            limit = MISSED_S if self._broken.is_set() else SILENT_S
            for rank, (beat, at) in heard.items():
                if beat != "left" and time.monotonic() - at > limit:
                    self._end(
                        f"rank {rank} is gone: silent for {limit:.0f} s, killed or its machine off; {AGAIN}"
                    )

    def _end(self, said: str) -> None:
        """The main thread may wait for a message that will never come: nothing but this ends it."""
        if self._ended.is_set():
            return
        note(f"error: {said} (said by rank {self.rank})")
        os._exit(1)

    def dismiss(self) -> None:
        """Rank 0 has no more for the others to do."""
        dist.broadcast_object_list([None], src=0)

    def follow(self, work: Job) -> int:
        """Do what rank 0 hands over, until there is no more. Returns the exit code."""
        while True:
            box: list[Any] = [None]
            dist.broadcast_object_list(box, src=0)
            if box[0] is None:
                return 0
            work(*box[0])

    def say_failed(self, said: str) -> None:
        """Tell the others why this rank ends; they end too."""
        self._ended.set()
        self._watch.join(3 * BEAT_S)
        with suppress(RuntimeError):  # the store is gone with rank 0
            self._store.set(f"beat/{self.rank}", f"failed {said}")
        if self.rank == 0:
            time.sleep(4 * BEAT_S)  # the store goes with this process: let them read it

    def look_who_is_gone(self) -> None:
        """A message could not be sent: the beats will tell who is gone, and end this process."""
        self._broken.set()
        time.sleep(MISSED_S + SILENT_S)

    def leave(self) -> None:
        """All is done, on every rank."""
        dist.barrier()
        self._ended.set()
        self._watch.join(3 * BEAT_S)
        dist.barrier()  # or the store would be gone while another still looks
        dist.destroy_process_group()


_group: RankGroup | None = None  # of this process


@contextmanager
def joined(environment: Mapping[str, str]) -> Iterator[RankGroup]:
    """Meet the others; left together once all is done."""
    global _group  # one for each process, as torch.distributed has it
    _group = RankGroup(environment)
    try:
        yield _group
        _group.leave()
    finally:
        _group = None


@contextmanager
def reported() -> Iterator[None]:
    """Within it a failure is told to the other ranks, and a message that could not be sent is looked into."""
    try:
        yield
    except BaseException as error:
        if _group is not None:
            words = ("gloo", "nccl", "connection closed", "connection reset")
            if isinstance(error, dist.DistError | RuntimeError) and any(
                w in str(error).lower() for w in words
            ):
                _group.look_who_is_gone()
            said = str(error) if isinstance(error, PairmillError) else f"{type(error).__name__}: {error}"
            _group.say_failed(said)
        raise


def share_job(job: tuple[Any, ...]) -> None:
    """On rank 0: let the others do it too. They are in `follow`; alone there is nobody to tell."""
    if ranks.size() > 1 and ranks.rank() == 0:
        dist.broadcast_object_list([job], src=0)


def agreed(what: str, value: Any) -> None:
    """Raises DataError on every rank where they do not all have the same `value`, named `what`."""
    if ranks.size() == 1:
        return
    found: list[Any] = [None] * ranks.size()
    dist.all_gather_object(found, value)
    others = [rank for rank, one in enumerate(found) if one != found[0]]
    if others:
        names = ", ".join(map(str, others))
        raise DataError(
            f"rank {names}: {what} is not that of rank 0 ({found[others[0]]!r}, there {found[0]!r}): every"
            " rank must read the same files; give them one folder that all machines see"
        )


def by_first_rank(value: Any) -> Any:
    """What rank 0 gives."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def together(values: set[int]) -> set[int]:
    """The union over the ranks."""
    if ranks.size() == 1:
        return values
    found: list[Any] = [None] * ranks.size()
    dist.all_gather_object(found, values)
    return set().union(*found)


def first_rank_first() -> Iterator[bool]:
    """One turn of a loop: on rank 0 before the others, who then find what it wrote.

    Yields whether this is rank 0.
    """
    many, first = ranks.size() > 1, ranks.rank() == 0
    if many and not first:
        dist.barrier()
    yield first
    if many and first:
        dist.barrier()
