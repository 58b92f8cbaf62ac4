"""Made rows through the stages that see every row: seconds by stage, the largest process, and the slope.

python benchmarks/bench_rows.py --rows 10000000 [--slope] [--skew caption|url|host] [--engine ray]
    [--commands ingest dedup]

The rows are made by DuckDB, and the counts of copies are checked against DuckDB's own in the same run.
`ratio` is the time of `dedup` to that of a bare DuckDB `GROUP BY` of the same three keys; `spread` is the
deviation of the logarithm of the lengths of a stage's tasks. With --slope the
same at a tenth of the rows: `slope` is the time per row of the larger run by that of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
from common import PeakMemory, folder_mb, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pipeline import run
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.recipe import build_recipe
from pairmill.runner import Here
from pairmill.shards.ledger import records

FILES = 16
FOLDERS = ("pairs", "scores/copies", "scores/language", "selection/screen", "_done")
FEW = 8  # tasks of a stage, of which no spread is told
COMMANDS = ("ingest", "dedup", "language")  # `language` ends with the screen
# A web list as crawls give it: one row in ten is said again, a URL has 1.25 captions, a caption 1.4 URLs, a
# host as many URLs as a Zipf law gives it. With a skew, half of the rows bear one caption, one URL, one host.
ROWS_SQL = """
SELECT
  'https://host' || {host} || '.example.org/pictures/' || {url} || '.jpg' AS url,
  {caption} AS caption
