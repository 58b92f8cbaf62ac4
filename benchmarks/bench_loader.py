"""JPEG shards of 256 pixels to batches at 224: pairmill's loader beside webdataset with torch's DataLoader.

    [PAIRMILL_DATA=folder] python benchmarks/bench_loader.py [--samples 768] [--threads 1]

Rates are images per second per core: per second of CPU time of all threads and processes. Both are given
the same shards, in the same run, one after the other twice, and the better of each counts. Tokenising is
part of both. Nothing is printed unless both gave every picture, and ours are what Pillow makes of the files.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from made_shards import contents, make_shards  # pyright: ignore[reportImplicitRelativeImport]
from open_clip_loop import (  # pyright: ignore[reportImplicitRelativeImport]
    Bench,
    as_open_clip,
    peer_batches,
)
from PIL import Image

from pairmill.pretrain.samples import dataset_source, short_uids
from pairmill.pretrain.towers import TwoTowers
from pairmill.recipe import Towers

SIDE, STORED, CONTEXT = 224, 256, 77
COMPARED, MOST_APART = 32, 4.0  # pictures; mean difference of a pixel, of 255
# towers of no size: what is measured is what comes before them
EYE = Towers(image_size=SIDE, context_length=CONTEXT, vision={"channels": [8, 8, 8, 8]})


@dataclass(frozen=True)
class Rate:
    """What one way through all shards took."""

    images: int
    cpu_s: float
    wall_s: float
    first_batch_s: float
    consumer_s: float  # CPU time of the thread that takes the batches, from the first to the last of them

    def line(self) -> dict[str, float]:
        """For the result line."""
        return {
            "images_per_s_per_core": round(self.images / self.cpu_s, 1),
            "images_per_s": round(self.images / self.wall_s, 1),
            "first_batch_s": round(self.first_batch_s, 3),
            "consumer_us_per_image": round(1e6 * self.consumer_s, 2),
        }


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(batches: Callable[[], Iterator[int]]) -> Rate:
    """Time an iterator of the numbers of images in batches, with all that it starts and ends."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    counts: list[int] = []
    first_batch_s = first = last = 0.0
    for count in batches():
        last = time.thread_time()
        if not counts:
            first_batch_s, first = time.perf_counter() - wall, last
        counts.append(count)
    seconds = time.perf_counter() - wall
    consumer_s = (last - first) / max(1, sum(counts[1:]))
    return Rate(sum(counts), cpu_seconds() - cpu, seconds, first_batch_s, consumer_s)


def rate_of_ours(
    bench: Bench, towers: TwoTowers, *, threads: int | None = None, device: torch.device | None = None
) -> Rate:
    """One epoch through our loader, its processes' start and end included. device: where batches go."""

    def batches() -> Iterator[int]:
        loader = bench.loader(towers, threads=threads, device=device)
        for batch in loader.batches(0, loader.order.per_epoch):
            yield int(batch["valid"].sum())
        loader.close()

    return timed(batches)


def rate_of_webdataset(bench: Bench, towers: TwoTowers) -> Rate:
    """One epoch through webdataset and DataLoader, the start and the end of its workers included."""

    def batches() -> Iterator[int]:
        for pictures, _ in peer_batches(bench, towers, epochs=1):
            yield len(pictures)

    return timed(batches)


def worst_difference(bench: Bench, towers: TwoTowers) -> float:
    """The largest mean difference of a pixel between ours and Pillow's bicubic, over some pictures."""
    loader = bench.loader(towers)
    source = dataset_source(bench.folder / "shards")
    batch = next(iter(loader.batches(0, 1))).copied()
    loader.close()
    places: dict[int, tuple[Path, int, int]] = {}
    for shard in range(len(source.tables)):
        table = source.table(shard)
        for uid, offset, size in zip(short_uids(table).tolist(), *source.places(shard), strict=True):
            places[uid] = source.tar(shard), int(offset), int(size)
    worst = 0.0
    for uid, index in list(zip(batch["uid"].tolist(), batch.shared["image"], strict=True))[:COMPARED]:
        path, offset, size = places[uid]
        with open(path, "rb") as file:
            file.seek(offset)
            image = Image.open(io.BytesIO(file.read(size))).convert("RGB")
        theirs = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
        worst = max(worst, float(np.abs(batch["image"][index].numpy() - theirs).mean()))
    return worst


def compare(bench: Bench, samples: int, rounds: int = 2) -> dict[str, Any]:
    """Both rates and their ratio; ends where pictures are missing or wrong."""
    towers = bench.towers()
    apart = worst_difference(bench, towers)
    if apart > MOST_APART:
        sys.exit(f"a picture differs from Pillow's by {apart:.1f} of 255: nothing is measured")
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(rate_of_ours(bench, towers))
        theirs.append(rate_of_webdataset(bench, towers))
    counts = {rate.images for rate in ours + theirs}
    if counts != {samples}:
        sys.exit(f"{samples} pictures were stored, {sorted(counts)} given: nothing is measured")
    best, other = (min(rates, key=lambda rate: rate.cpu_s) for rates in (ours, theirs))
    return {
        "pairmill": best.line(),
        "webdataset": other.line(),
        "ratio": round(other.cpu_s / best.cpu_s, 2),
        "images": samples,
        "worst_pixel_difference": round(apart, 2),
    }


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=768, help="rounded to whole batches")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--threads", type=int, default=1, help="of our loader, and worker processes of torch's"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    samples = max(1, given.samples // given.batch) * given.batch
    with tempfile.TemporaryDirectory() as name:
        training = as_open_clip(EYE, batch=given.batch, threads=given.threads)
        bench = Bench(Path(name), training, torch.device("cpu"), 1)
        make_shards(bench.folder / "shards", samples, STORED, per_shard=512)
        bench.prepare()
        found = compare(bench, samples)
    more = {"batch": given.batch, "threads": given.threads, **contents(), **machine()}
    print(json.dumps({"what": "loader", **found, **more}))


if __name__ == "__main__":
    main()
