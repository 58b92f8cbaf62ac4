"""Leaks: 1,000 evaluation photos planted under six edits each among 100,000 pictures; which are found.

Photos of flickr8k from PAIRMILL_DATA: its validation set is the evaluation set; the crowd is its training
photos and cuts of them, each of another place, which are no near-copies of any evaluation photo. Prints a
JSON line; fails where an edit is found less than 99 times in 100, or where anything else is called a leak.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_near import packed, pictures, scaled  # pyright: ignore[reportImplicitRelativeImport]
from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image, ImageOps

from pairmill.crawl.chroma import chroma
from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.crawl.evaluation import evaluation_stage, evaluation_tasks
from pairmill.crawl.pdq import pdq_hash
from pairmill.filter.leaks import decontaminate_stage, decontaminate_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Decontaminate, Fetch, Near
from pairmill.runner import Here
from pairmill.shards.job import run_stage
from pairmill.shards.schema import RAW, make_uid, text_hash

EDITS = {
    "JPEG at 30": lambda image: packed(image, quality=30),
    "WebP at 60": lambda image: packed(image, "WEBP", 60),
    "half the size": lambda image: packed(scaled(image, 0.5)),
    "twice the size": lambda image: packed(scaled(image, 2)),
    "grey": lambda image: packed(image.convert("L"), quality=60),
    "mirrored": lambda image: packed(ImageOps.mirror(image), quality=80),
}
PLANTED, CROWD, CUTS = 1_000, 100_000, 15
ENOUGH = 0.99


def row(url: str, pdq: bytes, quality: int, colours: bytes, digest: bytes) -> dict[str, Any]:
    found = {
        "uid": make_uid(url, url),
        "url_hash": text_hash(url),
        "url": url,
        "caption": url,
        "outcome": "ok",
    }
    return found | {
        "wave": 0,
        "sha256": digest,
        "pdq_v1": pdq,
        "pdq_quality_v1": quality,
        "chroma_v1": colours,
    }


def planted(files: list[tuple[str, bytes]]) -> Iterator[dict[str, Any]]:
    """A row for each edit of each evaluation photo."""
    for name, data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for edit, work in EDITS.items():
            made = work(image)
            seen = decode_image(made, Fetch())
            digest = hashlib.sha256(made).digest()
            yield row(f"http://leak.test/{edit}/{name}", seen.pdq, seen.pdq_quality, seen.chroma, digest)


def crowd(files: list[tuple[str, bytes]], most: int) -> Iterator[dict[str, Any]]:
    """Training photos whole, then cuts of them: 50 to 75 % of a side, anywhere."""
    dice = np.random.default_rng(0)
    for number in range(most):
        name, data = files[number % len(files)]
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if number >= len(files):
            height, width = (int(side * dice.uniform(0.5, 0.75)) for side in pixels.shape[:2])
            top, left = (
                int(dice.integers(0, most_)) for most_ in (pixels.shape[0] - height, pixels.shape[1] - width)
            )
            pixels = np.ascontiguousarray(pixels[top : top + height, left : left + width])
        pdq, quality = pdq_hash(pixels, enlarge=True)
        url = f"http://crowd.test/{number}/{name}"
        yield row(url, pdq, quality, chroma(pixels), hashlib.sha256(url.encode()).digest())


def main() -> int:
    folder = data_folder("flickr8k") / "flickr8k"
    quiet_decoders(Fetch())
    held, others = (
        list(pictures(folder / "images-val.tar", PLANTED)),
        list(pictures(folder / "images-train.tar")),
    )
    with tempfile.TemporaryDirectory() as place:
        out, against = Path(place) / "out", Path(place) / "evaluation"
        (out / "raw").mkdir(parents=True)
        against.mkdir()
        for name, data in held:
            (against / Path(name).name).write_bytes(data)
        rows = [*planted(held), *crowd(others, CROWD - len(EDITS) * len(held))]
        for start in range(0, len(rows), 10_000):
            table = pa.Table.from_pylist(rows[start : start + 10_000], RAW)
            pq.write_table(table, out / "raw" / f"{start // 10_000:05d}.parquet")
        settings = Decontaminate(against=(str(against),))
        cpu_s = {}
        for name, tasks, stage in (
            ("evaluation", evaluation_tasks(settings), evaluation_stage(out, Fetch())),
            ("decontaminate", decontaminate_tasks(out), decontaminate_stage(out, settings, Near())),
        ):
            begun = time.process_time()
            report = run_stage(out, stage, tasks, Here(retries=0), Quiet())
            assert not report.failed, report.failed
            cpu_s[name] = round(time.process_time() - begun, 1)
        found = {one["uid"]: one for one in pq.read_table(out / "scores/leaks/leaks.parquet").to_pylist()}
    hits, wrong = Counter[str](), []
    for one in rows:
        said = found[one["uid"]]["leak_of_v1"]
        _, _, host, edit, name = one["url"].split("/", 4)
        if said is not None and host == "leak.test" and Path(said).name == Path(name).name:
            hits[edit] += 1
        elif said is not None:
            wrong.append([one["url"], said, found[one["uid"]]["leak_distance_v1"]])
    recall = {edit: round(hits[edit] / len(held), 4) for edit in EDITS}
    said = {"what": "leaks: recall by edit, and false hits", "pictures": len(rows), "evaluation": len(held)}
    print(
        json.dumps(
            said
            | {"recall": recall, "false_hits": len(wrong), "first_false": wrong[:5], "cpu_s": cpu_s}
            | machine()
        )
    )
    return int(bool(wrong) or min(recall.values()) < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
