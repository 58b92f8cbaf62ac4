"""A real list of 320,000 rows through ingest, dedup, language and text rules: rows per second.

PAIRMILL_DATA=folder python benchmarks/bench_columns.py [--engine ray]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from common import PeakMemory, data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pipeline import run
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.recipe import Recipe, build_recipe
from pairmill.runner import Engine, Here, Stage, Tally, Task, Worker

RULES = {"sets": ["copies", "language", "plain_text"], "values": {"min_lang_prob": 0.0}}


def nothing() -> Worker:
    """A worker that does nothing: it shows that the engine is up before the clock starts."""
    return lambda task: Tally({"ok": 1})


def rates(recipe: Recipe, out: Path, engine: Engine) -> dict[str, float]:
    """Wall seconds of each stage; every row must end under one reason."""
    found: dict[str, float] = {}
    for command in ("ingest", "dedup", "language"):
        summary = run(recipe, out, command=command, engine=engine, progress=Quiet())
        assert summary.exit_code == 0
        found |= {stage: report.seconds for stage, report in summary.stages.items()}
        rows = {stage: report.counts.total() for stage, report in summary.stages.items()}
        pairs = rows.get("ingest", 0) or sum(rows.values()) / len(rows)
        assert pairs > 300_000, rows
    return found


def main() -> None:
    """Six runs, the first a warm-up; prints the median of the others as one JSON line, and the best."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="ray")
    name = parser.parse_args().engine
    source = data_folder("urls-reddit") / "urls-reddit"
    raw = {
        "ingest": {"input": [str(source)], "rows_per_part": 40_000},
        "language": {"rules": RULES},
    }
    recipe = build_recipe(raw, "bench_columns")
    engine = OnRay() if name == "ray" else Here()
    list(engine(Stage("warm", nothing), [Task("warm", str(n)) for n in range(4)], Quiet()))
    memory = PeakMemory()
    memory.start()
    seconds = []
    for _ in range(6):
        with tempfile.TemporaryDirectory() as out:
            seconds.append(rates(recipe, Path(out), engine))
    engine.close()
    totals = sorted(sum(each.values()) for each in seconds[1:])
    stages = {stage: round(median(each[stage] for each in seconds[1:]), 2) for stage in seconds[0]}
    print(
        json.dumps(
            {
                "what": "ingest, dedup, language, text rules",
                "rows": 320_000,
                "engine": name,
                "median_s": round(totals[len(totals) // 2], 2),
                "spread_s": round(totals[-1] - totals[0], 2),
                "rows_per_s": round(320_000 / totals[len(totals) // 2]),
                "best_rows_per_s": round(320_000 / totals[0]),
                "stages_s": stages,
                "peak_mb": round(memory.stop()),
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
