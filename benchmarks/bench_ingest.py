"""Rows a second of `ingest` alone, on 320,000 real Reddit picture links (PAIRMILL_DATA/urls-reddit).

One process. The answer is checked before it is printed: every row counted, every uid what `make_uid` says.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pairmill.crawl.ingest import ingest_tasks, iter_parts, start_ingest
from pairmill.recipe import Ingest
from pairmill.runner import Tally
from pairmill.shards.schema import make_uid

RUNS = 5


def ingest(out: Path, settings: Ingest) -> Tally:
    (task,) = ingest_tasks(out, settings)
    return start_ingest(out, settings)(task)


def check(out: Path, tally: Tally, n_rows: int) -> None:
    """Raises AssertionError where a row is missing or a pair bears the wrong name."""
    assert tally.seen == n_rows, (tally.seen, n_rows)
    pairs = pa.concat_tables(
        pq.read_table(part, columns=["uid", "url", "caption"]) for part in iter_parts(out)
    )
    assert len(pairs) == tally.counts["pair"]
    for row in pairs.slice(0, 10_000).to_pylist():
        assert row["uid"] == make_uid(row["url"], row["caption"]), row


def main() -> None:
    folder = os.environ.get("PAIRMILL_DATA")
    if folder is None:
        sys.exit("set PAIRMILL_DATA to a folder that holds urls-reddit/reddit-images.parquet")
    source = Path(folder) / "urls-reddit" / "reddit-images.parquet"
    n_rows = pq.read_metadata(source).num_rows
    seconds: list[float] = []
    cpu: list[float] = []
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        for _ in range(RUNS + 1):
            begun, begun_cpu = time.perf_counter(), time.process_time()
            tally = ingest(out, Ingest(input=(str(source),)))
            seconds.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - begun_cpu)
            check(out, tally, n_rows)
            counts = dict(tally.counts)
    median = statistics.median(seconds[1:])
    line = {
        **{"what": "ingest", "rows": n_rows, "counts": counts, "median_s": round(median, 3)},
        **{"spread_s": round(max(seconds[1:]) - min(seconds[1:]), 3), "rows_per_s": round(n_rows / median)},
        **{"rows_per_cpu_s": round(n_rows / statistics.median(cpu[1:]))},
        **{"python": platform.python_version(), "pyarrow": pa.__version__, "cpus": os.cpu_count()},
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
