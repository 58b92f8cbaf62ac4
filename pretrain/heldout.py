"""Held-out sets: folders of tars in the convention of WebDataset; no sidecar and no manifest is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from ..errors import DataError
from ..shards.files import open_file
from ..shards.samples import by_key
from ..shards.tar import Member, read_at
from .compare import Comparison
from .pictures import decode_square

PICTURES = ("jpg", "jpeg", "png", "webp")
BATCH = 256


@dataclass(slots=True)
class HeldOut:
    """A held-out set: distinct pictures as embeddings, and what else the samples bear."""

    pictures: np.ndarray  # (P, D) float32 unit rows, or (P, T, D) where the model compares tokens
    of_picture: list[int] = field(default_factory=list)  # for each sample
    samples: list[dict[str, bytes]] = field(default_factory=list)  # members but the picture, by suffix
    undecodable: int = 0  # samples left out because their picture cannot be decoded

    @property
    def lost(self) -> dict[str, int]:
        """What to say beside a measure of samples that were left out; nothing where none was."""
        return {"undecodable": self.undecodable} if self.undecodable else {}


def read_held_out(compared: Comparison, folder: Path, *, need: str) -> HeldOut:
    """The samples of all tars in a folder that bear a picture and a `need` member, pictures embedded.

    Samples whose picture cannot be decoded are left out and counted. Raises DataError where none is left.
    """
    model = compared.model
    held = HeldOut(np.empty((0, model.dimension), np.float32))
    known: dict[bytes, int] = {}
    embedded: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        if waiting:
            embedded.append(compared.pictures(np.stack(waiting)))
            waiting.clear()

    for file, picture, others in _samples(folder, need):
        data = read_at(file, picture.offset, picture.size)
        name = xxhash.xxh3_128_digest(data)
        if name not in known:
            pixels = np.zeros((model.image_size, model.image_size, 3), np.uint8)
            if not decode_square(data, pixels):
                held.undecodable += 1
                continue
            known[name] = len(known)
            waiting.append(pixels)
        held.of_picture.append(known[name])
        held.samples.append(
            {suffix: read_at(file, member.offset, member.size) for suffix, member in others.items()}
        )
        if len(waiting) == BATCH:
            flush()
    flush()
    if not held.samples:
        raise _nothing(folder, need)
    held.pictures = np.concatenate(embedded)
    return held


def read_needed(folder: Path, *, need: str) -> list[bytes]:
    """The `need` member of every sample that bears a picture; of the pictures only the headers are read.

    Raises DataError where there is none.
    """
    found = [
        read_at(file, others[need].offset, others[need].size) for file, _, others in _samples(folder, need)
    ]
    if not found:
        raise _nothing(folder, need)
    return found


def _nothing(folder: Path, need: str) -> DataError:
    return DataError(f"{folder}: no tar there with samples of a picture and .{need}")


def _samples(folder: Path, need: str) -> Iterator[tuple[BinaryIO, Member, dict[str, Member]]]:
    """(tar, picture, other members by suffix) of every sample, the members of a tar that share a key,
    with a picture and a `need` member."""
    for path in sorted(folder.glob("*.tar")):
        with open_file(path, ahead=True) as file:
            for _, members in by_key(path):
                found = {member.suffix: member for member in members if not member.problem}
                picture = next((suffix for suffix in PICTURES if suffix in found), None)
                if picture is not None and need in found:
                    yield file, found.pop(picture), found
