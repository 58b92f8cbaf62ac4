"""Rules in SQL over made rows: rows per second and CPU seconds, by rule sets.

python benchmarks/bench_rules.py [--rows 10000000] [--threads 2]

The rows lie in memory as Arrow; what is measured is the CASE that the stages evaluate, with its text
columns, and the count by reason. Checks counts against DuckDB's own before it prints a JSON line for each.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from common import machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.rules import compile_rules
from pairmill.filter.sql import database
from pairmill.filter.text import with_text
from pairmill.recipe import Rules

SETS = (
    ("align_image",),
    ("laion_text", "laion_image"),
    ("datacomp_basic",),
    ("align_text", "align_image"),
    ("copies", "language", "plain_text"),
)
MAKE = """
SELECT 'https://host' || (i % 5000) || '.example.com/p/' || i || '.jpg' AS url,
  array_to_string(list_transform(range(2 + i % 11),
    lambda k: 'word' || ((i * 7919 + k * 104729) % 50000)), ' ') AS caption,
  (i % 640 + 100)::INT AS original_width, ((i // 640) % 640 + 100)::INT AS original_height,
  (i % 100000)::BIGINT AS original_bytes, CASE WHEN i % 50 = 0 THEN 'gif' ELSE 'jpeg' END AS format,
  CASE WHEN i % 3 = 0 THEN 'de' ELSE 'en' END AS lang_v1, ((i % 100) / 100)::FLOAT AS lang_prob_v1,
  (i % 20)::INT AS images_per_caption_v1, (i % 1200)::INT AS captions_per_image_v1,
  (i % 4)::INT AS pair_rank_v1, 0 AS caption_rank_v1, i AS rarest_token_rank_v1
FROM range($rows) t(i)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Rules in SQL over made rows.")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--threads", type=int, default=2)
    told = parser.parse_args()
    with database(memory_mb=6_000, threads=told.threads) as connection:
        rows = connection.sql(MAKE, params={"rows": told.rows}).to_arrow_table()
        connection.register("rows", rows)
        small = connection.sql(
            "SELECT count(*) FROM rows WHERE least(original_width, original_height) <= 200"
        )
        expected = small.fetchall()[0][0]
        for sets in SETS:
            compiled = compile_rules(Rules(sets=sets))
            table = with_text("rows", compiled.words)
            sql = f"SELECT CASE {compiled.branches} END AS reason, count(*) FROM {table}"
            seconds, cpu, counts = [], [], dict[str, int]()
            for _ in range(3):
                began, used = time.perf_counter(), time.process_time()
                counts = dict(connection.execute(f"{sql} GROUP BY reason", compiled.values).fetchall())
                seconds.append(time.perf_counter() - began)
                cpu.append(time.process_time() - used)
            assert sum(counts.values()) == told.rows
            assert sets != ("align_image",) or counts["too_small"] == expected
            line = {"what": "rules", "sets": sets, "rows": told.rows, "threads": told.threads}
            line |= {"median_s": round(median(seconds[1:]), 2), "cpu_s": round(median(cpu[1:]), 2)}
            line |= {"rows_per_s": round(told.rows / median(seconds[1:]))}
            line |= {"rows_per_cpu_s": round(told.rows / median(cpu[1:]))}
            print(json.dumps(line | machine()))


if __name__ == "__main__":
    main()
