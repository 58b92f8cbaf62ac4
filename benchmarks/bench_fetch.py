"""Fetch, decode, resize and store photos from a loopback server: pairmill and, where installed, img2dataset.

Both get the same URLs of the same server, two processes, 256 pixels on the shorter side, JPEG quality 90.
The clock runs from the list to the last file, process starts included; CPU is that of the processes, without
the server.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]
from loopback import read_files  # pyright: ignore[reportImplicitRelativeImport]

PROCESSES = 2


def urls_of(port: int, source: Path, pictures: int) -> list[str]:
    """`pictures` URLs, all different, over the files of `source` in turn."""
    names = sorted(read_files(source))
    return [f"http://127.0.0.1:{port}/{names[n % len(names)]}?{n}" for n in range(pictures)]


def write_plan(out: Path, urls: list[str]) -> None:
    """pairs/ and selection/screen/ for the URLs: what fetching starts from."""
    from pairmill.shards.schema import PAIRS, SCREEN, make_uid, text_hash

    rows = [
        {"uid": make_uid(url, url), "url_hash": text_hash(url), "url": url, "caption": url} for url in urls
    ]
    table = pa.Table.from_pylist(
        [{name: row.get(name) for name in PAIRS.names} for row in rows], schema=PAIRS
    )
    screen = pa.table([table["uid"], pa.nulls(len(urls), pa.string())], schema=SCREEN)
    for folder, content in (("pairs", table), ("selection/screen", screen)):
        (out / folder).mkdir(parents=True)
        pq.write_table(content, out / folder / "0000-00000.parquet")


def fetch_one(out: Path, name: str, settings: Any) -> None:
    """One raw shard, in this process."""
    from pairmill.crawl.fetch import Fetcher
    from pairmill.runner import Task

    Fetcher(out, settings, {})(Task("fetch", name))


def run_ours(urls: list[str], out: Path) -> int:
    """Plan and fetch. Returns how many pictures lie in raw/."""
    from pairmill.crawl.fetch import fetch_tasks, plan_fetch_stage, plan_fetch_tasks
    from pairmill.progress import Quiet
    from pairmill.recipe import Fetch
    from pairmill.runner import Here
    from pairmill.shards.job import run_stage

    write_plan(out, urls)
    place = urls[0].split("/")[2]
    shards = PROCESSES * 2
    settings = Fetch(
        allow_hosts=(place,), per_host=64, concurrency=64, urls_per_shard=-(-len(urls) // shards)
    )
    run_stage(out, plan_fetch_stage(out, settings), plan_fetch_tasks(out), Here(), Quiet())
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        pool.starmap(fetch_one, [(out, task.name, settings) for task in fetch_tasks(out, settings)])
        pool.close()
        pool.join()
    tables = [pq.read_table(path) for path in (out / "raw").glob("*.parquet")]
    return pa.concat_tables(tables).filter(pc.field("outcome") == "ok").num_rows


def run_theirs(urls: list[str], out: Path) -> int:
    """img2dataset with its fastest settings found. Returns how many pictures it says it stored."""
    from img2dataset import download  # pyright: ignore[reportMissingImports]

    listed = out / "list.parquet"
    out.mkdir(parents=True)
    pq.write_table(pa.table({"url": urls, "caption": urls}), listed)
    download(
        url_list=str(listed),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(out / "shards"),
        output_format="webdataset",
        processes_count=PROCESSES,
        thread_count=64,
        image_size=256,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        encode_quality=90,
        number_sample_per_shard=-(-len(urls) // (PROCESSES * 2)),
    )
    stats = [json.loads(path.read_text()) for path in (out / "shards").glob("*_stats.json")]
    return sum(stat["successes"] for stat in stats)


def measure(which: str, port: int, source: Path, pictures: int) -> dict[str, float]:
    """Run one of the two in a process of its own, so that its CPU can be told from ours."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", which, "--port", str(port), "--pictures", str(pictures)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "--source", str(source), "--out", f"{folder}/out"],
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{which} failed: {done.stderr[-2000:]}")
    stored = int(done.stdout.split()[-1])
    if stored != pictures:
        sys.exit(f"{which} stored {stored} of {pictures} pictures: no rate is given")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 2),
        "pictures_per_s": round(pictures / seconds, 1),
        "cpu_ms_per_picture": round(1000 * cpu_s / pictures, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--run", choices=("ours", "theirs"))
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    source = arguments.source or data_folder("photos") / "photos" / "photos.tar"
    if arguments.run:
        urls = urls_of(arguments.port, source, arguments.pictures)
        print({"ours": run_ours, "theirs": run_theirs}[arguments.run](urls, arguments.out))
        return
    script = Path(__file__).with_name("loopback.py")
    with subprocess.Popen(
        [sys.executable, script, source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        figures: dict[str, Any] = {"what": "fetch", "pictures": arguments.pictures}
        measure("ours", port, source, 200)  # warm-up
        figures["pairmill"] = measure("ours", port, source, arguments.pictures)
        if importlib.util.find_spec("img2dataset"):
            figures["img2dataset"] = measure("theirs", port, source, arguments.pictures)
            figures["ratio"] = {
                "pictures_per_s": ratio(figures, "pairmill", "img2dataset", "pictures_per_s"),
                "per_cpu_s": ratio(figures, "img2dataset", "pairmill", "cpu_ms_per_picture"),
            }
        server.terminate()
    print(json.dumps(figures | machine()))


def ratio(figures: dict[str, Any], over: str, under: str, name: str) -> float:
    return round(figures[over][name] / figures[under][name], 2)


if __name__ == "__main__":
    main()
