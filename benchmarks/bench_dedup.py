"""Exact dedup of made hashes: mixed rows, half of them one caption, half one URL; beside a bare GROUP BY.

python benchmarks/bench_dedup.py [--rows 2000000] [--rows-per-partition 4000000]

Few of the rows say a pair again, as in real lists. The bare GROUP BY counts the rows of each uid, no more.
Every kind runs in a process of its own, whose peak memory is the kernel's figure (mapped files included).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from common import folder_mb, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.copies import dedup_phases, dedup_stage, dedup_tasks
from pairmill.progress import Quiet
from pairmill.runner import Here
from pairmill.shards.job import run_phases, run_stage
from pairmill.shards.schema import PAIRS

KINDS = ("mixed", "one caption", "one url")
PART = 500_000
HASHES = ("uid", "url_hash", "caption_hash")


def write_pairs(out: Path, rows: int, kind: str) -> None:
    """pairs/ with nothing but hashes: URLs and captions drawn from half as many as there are rows."""
    dice = np.random.default_rng(0)
    (out / "pairs").mkdir()
    for part, begin in enumerate(range(0, rows, PART)):
        n = min(PART, rows - begin)
        url, caption = (dice.integers(rows // 2, size=n) for _ in range(2))
        if kind != "mixed":
            (caption if kind == "one caption" else url)[dice.random(n) < 0.5] = 0
        keys = (np.column_stack([url, caption]), url[:, None], caption[:, None])
        hashes = [_hashes(key) for key in keys]
        empty = pa.nulls(n, pa.string())
        columns = {name: empty.cast(PAIRS.field(name).type) for name in PAIRS.names}
        table = pa.table(columns | dict(zip(HASHES, hashes, strict=True)), PAIRS)
        pq.write_table(table, out / "pairs" / f"0000-{part:05d}.parquet", compression="zstd")


def _hashes(keys: np.ndarray) -> pa.Array:
    data = b"".join(xxhash.xxh3_128_digest(key.tobytes()) for key in keys)
    return pa.Array.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(data)])


def timed(out: Path, per_partition: int, queue: Any) -> None:
    """Run the stage and its phases in this process; the answer is (seconds, CPU seconds, peak MB)."""
    start, before = time.perf_counter(), time.process_time()
    run_phases(out, dedup_phases(out, per_partition), Here(), Quiet())
    run_stage(out, dedup_stage(out), dedup_tasks(out, per_partition), Here(), Quiet())
    status = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would be the parent's too
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    queue.put((time.perf_counter() - start, time.process_time() - before, peak))


def check(out: Path, rows: int) -> float:
    """Every column against a slow definition in SQL. Returns the seconds of the bare GROUP BY."""
    sql = duckdb.connect()
    pairs, copies = f"'{out}/pairs/*.parquet'", f"'{out}/scores/copies/*.parquet'"
    start = time.perf_counter()
    sql.execute(f"CREATE TABLE n AS SELECT uid, count(*) AS n FROM {pairs} GROUP BY uid")
    seconds = time.perf_counter() - start
    sql.execute(
        f"CREATE TABLE k AS SELECT * FROM {pairs} POSITIONAL JOIN (SELECT * EXCLUDE uid FROM {copies})"
    )
    sql.execute("CREATE TABLE u AS SELECT url_hash, count(DISTINCT uid) AS n FROM k GROUP BY url_hash")
    sql.execute(
        "CREATE TABLE c AS SELECT caption_hash, count(DISTINCT uid) AS n FROM k GROUP BY caption_hash"
    )
    wrong = """
        SELECT count(*) FROM k JOIN n USING (uid) JOIN u USING (url_hash) JOIN c USING (caption_hash)
        WHERE pair_copies_v1 <> n.n OR captions_per_image_v1 <> u.n OR images_per_caption_v1 <> c.n"""
    ranks = """
        SELECT count(*) FROM (SELECT uid, count(DISTINCT pair_rank_v1) AS a, max(pair_rank_v1) + 1 AS b,
          count(*) AS n FROM k GROUP BY uid) WHERE a <> n OR b <> n"""
    by_uid = """
        SELECT count(*) FROM (SELECT caption_rank_v1 AS rank, lag(caption_rank_v1) OVER u AS before, url_hash,
          lag(url_hash) OVER u AS url FROM k WHERE pair_rank_v1 = 0 WINDOW u AS (ORDER BY url_hash, uid))
        WHERE rank <> if(url_hash IS NOT DISTINCT FROM url, before + 1, 0)"""
    for question in (wrong, ranks, by_uid):
        assert sql.execute(question).fetchall() == [(0,)], question
    assert sql.execute("SELECT count(*) FROM k").fetchall() == [(rows,)]
    return seconds


def main() -> None:
    """Some runs of each kind; the median of each as one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rows-per-partition", type=int, default=4_000_000)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            out, runs = Path(folder), []
            write_pairs(out, given.rows, kind)
            for _ in range(given.runs):
                shutil.rmtree(out / "_done", ignore_errors=True)
                queue = fresh.Queue()
                process = fresh.Process(target=timed, args=(out, given.rows_per_partition, queue))
                process.start()
                runs.append(queue.get())
                process.join()
            group_by, sent = check(out, given.rows), folder_mb(out / "_exchange")
            seconds, cpu, peak = sorted(runs)[len(runs) // 2]
            line = {"what": "exact dedup", "kind": kind, "rows": given.rows}
            line |= {"rows_per_partition": given.rows_per_partition}
            line |= {"median_s": round(seconds, 2), "spread_s": round(max(runs)[0] - min(runs)[0], 2)}
            line |= {"rows_per_cpu_s": round(given.rows / cpu), "peak_mb": round(peak)}
            line |= {"bare_group_by_s": round(group_by, 2), "exchange_mb": sent}
            print(json.dumps(line | machine()), flush=True)


if __name__ == "__main__":
    main()
