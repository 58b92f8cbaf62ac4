"""Decoding processes: started, given work, and started anew where a picture kills one."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from ..errors import DataError
from .ring import BAD, KEPT, OFFSET, PLACE, TAR, WAITING, WORKING, Ring

MODULE = "pairmill.pretrain.decoding"
START = "from {} import main; main()"  # and not -m, which would make a second class of each in the module
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # a decoder is one thread
    "TOKENIZERS_PARALLELISM": "true",  # which open_clip turns off where it is imported
}
TRIES = 2  # a picture at which so many processes died cannot be decoded
IDLE_DEATHS = 3  # of processes that were at no picture: they cannot run here
LAST_WORDS_S = 5.0


class Process:
    """A process of this package that is told what to do through `channel`, and ends with it."""

    def __init__(self, module: str, memory: int) -> None:
        """memory: a descriptor that it gets too."""
        ours, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(module), str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours is for results
                pass_fds=(theirs.fileno(), memory),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for who started it
            )
        self._ours = ours
        self.channel = Connection(os.dup(ours.fileno()))

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def ended(self) -> int:
        """How it ended, once it has: its exit status, or minus the signal."""
        return self._process.wait()

    def end(self) -> None:
        """Tell it to end."""
        with suppress(OSError):  # it is gone
            self._ours.shutdown(socket.SHUT_RDWR)  # holds for forked copies of it too
        self._ours.close()
        self.channel.close()

    def close(self) -> None:
        """Have it ended: by itself, else by force."""
        self.end()
        try:
            self._process.wait(LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Crew:
    """Called with a slot and a span of its jobs, from as many threads as there are processes: does them."""

    def __init__(self, ring: Ring, memory: int, tars: list[Path], count: int) -> None:
        """tars: by their numbers."""
        self.ring, self.memory, self.tars = ring, memory, tars
        self._idle: queue.SimpleQueue[_Member] = queue.SimpleQueue()
        self._deaths: dict[tuple[int, int], int] = {}  # by tar and offset
        self._idle_deaths = 0
        for _ in range(count):
            self._idle.put(_Member(ring, memory))

    def __call__(self, slot: int, span: slice) -> None:
        """Raises what the process found wrong with the tars, or DataError where none can run."""
        member = self._idle.get()
        try:
            while True:
                try:
                    answer = member.do(slot, span, self.tars)
                except (EOFError, OSError):
                    self._mourn(member, slot, span)
                    member.close()
                    member = _Member(self.ring, self.memory)
                    continue
                if answer is not None:
                    raise answer
                return
        finally:
            self._idle.put(member)

    def _mourn(self, member: _Member, slot: int, span: slice) -> None:
        """Mark the picture at which a process died: to be tried again, or undecodable."""
        fields, dropped = self.ring.slots[slot], False
        for job in fields["jobs"][span]:
            place = job[PLACE]
            if fields["state"][place] != WORKING:
                continue
            dropped, key = True, (int(job[TAR]), int(job[OFFSET]))
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] >= TRIES:
                fields["image"][place] = 0
                fields["state"][place] = BAD
                if job[KEPT] >= 0:
                    self.ring.kept[job[KEPT]], self.ring.kept_state[job[KEPT]] = 0, BAD
            else:
                fields["state"][place] = WAITING
        self._idle_deaths += not dropped
        if self._idle_deaths >= IDLE_DEATHS:
            raise DataError(
                f"{self._idle_deaths} decoding processes ended while at no picture, the last with status"
                f" {member.ended()}: see above what they said, or set training.loader_threads to 1"
            )

    def close(self) -> None:
        """End the processes that are at no job."""
        members = [self._idle.get() for _ in range(self._idle.qsize())]
        for member in members:
            member.end()
        for member in members:
            member.close()


class _Member:
    """One decoding process, and the tars whose paths it knows."""

    def __init__(self, ring: Ring, memory: int) -> None:
        self._process = Process(MODULE, memory)
        self._process.channel.send(ring.shape)
        self._ring, self._told = ring, set[int]()

    def do(self, slot: int, span: slice, tars: list[Path]) -> Exception | None:
        """Have some jobs done. Raises EOFError or OSError where the process is gone."""
        needed = set(self._ring.slots[slot]["jobs"][span][:, TAR].tolist()) - self._told
        self._process.channel.send((slot, span, {number: tars[number] for number in needed}))
        self._told |= needed
        return self._process.channel.recv()

    def ended(self) -> int:
        """How it ended."""
        return self._process.ended()

    def end(self) -> None:
        """Tell it to end."""
        self._process.end()

    def close(self) -> None:
        """Have it ended."""
        self._process.close()
