"""Pictures from tars into a ring: the work of one thread or process that decodes.

Imports neither torch nor pyarrow, so that a process of it starts in a quarter of a second.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, PairmillError, may_pass
from ..shards.files import open_file
from ..shards.tar import read_all
from .pictures import decode_square
from .ring import BAD, GOOD, KNOWN, OFFSET, PLACE, SIZE, TAR, WAITING, WORKING, Ring, Shape

OPEN_FILES = 256
COPIED = 4 << 30  # bytes of tars of an object store that are copied to the disk; others are read by ranges


class Tars:
    """Open tars by their numbers, at most OPEN_FILES of them; many threads may read."""

    def __init__(self, paths: Mapping[int, Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, members: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """The bytes of members, each (tar, offset, size); those of one tar are asked for together.

        Raises ShardError where they are not there, DataError without the tar.
        """
        return read_all(
            [self._file(tar) for tar, _, _ in members], [(offset, size) for _, offset, size in members]
        )

    def _file(self, tar: int) -> BinaryIO:
        """The open file of a tar; a reader keeps the one that it was given."""
        with self._lock:
            if tar not in self._open:
                while len(self._open) >= OPEN_FILES:
                    self._open.popitem(last=False)  # closed when its last reader lets it go
                most = COPIED // OPEN_FILES if len(self.paths) <= OPEN_FILES else 0
                self._open[tar] = self._opened(self.paths[tar], most)
            self._open.move_to_end(tar)
            return self._open[tar]

    @staticmethod
    def _opened(path: Path, most: int) -> BinaryIO:
        try:
            return open_file(path, most=most)
        except OSError as error:
            if may_pass(error):
                raise
            raise DataError(f"{path}: {error.strerror}: the shard's table names it") from error

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            for file in self._open.values():
                file.close()
            self._open.clear()


def decode_jobs(ring: Ring, slot: int, span: slice, tars: Tars) -> None:
    """Do the jobs of a span that are not done: each picture gets its pixels, or zeros, and its state.

    A picture that is worked at has the state WORKING, so that it is known if this process dies of it.
    """
    fields = ring.slots[slot]
    image, state = fields["image"], fields["state"]
    jobs = [job for job in fields["jobs"][span].tolist() if state[job[PLACE]] == WAITING]
    found = iter(tars.read([(job[TAR], job[OFFSET], job[SIZE]) for job in jobs if not job[KNOWN]]))
    for place, _, _, _, kept, known in jobs:
        state[place] = WORKING
        if known:
            image[place] = ring.kept[kept]
            state[place] = ring.kept_state[kept]
            continue
        good = decode_square(next(found), image[place])
        if not good:
            image[place] = 0
        state[place] = GOOD if good else BAD
        if kept >= 0:
            ring.kept[kept] = image[place]
            ring.kept_state[kept] = state[place]


def main() -> None:
    """Decode what the feeder asks for, until it closes the channel or is gone."""
    channel, memory = Connection(int(sys.argv[1])), int(sys.argv[2])
    shape: Shape = channel.recv()
    ring, paths = Ring(shape, memory), dict[int, Path]()
    tars = Tars(paths)
    while True:
        try:
            slot, span, more = channel.recv()
        except (EOFError, OSError):
            os._exit(0)  # at once: there is nothing to put away
        paths.update(more)
        answer: Exception | None = None
        try:
            decode_jobs(ring, slot, span, tars)
        except (PairmillError, OSError) as error:
            answer = error
        try:
            channel.send(answer)
        except OSError:  # the feeder is gone
            os._exit(1)
