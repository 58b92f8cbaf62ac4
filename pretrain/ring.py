"""A ring of reused batches in one piece of memory, which several processes fill and one reads.

Pages are touched once, and a batch is never copied on its way from the decoders. Imports numpy alone.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

PAGE = 4096
WAITING, WORKING, GOOD, BAD = range(4)  # states of a picture's place
PLACE, TAR, OFFSET, SIZE, KEPT, KNOWN = range(6)  # columns of a job: see `Ring.slots`
NUMBERS = ("uid", "picture", "caption", "label", "length", "of_picture")  # int64 fields, one for each pair

Slot = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Shape:
    """How large everything is."""

    slots: int
    batch: int  # pairs
    side: int  # of a picture, pixels
    context: int  # tokens of a caption
    cached: int  # pictures that are kept beside the ring

    def fields(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """What a slot holds: dtype and shape by name."""
        batch, side = self.batch, self.side
        numbers: dict[str, tuple[type, tuple[int, ...]]] = {name: (np.int64, (batch,)) for name in NUMBERS}
        return numbers | {
            "image": (np.uint8, (batch, side, side, 3)),
            "state": (np.uint8, (batch,)),
            "valid": (np.bool_, (batch,)),
            "jobs": (np.int64, (batch, 6)),
            "text": (np.int64, (batch * self.context,)),
            "group": (np.int64, (batch * self.context,)),
        }

    @property
    def slot_bytes(self) -> int:
        """Of one slot, each field on pages of its own."""
        return sum(_pages(kind, shape) for kind, shape in self.fields().values())

    @property
    def ring_bytes(self) -> int:
        """Of all slots, at the beginning of the memory."""
        return self.slots * self.slot_bytes

    @property
    def total_bytes(self) -> int:
        """With the pictures that are kept, and their states."""
        kept = (self.cached, self.side, self.side, 3)
        return self.ring_bytes + _pages(np.uint8, kept) + _pages(np.uint8, (self.cached,))


def _pages(kind: type, shape: tuple[int, ...]) -> int:
    size = prod(shape) * np.dtype(kind).itemsize
    return -(-size // PAGE) * PAGE


def open_memory(size: int) -> int:
    """A file descriptor of `size` bytes of memory without a name, to be closed; zeros, until written."""
    if sys.platform == "linux":
        memory = os.memfd_create("pairmill-ring")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, size)
    return memory


class Ring:
    """The memory's arrays.

    `slots`: by the name of a field as `Shape.fields` has them; `jobs` are what is to be decoded: the place
    in `image`, the tar's number, offset and size in it, the place among the kept pictures (or -1), and
    whether it is copied from there.
    `kept`, `kept_state`: pictures that a later batch may copy.
    """

    def __init__(self, shape: Shape, memory: int = -1) -> None:
        """memory: a descriptor that `open_memory` gave; else memory of this process alone."""
        self.shape = shape
        whole = np.frombuffer(mmap.mmap(memory, max(1, shape.total_bytes)), np.uint8)
        self.bytes = whole[: shape.ring_bytes]
        self.slots: list[Slot] = []
        at = 0
        for _ in range(shape.slots):
            slot = {}
            for name, (kind, length) in shape.fields().items():
                slot[name], at = _view(whole, at, kind, length)
            self.slots.append(slot)
        self.kept, at = _view(whole, at, np.uint8, (shape.cached, shape.side, shape.side, 3))
        self.kept_state, at = _view(whole, at, np.uint8, (shape.cached,))


def _view(whole: np.ndarray, at: int, kind: type, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    size = prod(shape) * np.dtype(kind).itemsize
    return whole[at : at + size].view(kind).reshape(shape), at + _pages(kind, shape)
