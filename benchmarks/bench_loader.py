"""JPEG shards of 256 pixels to batches at 224: pairmill's loader beside webdataset with torch's DataLoader.

    [PAIRMILL_DATA=folder] python benchmarks/bench_loader.py [--samples 2048] [--threads 1]

Rates are images per second per core: per second of CPU time of all threads and processes. Both are given
the same shards, in the same run, one after the other twice, and the better of each counts; ours goes through
them several times, so that both take about as long. Tokenising and the start of all processes are part of
both. Nothing is printed unless both gave every picture, and ours are what Pillow makes of the files.
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
EPOCHS = 8  # of ours to one of webdataset's: about the same time for both
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
    images_after: int  # the first batch
    wall_after_s: float  # from the first batch to the last
    consumer_s: float  # CPU time of the thread that takes the batches, meanwhile

    def line(self) -> dict[str, float]:
        """For the result line."""
        return {
            "images_per_s_per_core": round(self.images / self.cpu_s, 1),
            "images_per_s": round(self.images / self.wall_s, 1),
            "images_per_s_after_first": round(self.images_after / max(self.wall_after_s, 1e-9), 1),
            "first_batch_s": round(self.first_batch_s, 3),
            "consumer_us_per_image": round(1e6 * self.consumer_s / max(1, self.images_after), 2),
        }


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(batches: Callable[[], Iterator[int]]) -> Rate:
    """Time an iterator of the numbers of images in batches, with all that it starts and ends."""
    cpu, begun = cpu_seconds(), time.perf_counter()
    counts, walls, own = [], [], []
    for count in batches():
        counts.append(count)
        walls.append(time.perf_counter())
        own.append(time.thread_time())
    ended = time.perf_counter()
    return Rate(
        images=sum(counts),
        cpu_s=cpu_seconds() - cpu,
        wall_s=ended - begun,
        first_batch_s=walls[0] - begun,
        images_after=sum(counts[1:]),
        wall_after_s=walls[-1] - walls[0],
        consumer_s=own[-1] - own[0],
    )


def rate_of_ours(
    bench: Bench,
    towers: TwoTowers,
    *,
    batches: int | None = None,
    threads: int | None = None,
    device: torch.device | None = None,
) -> Rate:
    """Our loader, its processes' start and end included; one epoch if not told. device: where batches go."""

    def counts() -> Iterator[int]:
        loader = bench.loader(towers, threads=threads, device=device)
        for batch in loader.batches(0, batches or loader.order.per_epoch):
            yield int(batch["valid"].sum())
        loader.close()

    return timed(counts)


def rate_of_webdataset(bench: Bench, towers: TwoTowers) -> Rate:
    """One epoch through webdataset and DataLoader, the start and the end of its workers included."""

    def counts() -> Iterator[int]:
        for pictures, _ in peer_batches(bench, towers, epochs=1):
            yield len(pictures)

    return timed(counts)


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
        batches = EPOCHS * samples // bench.training.batch_size
        ours.append(rate_of_ours(bench, towers, batches=batches))
        theirs.append(rate_of_webdataset(bench, towers))
    given = {rate.images // EPOCHS for rate in ours} | {rate.images for rate in theirs}
    if given != {samples}:
        sys.exit(f"{samples} pictures were stored, {sorted(given)} given: nothing is measured")
    best, other = (min(rates, key=lambda rate: rate.cpu_s) for rates in (ours, theirs))
    images_per_s = [rate.images / rate.cpu_s for rate in (best, other)]
    return {
        "pairmill": best.line(),
        "webdataset": other.line(),
        "ratio": round(images_per_s[0] / images_per_s[1], 2),
        "images": samples,
        "worst_pixel_difference": round(apart, 2),
    }


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2048, help="rounded to whole batches")
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
