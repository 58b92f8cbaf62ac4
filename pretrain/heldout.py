"""Held-out sets: folders of tars in the convention of WebDataset; no sidecar and no manifest is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from ..errors import ConfigError
from ..shards.tar import members, read_at
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


def read_held_out(compared: Comparison, folder: Path, *, need: str) -> HeldOut:
    """The samples of all tars in a folder that bear a picture and a `need` member, pictures embedded.

    Pictures that cannot be decoded are left out. Raises ConfigError where nothing is left.
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

    for data, sample in _samples(folder):
        if need not in sample:
            continue
        name = xxhash.xxh3_128_digest(data)
        if name not in known:
            pixels = np.zeros((model.image_size, model.image_size, 3), np.uint8)
            if not decode_square(data, pixels):
                continue
            known[name] = len(known)
            waiting.append(pixels)
        held.of_picture.append(known[name])
        held.samples.append(sample)
        if len(waiting) == BATCH:
            flush()
    flush()
    if not held.samples:
        raise ConfigError(f"{folder}: no tar there with samples of a picture and .{need}")
    held.pictures = np.concatenate(embedded)
    return held


def _samples(folder: Path) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    """(picture, other members by suffix) of every sample: neighbours in a tar that share a key."""
    for path in sorted(folder.glob("*.tar")):
        with open(path, "rb") as file:
            key, sample = "", {}
            for member in members(path):
                if member.stem != key:
                    yield from _whole(sample)
                    key, sample = member.stem, {}
                sample[member.suffix] = read_at(file, member.offset, member.size)
            yield from _whole(sample)


def _whole(sample: dict[str, bytes]) -> Iterator[tuple[bytes, dict[str, bytes]]]:
    picture = next((suffix for suffix in PICTURES if suffix in sample), None)
    if picture is not None:
        yield sample[picture], {suffix: data for suffix, data in sample.items() if suffix != picture}
