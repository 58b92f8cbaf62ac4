"""The whole recipe on real photos: Flickr8k, English and Chinese, planted noise, held against the truth.

PAIRMILL_DATA=folder python benchmarks/bench_flickr8k.py [--pictures N] [--out DIR] [--engine ray]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from common import PeakMemory, data_folder, machine  # pyright: ignore[reportImplicitRelativeImport]
from flickr8k_web import Server, Web, make_web  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.calibration import allowed
from pairmill.pipeline import run
from pairmill.recipe import load_recipe

ASKED = (0.01, 0.02, 0.05, 0.10, 0.20)


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a good pair scores above a bad one, ties half."""
    both = np.concatenate([good, bad])
    order = np.argsort(both, kind="stable")
    ranks = np.empty(len(both))
    ranks[order] = np.arange(1, len(both) + 1)
    return float((ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def truth_by_uid(out: Path, web: Web) -> str:
    """SQL: `truth` by row of the list, and `first`, the row that each uid was first seen in."""
    return f"""WITH truth AS (
            SELECT *, row_number() OVER () - 1 AS source_row FROM read_parquet('{web.truth}')
        ), first AS (
            SELECT uid, min(source_row) AS source_row FROM read_parquet('{out}/pairs/*.parquet') GROUP BY uid
        )"""


def scored_pairs(out: Path, web: Web) -> dict[str, Any]:
    """Columns of every scored pair that is no copy: language, whether swapped, scores."""
    query = f"""
        {truth_by_uid(out, web)}
        SELECT t.lang, t.swapped, n.cosine_v1, n.mismatch_p_v2, n.mismatch_q_v2, e.cosine_in_sample_v1
        FROM first JOIN truth t USING (source_row)
        JOIN read_parquet('{out}/scores/noise/*.parquet') n USING (uid)
        JOIN read_parquet('{out}/scores/embedding/*.parquet') e USING (uid)
        ORDER BY uid"""
    return duckdb.connect().execute(query).fetchnumpy()


def noise_figures(pairs: dict[str, Any]) -> dict[str, Any]:
    """AUC and noise asked for against noise kept, for each language."""
    figures: dict[str, Any] = {}
    for language in ("en", "zh"):
        own = pairs["lang"] == language
        swapped = np.asarray(pairs["swapped"][own], bool)
        cosine = np.asarray(pairs["cosine_v1"][own], float)
        in_sample = np.asarray(pairs["cosine_in_sample_v1"][own], float)
        q = np.asarray(pairs["mismatch_q_v2"][own], float)
        kept = {asked: q <= asked for asked in ASKED}
        figures[language] = {
            "pairs": int(own.sum()),
            "true_noise": round(float(swapped.mean()), 4),
            "auc_cross_fitted": round(auc(cosine[~swapped], cosine[swapped]), 4),
            "auc_in_sample": round(auc(in_sample[~swapped], in_sample[swapped]), 4),
            "asked_got_kept": [
                [asked, round(float(swapped[mask].mean()), 4) if mask.any() else 0.0, int(mask.sum())]
                for asked, mask in kept.items()
            ],
        }
    return figures


def copy_figures(out: Path, web: Web) -> dict[str, float]:
    """Recall and precision of near-copies, over pictures."""
    query = f"""
        {truth_by_uid(out, web)}
        SELECT picture, max(copied) AS planted, max(near_size_v1) > 1 AS found
        FROM first JOIN truth USING (source_row)
        JOIN read_parquet('{out}/scores/near/*.parquet') USING (uid)
        GROUP BY picture"""
    found = duckdb.connect().execute(query).fetchnumpy()
    planted, hit = (np.asarray(found[name], bool) for name in ("planted", "found"))
    both = int((planted & hit).sum())
    return {
        "planted": int(planted.sum()),
        "found": int(hit.sum()),
        "recall": round(both / max(planted.sum(), 1), 4),
        "precision": round(both / max(hit.sum(), 1), 4),
    }


def stage_rates(out: Path) -> dict[str, dict[str, float]]:
    """Rows, task seconds and rate of each stage, from its tallies."""
    rates: dict[str, dict[str, float]] = {}
    for folder in sorted((out / "_done").iterdir()):
        tallies = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        seen, seconds = sum(t["seen"] for t in tallies), sum(t["seconds"] for t in tallies)
        rates[folder.name] = {
            "rows": seen,
            "task_s": round(seconds, 1),
            "rows_per_s": round(seen / max(seconds, 1e-9)),
        }
    return rates


def main() -> None:
    """Make the web, run the recipe, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    data = data_folder("flickr8k")
    out = arguments.out or Path(tempfile.mkdtemp(prefix="flickr8k-"))
    web = make_web(data, out.with_name(out.name + "-web"), pictures=arguments.pictures)
    memory = PeakMemory()
    memory.start()
    begun = time.perf_counter()
    with Server(web) as resolve:
        overrides = {
            "ingest.input": [str(web.list)],
            "evaluate.retrieval": str(web.holdout),
            "run.engine": arguments.engine,
            "run.resolve": resolve,
            **{key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.set)},
        }
        recipe = load_recipe(Path(__file__).with_name("flickr8k.yaml"), overrides)
        summary = run(recipe, out)
    figures = {
        "what": "flickr8k",
        "seconds": round(time.perf_counter() - begun, 1),
        "peak_mb": round(memory.stop()),
        "noise": noise_figures(scored_pairs(out, web)),
        "near_copies": copy_figures(out, web),
        "stages": stage_rates(out),
        "eval": json.loads((out / "model" / "eval.json").read_text()),
        "funnel": summary.as_json()["funnel"],
        **machine(),
    }
    print(json.dumps(figures, ensure_ascii=False))
    found = [each for own in figures["noise"].values() for each in own["asked_got_kept"]]
    sys.exit(0 if all(got <= allowed(asked, kept) for asked, got, kept in found) else 1)


if __name__ == "__main__":
    main()
