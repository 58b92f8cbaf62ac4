"""The stages `noise` and `near` on made input of 100,000 pairs: 128 dimensions, two folds, three languages.

A third of the good pairs are seen poorly, 30 % of the captions are swapped; a fifth of the pictures are
near-copies of others. The answers are checked before the figures are printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import machine  # pyright: ignore[reportImplicitRelativeImport]

DIM, SHARDS, SWAPPED, COPIED = 128, 10, 0.3, 0.2


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_input(out: Path, n: int) -> tuple[np.ndarray, int]:
    """scores/embedding, scores/language and raw for `n` pairs: which are swapped, and how many are copies."""
    from pairmill.shards.schema import EMBEDDING, LANGUAGE, RAW

    dice = np.random.default_rng(0)
    topics = dice.normal(size=(n, DIM)) * np.where(dice.random((n, 1)) < 1 / 3, 0.35, 1.0)
    image = unit(topics + dice.normal(size=(n, DIM)) + 0.5).astype(np.float16)
    text = unit(topics + dice.normal(size=(n, DIM)) - 0.3).astype(np.float16)
    swapped = np.zeros(n, bool)
    chosen = dice.permutation(n)[: int(n * SWAPPED)]
    swapped[chosen] = True
    text[chosen] = text[np.roll(chosen, 1)]
    codes = dice.integers(0, 256, (n, 32), dtype=np.uint8)
    copies = int(n * COPIED)
    codes[n - copies :] = codes[:copies]
    for _ in range(15):
        codes[np.arange(n - copies, n), dice.integers(0, 32, copies)] ^= np.uint8(4)
    uids = [dice.bytes(16) for _ in range(n)]
    for folder in ("scores/embedding", "scores/language", "raw"):
        (out / folder).mkdir(parents=True)
    for shard, rows in enumerate(np.array_split(np.arange(n), SHARDS)):
        uid = [uids[row] for row in rows]
        empty = {field: [None] * len(rows) for field in {*EMBEDDING.names, *RAW.names}}
        given: dict[str, Any] = {**empty, "uid": uid, "url_hash": uid, "outcome": ["ok"] * len(rows)}
        given |= {"fold": dice.integers(0, 2, len(rows)), "wave": [0] * len(rows)}
        given |= {"cosine_v1": (image[rows].astype(np.float32) * text[rows]).sum(1)}
        given |= {"pdq_v1": [code.tobytes() for code in codes[rows]], "pdq_quality_v1": [90] * len(rows)}
        given |= {"caption": [f"caption {row}" for row in rows], "lang_prob_v1": [0.9] * len(rows)}
        given |= {"lang_v1": [("en", "de", "zh")[row % 3] for row in rows]}
        for folder, schema in (("scores/embedding", EMBEDDING), ("scores/language", LANGUAGE), ("raw", RAW)):
            table = pa.table({field: given[field] for field in schema.names}, schema=schema)
            pq.write_table(table, out / folder / f"{shard:05d}.parquet")
        np.save(out / f"scores/embedding/{shard:05d}.image.npy", image[rows])
        np.save(out / f"scores/embedding/{shard:05d}.text.npy", text[rows])
    return swapped, copies


def run_noise(out: Path, swapped: np.ndarray) -> float:
    """Seconds; checks the promise at 5 and 10 %."""
    from pairmill.filter.noise import noise_stage, noise_tasks
    from pairmill.recipe import Noise

    stage = noise_stage(out, Noise())
    begun = time.perf_counter()
    stage.start(*stage.args)(noise_tasks(out)[0])
    seconds = time.perf_counter() - begun
    files = sorted((out / "scores/noise").glob("*.parquet"))
    q = np.concatenate([pq.read_table(file)["mismatch_q_v2"].to_numpy() for file in files])
    for asked in (0.05, 0.1):
        share = swapped[q <= asked].mean()
        if not share <= asked:
            raise SystemExit(f"asked for {asked:.0%} of noise, got {share:.1%}")
    return seconds


def run_near(out: Path, copies: int) -> float:
    """Seconds; checks that each copy was found, and nothing else."""
    from pairmill.filter.near import near_stage, near_tasks
    from pairmill.recipe import Near

    stage = near_stage(out, Near())
    begun = time.perf_counter()
    tally = stage.start(*stage.args)(near_tasks(out)[0])
    seconds = time.perf_counter() - begun
    if tally.counts["near_copy"] != copies:
        raise SystemExit(f"{tally.counts['near_copy']} near-copies, expected {copies}")
    return seconds


def main() -> None:
    """Print one JSON line per stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        swapped, copies = write_input(Path(folder), given.pairs)
        for what, run in (
            ("noise", lambda out: run_noise(out, swapped)),
            ("near", lambda out: run_near(out, copies)),
        ):
            times = [run(Path(folder)) for _ in range(given.repeats + 1)][1:]
            median = float(np.median(times))
            figures = {
                "what": what,
                "pairs": given.pairs,
                "median_s": round(median, 2),
                "spread_s": round(max(times) - min(times), 2),
                "pairs_per_s": round(given.pairs / median),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
            print(json.dumps({**figures, **machine()}))


if __name__ == "__main__":
    main()
