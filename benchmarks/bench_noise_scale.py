"""The stage `noise` on made embeddings of 128 dimensions, by sources, against the exact computation.

python benchmarks/bench_noise_scale.py --pairs 1000000 [--partition 250000] [--slope] [--engine ray]

Two folds and languages as unequal as on the web, a third of the good pairs seen poorly, 30 % of the captions
swapped within their block of 10,000. `asked_got` is the true share of noise among those kept. Up to 3 million
pairs are scored again in one task, which must write the same bytes; `q_off` is the least, the mean and the
greatest difference of the q-values up to 0.2 to the exact ones, of `calibration.q_values` over all pairs of a
language at once. It can be below 0 where a bin holds few pairs, of folds whose nulls differ.
With --slope the same at a tenth of the pairs and of the partition: `slope` is the time per pair of the larger
run by that of the smaller one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import PeakMemory, machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill import pipeline
from pairmill.filter import passes
from pairmill.filter.calibration import ASKED, noise_by_stratum, q_values
from pairmill.filter.histogram import Histogram, bin_of
from pairmill.pipeline import Summary
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.recipe import build_recipe
from pairmill.runner import Engine, Here
from pairmill.shards.schema import EMBEDDING, LANGUAGE, RAW
from pairmill.steps import STEPS, Job

DIM, SHARD, SWAPPED, EXACT = 128, 10_000, 0.3, 3_000_000
LANGUAGES = {"en": 0.5, "de": 0.2, "zh": 0.15, "fr": 0.1, "pl": 0.04, "is": 0.0099, "fo": 0.0001}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, as float16."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write_shard(out: Path, number: int, n: int) -> None:
    """One shard of `n` pairs; their languages lie in the part of the same name, in another order."""
    dice = np.random.default_rng([11, number])
    topics = dice.normal(size=(n, DIM)) * np.where(dice.random((n, 1)) < 1 / 3, 0.35, 1.0)
    image, text = (unit(topics + dice.normal(size=(n, DIM)) + offset) for offset in (0.5, -0.3))
    chosen = dice.permutation(n)[: int(n * SWAPPED)]
    text[chosen] = text[np.roll(chosen, 1)]
    swapped = np.zeros(n, bool)
    swapped[chosen] = True
    uid = [dice.bytes(16) for _ in range(n)]
    lang = dice.choice(list(LANGUAGES), n, p=list(LANGUAGES.values()))
    given: dict[str, Any] = {"uid": uid, "url_hash": uid, "outcome": ["ok"] * n, "wave": [0] * n}
    given |= {"fold": dice.integers(0, 2, n), "caption": [f"caption {number} {row}" for row in range(n)]}
    given |= {"cosine_v1": (image.astype(np.float32) * text).sum(1)}
    order = dice.permutation(n)
    told = {"uid": [uid[row] for row in order], "lang_v1": lang[order], "lang_prob_v1": np.full(n, 0.9)}
    for folder, fields, values in (
        ("scores/embedding", EMBEDDING, given),
        ("raw", RAW, given),
        ("scores/language", LANGUAGE, told),
    ):
        columns = [pa.array(values.get(field.name, [None] * n), field.type) for field in fields]
        pq.write_table(pa.table(columns, schema=fields), out / folder / f"{number:05d}.parquet")
    np.save(out / f"scores/embedding/{number:05d}.image.npy", image)
    np.save(out / f"scores/embedding/{number:05d}.text.npy", text)
    np.save(out / f"truth/{number:05d}.npy", swapped)


def run_noise(out: Path, partition: int, engine: Engine) -> dict[str, Any]:
    """The stage, as a run has it: seconds, the largest process, the number of sources."""
    (step,) = (step for step in STEPS if step.stage == "noise")
    recipe = build_recipe({"run": {"rows_per_partition": partition}}, "bench")
    summary, memory = Summary("bench", str(out)), PeakMemory()
    memory.start()
    begun = time.perf_counter()
    problem = pipeline._run_steps(Job(recipe, out), summary, [step], False, engine, Quiet())
    seconds = time.perf_counter() - begun
    memory.stop()
    if problem:
        raise SystemExit(problem)
    left = sum(path.stat().st_size for path in (out / "_exchange").rglob("*") if path.is_file())
    tasks = len(list((out / "_done/noise").glob("*.json")))
    return {"seconds": round(seconds, 1), "largest_mb": round(memory.largest), "tasks": tasks, "left": left}


def read(out: Path, folder: str, column: str) -> np.ndarray:
    """A column of all shards."""
    return np.concatenate(
        [pq.read_table(path)[column].to_numpy() for path in sorted((out / folder).glob("*.parquet"))]
    )


def check(out: Path) -> dict[str, Any]:
    """The promise, and the q-values against the exact ones."""
    q = read(out, "scores/noise", "mismatch_q_v2")
    truth = [np.load(path) for path in sorted((out / "truth").glob("*.npy"))]
    swapped = np.concatenate(truth)
    got = {f"{asked:g}": round(float(swapped[q <= asked].mean()), 4) for asked in (0.02, 0.05, 0.1, 0.2)}
    if any(share > float(asked) for asked, share in got.items()):
        raise SystemExit(f"more noise than asked for: {got}")
    said = json.loads((out / "scores/noise/calibration.json").read_text())
    for asked, n in said["kept_by_asked"].items():
        if n != (q <= float(asked)).sum():
            raise SystemExit(f"{n} said to be kept at {asked}, {(q <= float(asked)).sum()} are")
    return {"asked_got": got, **(compare(out) if len(q) <= EXACT else {})}


class Kept(Histogram):
    """A histogram that keeps its pairs as well."""

    every: ClassVar[list[Kept]] = []

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[np.ndarray, ...]] = []
        Kept.every.append(self)

    def add(self, p: np.ndarray, tails: np.ndarray, stratum: np.ndarray) -> None:
        self.pairs.append((p, tails, stratum))
        super().add(p, tails, stratum)


def compare(out: Path) -> dict[str, Any]:
    """Score all pairs in one task: the files must be the same; its q-values against the exact ones."""
    before = {path: path.read_bytes() for path in (out / "scores/noise").iterdir()}
    passes.Histogram = Kept  # type: ignore[misc]
    run_noise(out, 10**9, Here())
    if any(path.read_bytes() != data for path, data in before.items()):
        raise SystemExit("one task wrote other files than several did")
    off: list[float] = []
    for group in Kept.every:
        if group.n:
            p, tails, stratum = (np.concatenate(part) for part in zip(*group.pairs, strict=True))
            exact = q_values(p, tails @ noise_by_stratum(tails, stratum))
            difference = group.q_by_bin()[bin_of(p)] - exact
            off += difference[exact <= max(ASKED)].tolist()
    Kept.every.clear()
    passes.Histogram = Histogram  # type: ignore[misc]
    return {"q_off": [round(float(each), 5) for each in (min(off), np.mean(off), max(off))]}


def measure(pairs: int, partition: int, engine: Engine) -> dict[str, Any]:
    """Make the input, run, check."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in ("scores/embedding", "scores/language", "raw", "truth"):
            (out / name).mkdir(parents=True)
        for number, start in enumerate(range(0, pairs, SHARD)):
            write_shard(out, number, min(SHARD, pairs - start))
        return {"pairs": pairs, "partition": partition, **run_noise(out, partition, engine), **check(out)}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--partition", type=int, default=250_000, help="run.rows_per_partition")
    parser.add_argument("--slope", action="store_true")
    parser.add_argument("--engine", choices=("here", "ray"), default="here")
    given = parser.parse_args()
    engine: Engine = OnRay(None) if given.engine == "ray" else Here()
    figures = {"what": "noise by sources", "engine": given.engine}
    small = measure(given.pairs // 10, given.partition // 10, engine) if given.slope else None
    figures |= measure(given.pairs, given.partition, engine)
    figures["pairs_per_s"] = round(given.pairs / figures["seconds"])
    if small is not None:
        figures["slope"] = round(figures["seconds"] / small["seconds"] / 10, 2)
    engine.close()
    print(json.dumps({**figures, **machine()}))


if __name__ == "__main__":
    main()