FROM (
  SELECT i, hash(i) % 10 = 0 AS again,
    CASE WHEN hash(i) % 10 = 0 THEN hash(i, 1) % {rows} ELSE i END AS n
  FROM range({start}, {end}) AS numbers(i)
)
"""
URL, CAPTION = (
    "(n * 4 // 5)",
    "'a caption of ' || (hash(n * 4 // 5, n) % ({rows} * 2 // 3)) || ' words about it'",
)
HOST = "floor(pow({rows}, (hash(n * 4 // 5, 2) % 1000000) / 1000000.0))::BIGINT"
SKEWS = {
    None: (HOST, URL, CAPTION),
    "caption": (HOST, URL, f"CASE WHEN n % 2 = 0 THEN 'product image' ELSE {CAPTION} END"),
    "url": (
        f"CASE WHEN n % 2 = 0 THEN 1 ELSE {HOST} END",
        f"CASE WHEN n % 2 = 0 THEN 1 ELSE {URL} END",
        CAPTION,
    ),
    "host": (f"CASE WHEN n % 2 = 0 THEN 1 ELSE {HOST} END", URL, CAPTION),
}


def make_lists(folder: Path, rows: int, skew: str | None) -> None:
    """`rows` made rows in Parquet files of `folder`."""
    host, url, caption = (text.format(rows=rows) for text in SKEWS[skew])
    with duckdb.connect(config={"threads": 2}) as connection:
        for number in range(FILES):
            start, end = rows * number // FILES, rows * (number + 1) // FILES
            sql = ROWS_SQL.format(host=host, url=url, caption=caption, rows=rows, start=start, end=end)
            connection.execute(f"COPY ({sql}) TO '{folder}/{number:02d}.parquet' (FORMAT parquet)")


def expected(folder: Path, spill: Path) -> tuple[dict[str, int], float]:
    """Distinct pairs, URLs and captions of the lists, and the seconds of a bare GROUP BY of each key."""
    with duckdb.connect(
        config={"memory_limit": "3GB", "threads": 2, "temp_directory": str(spill)}
    ) as connection:
        connection.execute(f"CREATE VIEW rows AS SELECT * FROM '{folder}/*.parquet'")
        connection.execute(
            "CREATE TABLE keys AS SELECT md5_number(url || '\t' || caption) AS pair,"
            " md5_number(url) AS url, md5_number(caption) AS caption FROM rows"
        )
        begun = time.perf_counter()
        counts = {}
        for key in ("pair", "url", "caption"):
            sql = f"SELECT count(*), sum(n) FROM (SELECT {key}, count(*) AS n FROM keys GROUP BY {key})"
            counts[f"{key}s"] = connection.execute(sql).fetchall()[0][0]
        return counts, time.perf_counter() - begun


def measure(rows: int, skew: str | None, engine_name: str, commands: Sequence[str]) -> dict[str, Any]:
    """Run the stages over `rows` made rows and check every count."""
    with tempfile.TemporaryDirectory() as root:
        lists, out = Path(root, "lists"), Path(root, "out")
        lists.mkdir()
        make_lists(lists, rows, skew)
        counts, bare_s = expected(lists, Path(root, "spill"))
        recipe = build_recipe({"ingest": {"input": [str(lists)], "max_url_bytes": 2048}}, "bench_rows")
        engine = OnRay() if engine_name == "ray" else Here()
        memory = PeakMemory()
        memory.start()
        seconds: dict[str, float] = {}
        try:
            for command in commands:
                summary = run(recipe, out, command=command, engine=engine, progress=Quiet())
                assert summary.exit_code == 0, summary.as_json()
                seconds |= {stage: round(report.seconds, 2) for stage, report in summary.stages.items()}
                if command == "dedup":
                    check(summary.stages["dedup"], counts, rows)
            spread = spreads(out, seconds)
            left = {name: folder_mb(out / name) for name in FOLDERS if (out / name).exists()}
        finally:
            peak_mb = memory.stop()
            engine.close()
    return {
        "rows": rows,
        "stages_s": seconds,
        "total_s": round(sum(seconds.values()), 2),
        "bare_duckdb_s": round(bare_s, 2),
        "ratio": round(seconds["dedup"] / bare_s, 2),
        "peak_mb": round(peak_mb),
        "largest_process_mb": round(memory.largest),
        "distinct": counts,
        "spread": spread,
        "mb": left,
    }


def spreads(out: Path, stages: Iterable[str]) -> dict[str, float]:
    """Of each stage with some tasks the deviation of the logarithm of their lengths."""
    found = {}
    for stage in stages:
        lengths = [record["seconds"] for record in records(out, stage) if record["seconds"]]
        if len(lengths) > FEW:
            found[stage] = round(statistics.stdev(map(math.log, lengths)), 2)
    return found


def check(report: Any, counts: dict[str, int], rows: int) -> None:
    """Raises AssertionError where the stage counted otherwise than DuckDB."""
    facts: dict[str, int] = {}
    for of_task in report.facts.values():
        for name in counts:
            facts[name] = facts.get(name, 0) + int(of_task.get(name, 0))
    assert report.counts.total() == rows, (report.counts, rows)
    assert report.counts["first"] == counts["pairs"], (report.counts, counts)
    assert facts == counts, (facts, counts)


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--slope", action="store_true")
    parser.add_argument("--skew", choices=[name for name in SKEWS if name])
    parser.add_argument("--engine", choices=["here", "ray"], default="ray")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    asked = parser.parse_args()
    line: dict[str, Any] = {
        "what": ", ".join(asked.commands),
        "engine": asked.engine,
        "skew": asked.skew,
    }
    if asked.slope:
        small = measure(asked.rows // 10, asked.skew, asked.engine, asked.commands)
        line |= {"small": small}
    line |= measure(asked.rows, asked.skew, asked.engine, asked.commands)
    if asked.slope:
        slopes = {
            stage: seconds / 10 / max(line["small"]["stages_s"][stage], 0.01)
            for stage, seconds in line["stages_s"].items()
        }
        line["slopes"] = {stage: round(slope, 2) for stage, slope in slopes.items()}
        line["slope"] = round(max(slopes["ingest"], slopes["dedup"]), 2)
        line["slope_ok"] = int(line["slope"] <= 1.1)
    print(json.dumps(line | machine()))


if __name__ == "__main__":
    main()
