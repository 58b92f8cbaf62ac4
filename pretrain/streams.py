"""Filled slots of a ring, fed from threads of this process or from a process of its own."""

from __future__ import annotations

import os
import pickle
import queue
from typing import Protocol

from ..errors import DataError
from .crew import Process
from .decoding import Tars
from .feeder import Feeder, Filled, Free, Request, local_work, tar_paths
from .ring import Ring, open_memory

FEEDER = "pairmill.pretrain.feeder"


class FeederLostError(DataError):
    """The feeder's process ended by itself."""


class Stream(Protocol):
    """Filled slots of a ring, one after the other."""

    ring: Ring

    def take(self) -> Filled:
        """The next one; waits for it."""
        ...

    def ready(self) -> bool:
        """Whether `take` is known not to wait."""
        ...

    def release(self, slot: int) -> None:
        """Let a slot be filled anew."""
        ...

    def close(self) -> None:
        """End what fills them."""
        ...


class Here:
    """Fed by threads of this process."""

    def __init__(self, request: Request) -> None:
        self.ring = Ring(request.shape)
        self._tars = Tars(dict(enumerate(tar_paths(request.order))))
        work = local_work(self.ring, self._tars)
        self._feeder = Feeder(request.order, self.ring, work, request.threads)
        self._free: Free = queue.SimpleQueue()
        for slot in range(request.shape.slots):
            self._free.put(slot)
        self._filled = self._feeder.feed(request.start, request.stop, self._free)

    def take(self) -> Filled:
        """The next one; waits for it."""
        return next(self._filled)

    def ready(self) -> bool:
        """Not known: the next one is made in `take`."""
        return False

    def release(self, slot: int) -> None:
        """Let a slot be filled anew."""
        self._free.put(slot)

    def close(self) -> None:
        """Stop the threads, close the files."""
        self._feeder.close()
        self._tars.close()


class Elsewhere:
    """Fed by a process, which has decoding processes where the request names more threads than one."""

    def __init__(self, request: Request) -> None:
        """Raises what pickle does for an order that cannot be sent."""
        sent = pickle.dumps(request)
        memory = open_memory(request.shape.total_bytes)
        try:
            self.process = Process(FEEDER, memory)
            self.process.channel.send(request.shape)
            self.process.channel.send_bytes(sent)
            self.ring = Ring(request.shape, memory)
        finally:
            os.close(memory)

    def take(self) -> Filled:
        """The next one; waits for it. Raises what the feeder did; FeederLostError where it is gone."""
        try:
            found = self.process.channel.recv()
        except (EOFError, OSError) as error:
            raise FeederLostError(f"the loader's process ended: status {self.process.ended()}") from error
        if isinstance(found, Exception):
            raise found
        return found

    def ready(self) -> bool:
        """Whether a message is there."""
        return self.process.channel.poll()

    def release(self, slot: int) -> None:
        """Let a slot be filled anew."""
        try:
            self.process.channel.send(slot)
        except OSError:  # it is gone: the next `take` says so
            return

    def close(self) -> None:
        """End the process and its own."""
        self.process.close()
