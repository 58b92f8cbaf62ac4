"""Shards to measure with: real photos and captions where PAIRMILL_DATA has them, else made ones.

What is written depends on the numbers asked for alone, however many processes write it.
"""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pairmill.shards.commit import write_table
from pairmill.shards.schema import SIDECAR, make_uid
from pairmill.shards.tar import TarWriter

WORDS = ["red", "blue", "green", "old", "new", "small", "large", "dog", "cat", "house", "tree", "river"]
PHOTOS = Path("photos") / "photos.tar"
CAPTIONS = Path("flickr8k") / "captions.en.tsv"
MARGIN = 64  # pixels by which a photo is larger than the pictures cut from it


def real(part: Path) -> Path | None:
    """A file of PAIRMILL_DATA, where that is set and holds it."""
    folder = os.environ.get("PAIRMILL_DATA")
    path = Path(folder or "") / part
    return path if folder and path.is_file() else None


def contents() -> dict[str, str]:
    """What the shards are made of, for a result line."""
    pictures = "photos" if real(PHOTOS) else "made of noise"
    return {"pictures": pictures, "captions": "Flickr8k" if real(CAPTIONS) else "made of words"}


def make_shards(folder: Path, samples: int, side: int, *, per_shard: int = 1000, processes: int = 1) -> None:
    """Tars of `per_shard` JPEGs of `side` pixels with captions, and their sidecars, from a seed."""
    folder.mkdir(parents=True)
    jobs = [
        (folder, number, start, min(samples, start + per_shard), side)
        for number, start in enumerate(range(0, samples, per_shard))
    ]
    if processes == 1:
        for job in jobs:
            _make_shard(*job)
        return
    with ProcessPoolExecutor(processes) as pool:
        for done in [pool.submit(_make_shard, *job) for job in jobs]:
            done.result()


def _make_shard(folder: Path, number: int, start: int, stop: int, side: int) -> None:
    rng = np.random.default_rng(number)
    rows = []
    with TarWriter(folder / f"{number:05d}.tar") as tar:
        for sample in range(start, stop):
            data, caption = _jpeg(rng, side), _caption(rng)
            uid = make_uid(str(sample), caption)
            offset = tar.add(f"{uid.hex()}.jpg", data)
            tar.add(f"{uid.hex()}.txt", caption.encode())
            row = {"uid": uid, "key": uid.hex(), "url": str(sample), "caption": caption}
            rows.append({**row, "offset": offset, "size": len(data)})
    write_table(pa.Table.from_pylist(rows, schema=SIDECAR), folder / f"{number:05d}.parquet")


def _jpeg(rng: np.random.Generator, side: int) -> bytes:
    """A square cut at random from a photo, or eight by eight random colours made smooth."""
    photos = _photos(side)
    if photos:
        photo = photos[rng.integers(len(photos))]
        left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
        picture = photo.crop((left, top, left + side, top + side))
    else:
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        picture = small.resize((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


@lru_cache(1)
def _photos(side: int) -> list[Image.Image]:
    """The photos, each with its shorter side a little longer than `side`."""
    path = real(PHOTOS)
    if path is None:
        return []
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                photo = Image.open(file).convert("RGB")
                factor = (side + MARGIN) / min(photo.size)
                size = (round(photo.width * factor), round(photo.height * factor))
                found.append(photo.resize(size, Image.Resampling.BICUBIC))
    return found


@lru_cache(1)
def _captions() -> list[str]:
    path = real(CAPTIONS)
    if path is None:
        return []
    return [line.split("\t")[2] for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def _caption(rng: np.random.Generator) -> str:
    """A real one; else 4 to 16 words."""
    captions = _captions()
    if captions:
        return captions[rng.integers(len(captions))]
    return " ".join(rng.choice(WORDS, rng.integers(4, 17)))
