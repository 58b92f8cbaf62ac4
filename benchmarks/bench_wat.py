"""Pairs out of a WAT file: ours beside cc2dataset's own extraction, in one process each, on the same file.

A full-size WAT (1.4 GB unpacked) is made by repeating the real records of PAIRMILL_DATA/warc-wat, each round
with picture URLs of its own. The answer is checked before it is printed: every distinct pair of cc2dataset's
is among ours. `ratio` is of CPU seconds, medians of runs that take turns. Beside it stand the whole stage
`ingest` on that file, what only unpacking it costs, and WARC: pages a second, and recall against what
resiliparse's parser finds as `img` with `src` and `alt`.

    PAIRMILL_DATA=... python benchmarks/bench_wat.py [--gb 1.4] [--runs 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from common import data_folder, machine
from fastwarc.stream_io import GzipReader
from made_wat import write_wat

from pairmill.crawl.archive_rows import read_archive_rows
from pairmill.crawl.images import base_of, resolve
from pairmill.crawl.ingest import ingest_tasks, start_ingest
from pairmill.crawl.page import html_page
from pairmill.recipe import Ingest

SOURCES = ("webindex/wat-18.warc", "webindex/wat.warc", "whirlwind-python/whirlwind.warc.wat")
PAIR_URL = "https://page.example/dir/page.html"


class _Absent(ModuleType):
    """Stands for pyspark where that is not installed: the extraction of one file does not use it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def peer() -> Callable[[str], list[tuple[str, ...]]]:
    """cc2dataset's `process_wat` for images, as installed."""
    if importlib.util.find_spec("cc2dataset") is None:
        sys.exit("cc2dataset is not installed: pip install cc2dataset (extra bench)")
    if importlib.util.find_spec("pyspark") is None:
        for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions"):
            sys.modules[name] = _Absent(name)
    from cc2dataset.main import process_wat  # pyright: ignore[reportMissingImports]
    from loguru import logger  # pyright: ignore[reportMissingImports]

    logger.remove()
    return lambda path: list(process_wat(path, "image"))


def ours(path: str) -> list[Any]:
    """The ROWS batches of an archive."""
    with open(path, "rb") as file:
        return list(read_archive_rows(file, "gzip", Ingest()))


def unpack(path: str) -> int:
    """The file's bytes, unpacked and thrown away."""
    reader, n_bytes = GzipReader(path), 0
    while block := reader.read(2**16):
        n_bytes += len(block)
    return n_bytes


def timed(work: Callable[[str], Any], path: str) -> tuple[Any, float, float]:
    """What `work` returns, its CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = work(path)
    return made, time.process_time() - cpu, time.perf_counter() - wall


def check(rows: list[Any], listed: list[tuple[str, ...]]) -> dict[str, int]:
    """Raises AssertionError where a pair of the peer's is not among ours."""
    pairs = {
        (url, caption)
        for batch in rows
        for url, caption in zip(batch["url"].to_pylist(), batch["caption"].to_pylist(), strict=True)
    }
    theirs = {((resolve(url, PAIR_URL) or url).encode(), alt.strip().encode()) for _, url, alt, *_ in listed}
    theirs = {pair for pair in theirs if pair[1]}
    missing = theirs - pairs
    assert not missing, (len(missing), sorted(missing)[:3])
    return {"pairs": len(pairs), "peer_pairs": len(theirs), "peer_rows": len(listed)}


def whole_stage(path: str) -> tuple[float, float]:
    """CPU and wall seconds of the stage `ingest` on a file, Parquet written."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Ingest(input=(path,))
        (task,) = ingest_tasks(Path(folder), settings)
        worker = start_ingest(Path(folder), settings)
        _, cpu, wall = timed(lambda _: worker(task), path)
    return cpu, wall


def pages(data: Path) -> dict[str, Any]:
    """Pages a second of HTML, and which of the parser's `img` with `src` and `alt` are among our pairs."""
    from resiliparse.parse.html import HTMLTree

    with tarfile.open(data / "html-pages" / "readability-pages.tar.gz") as tar:
        bodies = [file.read() for member in tar if (file := tar.extractfile(member))]
    begun = time.process_time()
    found = [html_page(body, PAIR_URL, None, {"content-type": "text/html"}.get) for body in bodies]
    seconds = time.process_time() - begun
    n_plain = n_missed = n_ours = 0
    for body, page in zip(bodies, found, strict=True):
        nodes = list(HTMLTree.parse_from_bytes(body, "utf-8").document or ())
        base = base_of(PAIR_URL, next((n.getattr("href") for n in nodes if n.tag == "base"), None))
        plain = {(n.getattr("src"), (n.getattr("alt") or "").strip()) for n in nodes if n.tag == "img"}
        plain = {(src.strip(), alt) for src, alt in plain if src and alt and not src.startswith("data:")}
        said = {(resolve(url, page.base), text) for url, text, _ in page.images}
        n_plain += len(plain)
        n_missed += sum((resolve(src, base), alt) not in said for src, alt in plain)
        n_ours += len(said)
    return {
        "pages": len(bodies),
        "pages_per_cpu_s": round(len(bodies) / seconds),
        "mb_per_cpu_s": round(sum(map(len, bodies)) / seconds / 1e6, 1),
        "pairs": n_ours,
        "plain_img_src_alt": n_plain,
        "of_them_by_another_url": n_missed,
    }


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--gb", type=float, default=1.4, help="size of the WAT, unpacked")
    asked.add_argument("--runs", type=int, default=3)
    options = asked.parse_args()
    data = data_folder("warc-wat")
    extract = peer()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "made.warc.wat.gz")
        sizes = write_wat([data / "warc-wat" / name for name in SOURCES], Path(path), int(options.gb * 1e9))
        cpu: dict[str, list[float]] = {"ours": [], "peer": [], "unpack": []}
        wall: dict[str, list[float]] = {"ours": [], "peer": [], "unpack": []}
        found: dict[str, int] = {}
        for _ in range(options.runs):
            made = {}
            for name, work in (("ours", ours), ("peer", extract), ("unpack", unpack)):
                made[name], took_cpu, took_wall = timed(work, path)
                cpu[name].append(took_cpu)
                wall[name].append(took_wall)
            found = found or check(made["ours"], made["peer"])
            del made
        stage_cpu, stage_wall = whole_stage(path)
    middle = {name: round(statistics.median(values), 2) for name, values in cpu.items()}
    line = {
        "bench": "wat",
        **sizes,
        **found,
        "cpu_s": middle,
        "spread_s": {name: round(max(values) - min(values), 2) for name, values in cpu.items()},
        "wall_s": {name: round(statistics.median(values), 2) for name, values in wall.items()},
        "ratio": round(middle["peer"] / middle["ours"], 2),
        "ratio_beside_unpacking": round(
            (middle["peer"] - middle["unpack"]) / (middle["ours"] - middle["unpack"]), 2
        ),
        "ingest_cpu_s": round(stage_cpu, 2),
        "ingest_wall_s": round(stage_wall, 2),
        "warc": pages(data),
        **machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
