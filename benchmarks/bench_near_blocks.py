"""Near-copies by hash in blocks, over made pictures with the hashes of real photos: seconds, memory, a check.

python benchmarks/bench_near_blocks.py --pictures 1000000 [--block 250000] [--whole]

A made picture's hash is four quarters of four real photos' (PAIRMILL_DATA), so that bits are as frequent, and
as alike within a row, as in photos. A third are copies of others, whose bits differ as measured edits do
(re-encoded, scaled, watermarked, cropped). The answer is checked at pictures drawn at random, against a
comparison of each with all leaders; with --whole it must equal that of one block.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import PeakMemory, data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.decode import decode_image, quiet_decoders
from pairmill.filter.groups import follow
from pairmill.filter.near_blocks import Cut, as_hashes, block_phases, reach
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.recipe import Fetch, Near
from pairmill.runner import Here
from pairmill.settings import MEMORY_MB
from pairmill.shards.exchange import gather, scatter
from pairmill.shards.job import run_phases
from pairmill.shards.selection import uids_to_array

NEAR = Near(keep="url_hash", threads=1)  # here a picture's name is its place
COPIES = 1 / 3
# bits that differ: shares of copies, and the least and most of them
EDITS = ((0.7, 0, 16), (0.15, 16, 22), (0.1, 24, 40), (0.05, 40, 80))
CHECKED = 2_000
SENT_AT_ONCE = 500_000


def photos(folder: Path) -> np.ndarray:
    """(N, 51) uint8, hash and colours of every real photo."""
    quiet_decoders(Fetch())
    found = []
    for tar in ("photos/photos.tar", "flickr8k/images-val.tar"):
        with tarfile.open(folder / tar) as members:
            files = (members.extractfile(member) for member in members if member.isfile())
            found += [decode_image(file.read(), Fetch()) for file in files if file is not None]
    return np.frombuffer(b"".join(each.pdq + each.chroma for each in found), np.uint8).reshape(len(found), -1)


def make(n: int, real: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """(n, 51) uint8 in the order of places."""
    codes = np.empty((n, real.shape[1]), np.uint8)
    for quarter in range(4):
        codes[:, 8 * quarter : 8 * quarter + 8] = real[
            dice.integers(len(real), size=n), 8 * quarter : 8 * quarter + 8
        ]
    codes[:, 32:] = real[dice.integers(len(real), size=n), 32:]
    copies = dice.permutation(n)[: int(n * COPIES)]
    codes[copies] = codes[dice.integers(n, size=len(copies))]
    shares = [share for share, _, _ in EDITS]
    kind = dice.choice(len(EDITS), size=len(copies), p=shares)
    for number, (_, least, most) in enumerate(EDITS):
        edited = copies[kind == number]
        for start in range(0, len(edited), 100_000):
            rows = edited[start : start + 100_000]
            flips = dice.integers(least // 2, most // 2 + 1, size=len(rows)) * 2  # distances of PDQ are even
            places = np.argsort(dice.random((len(rows), 256), dtype=np.float32), axis=1)
            bits = np.unpackbits(codes[rows, :32], axis=1)
            np.put_along_axis(
                bits, places, np.take_along_axis(bits, places, 1) ^ (np.arange(256) < flips[:, None]), 1
            )
            codes[rows, :32] = np.packbits(bits, axis=1)
    return codes


def send(cut: Cut, codes: np.ndarray) -> None:
    """The pictures to their blocks, as the phases before do; a picture's name is its place."""
    for source, start in enumerate(range(0, len(codes), SENT_AT_ONCE)):
        part = codes[start : start + SENT_AT_ONCE]
        place = np.arange(start, start + len(part))
        names = np.zeros((len(part), 2), ">u8")
        names[:, 1] = place
        rows = pa.table(
            {
                "code": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(part.shape[1]), len(part), [None, pa.py_buffer(part.tobytes())]
                ).cast(pa.binary()),
                "url_hash": as_hashes(names.view("V16").reshape(-1)),
            }
        )
        scatter(
            cut.store, cut.folder("places"), f"{source:06d}", rows, place * cut.parts // len(codes), cut.parts
        )


def followed(cut: Cut, n: int) -> np.ndarray:
    """(n,) the place that each follows, by the answers that the blocks sent."""
    tables = []
    for source in range(-(-n // SENT_AT_ONCE)):
        tables += [table for _, table in gather(cut.store, cut.folder("places/answers"), source)]
    urls = uids_to_array(pa.concat_tables(tables).column("leader"))
    return np.ascontiguousarray(urls).view(">u8").reshape(-1, 2)[:, 1].astype(np.int64)


def check(codes: np.ndarray, leader: np.ndarray, dice: np.random.Generator) -> None:
    """Each of some pictures follows the first earlier leader within reach. Raises SystemExit."""
    leaders = np.flatnonzero(leader == np.arange(len(leader)))
    search = reach(NEAR)
    for row in np.sort(dice.choice(len(codes), min(CHECKED, len(codes)), replace=False)):
        earlier = leaders[leaders < row]
        bits = np.bitwise_count(codes[earlier, :32].view(np.uint64) ^ codes[row, :32].view(np.uint64)).sum(1)
        near = np.flatnonzero(bits <= NEAR.max_distance)
        assert search.alike is not None
        one = np.repeat(codes[row : row + 1, 32:], len(near), 0)
        alike = near[search.alike(one, codes[earlier[near], 32:], bits[near].astype(np.int64))]
        expected = earlier[alike[0]] if len(alike) else row
        if leader[row] != expected:
            raise SystemExit(f"picture {row} follows {leader[row]}, expected {expected}")


def measure(n: int, block: int, engine: str, whole: bool) -> dict[str, Any]:
    """One JSON line's figures."""
    dice = np.random.default_rng(0)
    codes = make(n, photos(data_folder("photos")), dice)
    with tempfile.TemporaryDirectory() as root:
        cut = Cut(Path(root), NEAR, MEMORY_MB, -(-n // block))
        send(cut, codes)
        np.save(Path(root, "codes.npy"), codes)
        del codes
        seconds: dict[str, float] = {}
        memory, used = PeakMemory(), time.process_time()
        own = OnRay() if engine == "ray" else Here()
        memory.start()
        for report in run_phases(cut.out, block_phases(cut), own, Quiet()):
            assert not report.failed, report.failed
            name = report.stage.removeprefix("near.").partition("-")[0]
            seconds[name] = seconds.get(name, 0) + report.seconds
        memory.stop()
        own.close()
        used = time.process_time() - used
        codes, leader = np.load(Path(root, "codes.npy")), followed(cut, n)
    check(codes, leader, dice)
    line: dict[str, Any] = {
        "what": "near-copies by hash in blocks",
        "pictures": n,
        "blocks": cut.parts,
        "engine": engine,
        "near": int((leader != np.arange(n)).sum()),
        "checked": min(CHECKED, n),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "total_s": round(sum(seconds.values()), 1),
        "largest_process_mb": round(memory.largest),
    }
    if engine == "here":
        line["cpu_s"] = round(used, 1)
    if whole:
        begun = time.process_time()
        if not np.array_equal(follow(codes, reach(NEAR)), leader):
            raise SystemExit("blocks say something else than all pictures at once")
        line |= {"equal_to_one_block": True, "one_block_cpu_s": round(time.process_time() - begun, 1)}
    return line


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--block", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=["here", "ray"], default="here")
    parser.add_argument("--whole", action="store_true")
    asked = parser.parse_args()
    print(json.dumps(measure(asked.pictures, asked.block, asked.engine, asked.whole) | machine()))


if __name__ == "__main__":
    main()
