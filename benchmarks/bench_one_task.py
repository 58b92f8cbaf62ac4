"""Stages that are one task over all rows: seconds and memory of plan-fetch, decide and plan-write.

python benchmarks/bench_one_task.py [--rows 1000000] [--memory-mb 1000] [--threads 2]

Rows are those of bench_rows.py, read by `ingest` and counted by `dedup`; the screen, what was fetched (three
quarters of it), near-copies and noise are made. Each stage runs in a process of its own, whose peak memory is
the kernel's figure. What is wanted, decided and planned is checked against DuckDB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_rows import make_lists  # pyright: ignore[reportImplicitRelativeImport]
from common import folder_mb, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.fetch import plan_fetch_stage, plan_fetch_tasks
from pairmill.filter.decide import decide_stage, decide_tasks
from pairmill.pipeline import run
from pairmill.progress import Quiet
from pairmill.recipe import Decide, Dedup, Fetch, Rules, Write, build_recipe
from pairmill.runner import Here, Stage, Task
from pairmill.shards.job import run_stage
from pairmill.shards.plan import plan_write_stage, plan_write_tasks
from pairmill.shards.schema import NEAR, NOISE, RAW, SCREEN

FETCHED, MOST_NOISE = 0.75, 0.2
STAGES = ("plan-fetch", "decide", "plan-write")
FOLDERS = ("_plan/fetch", "selection", "_plan/write")
Built = tuple[list[Task], Stage]


def make_rows(out: Path, lists: Path, rows: int) -> None:
    """pairs/, copies, and a screen that drops copies alone."""
    lists.mkdir()
    make_lists(lists, rows, None)
    recipe = build_recipe({"ingest": {"input": [str(lists)]}}, "bench_one_task")
    for command in ("ingest", "dedup"):
        run(recipe, out, command=command, engine=Here(), progress=Quiet())
    (out / "selection/screen").mkdir(parents=True)
    for path in sorted((out / "scores/copies").glob("*.parquet")):
        copies = pq.read_table(path, columns=["uid", "pair_rank_v1"])
        reason = pc.if_else(pc.greater(copies["pair_rank_v1"], 0), "pair_copy", pa.scalar(None, pa.string()))
        table = pa.table([copies["uid"], reason], SCREEN.names).cast(SCREEN)
        pq.write_table(table, out / "selection/screen" / path.name)


def make_fetched(out: Path) -> None:
    """raw/, near-copies (a tenth) and noise (q-values uniform in [0, 1)) for what was planned."""
    dice = np.random.default_rng(0)
    for folder in ("raw", "scores/near", "scores/noise"):
        (out / folder).mkdir(parents=True)
    for path in sorted((out / "_plan/fetch").glob("*.parquet")):
        plan = pq.read_table(path, columns=["uid", "url_hash", "url", "caption"])
        n = len(plan)
        ok = dice.random(n) < FETCHED
        numbers = pa.array(np.arange(n) * 20_000)
        made = {
            **{name: plan[name] for name in plan.column_names},
            "key": pa.array([value.hex() for value in plan["url_hash"].to_pylist()]),
            "outcome": pa.array(np.where(ok, "ok", "http_404")),
            "sha256": pa.array([dice.bytes(32) for _ in range(n)], pa.binary(32)),
            "offset": numbers,
            "stored_xxh3": pa.array(dice.integers(0, 2**63, n)),
        } | {name: pa.array(np.full(n, 256)) for name in ("width", "height", "size", "original_width")}
        made |= {"original_height": made["width"], "wave": pa.array(np.zeros(n, np.int16))}
        write(out / "raw" / path.name, made, RAW, n)
        paired = plan.filter(pa.array(ok))
        n = len(paired)
        near = {"uid": paired["uid"], "near_group_v1": paired["url_hash"]}
        near |= {"near_rank_v1": pa.array((dice.random(n) < 0.1).astype(np.int32))}
        near |= {
            "near_size_v1": pa.array(np.ones(n, np.int32)),
            "near_adopted_v1": pa.array(np.zeros(n, bool)),
        }
        write(out / "scores/near" / path.name, near, NEAR, n)
        noise = {"uid": paired["uid"], "mismatch_q_v2": pa.array(dice.random(n).astype(np.float32))}
        write(out / "scores/noise" / path.name, noise, NOISE, n)


def write(path: Path, made: dict[str, Any], schema: pa.Schema, n: int) -> None:
    """A Parquet file in `schema`; a column that was not made is NULL."""
    columns = [made.get(field.name, pa.nulls(n, field.type)) for field in schema]
    pq.write_table(pa.table(columns, schema.names).cast(schema), path, compression="zstd")


def built(stage: str, out: Path, memory_mb: int, threads: int) -> Built:
    """The tasks of a stage, and the stage."""
    if stage == "plan-fetch":
        return plan_fetch_tasks(out), plan_fetch_stage(out, Fetch(), memory_mb)
    if stage == "decide":
        settings = Decide(rules=Rules(sets=("near_copies",)), max_noise=MOST_NOISE)
        return decide_tasks(out, settings), decide_stage(out, settings, Dedup(threads=threads), memory_mb)
    return plan_write_tasks(out, "dataset"), plan_write_stage(out, Write(), "dataset", memory_mb)


def timed(stage: str, out: Path, memory_mb: int, threads: int, queue: Any) -> None:
    """Run the stage in this process; the answer is (seconds, CPU seconds, peak MB, counts)."""
    tasks, made = built(stage, out, memory_mb, threads)
    start, before = time.perf_counter(), time.process_time()
    report = run_stage(out, made, tasks, Here(), Quiet())
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    queue.put((seconds, cpu, peak, dict(report.counts), dict(report.failed)))


def check(out: Path, counts: dict[str, dict[str, int]]) -> None:
    """Raises AssertionError where a stage counted otherwise than DuckDB."""
    sql = duckdb.connect()
    wanted = f"SELECT count(*) FROM '{out}/selection/screen/*.parquet' WHERE reason IS NULL"
    kept = f"""SELECT count(*) FROM '{out}/scores/near/*.parquet'
        JOIN '{out}/scores/noise/*.parquet' USING (uid)
        WHERE near_rank_v1 = 0 AND mismatch_q_v2 <= {MOST_NOISE}"""
    assert sql.execute(wanted).fetchall() == [(counts["plan-fetch"]["wanted"],)]
    assert sql.execute(kept).fetchall() == [(counts["decide"]["kept"],)], counts["decide"]
    assert counts["plan-write"]["planned"] == counts["decide"]["kept"]


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory-mb", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    line: dict[str, Any] = {"what": "stages of one task", "rows": given.rows, "memory_mb": given.memory_mb}
    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        make_rows(out, Path(folder, "lists"), given.rows)
        for stage in STAGES:
            queue = fresh.Queue()
            process = fresh.Process(target=timed, args=(stage, out, given.memory_mb, given.threads, queue))
            process.start()
            seconds, cpu, peak, counts[stage], failed = queue.get()
            process.join()
            assert not failed, failed
            line[stage] = {"s": round(seconds, 2), "cpu_s": round(cpu, 2), "peak_mb": round(peak)}
            line[stage]["counts"] = counts[stage]
            if stage == "plan-fetch":
                make_fetched(out)
        check(out, counts)
        line["mb"] = {name: folder_mb(out / name) for name in FOLDERS}
    print(json.dumps(line | machine()))


if __name__ == "__main__":
    main()
