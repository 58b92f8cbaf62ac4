"""Training rate, MFU and waiting for data: pairmill's loop beside one after open_clip's, on the same shards.

    python benchmarks/bench_train.py [--samples 4096] [--steps 20] [--batch 256] [--towers small]

MFU = FLOPs per sample (forward and backward, matrix products and convolutions, counted by torch's
FlopCounterMode on the full context) x samples/s / the rate of a large matrix product on the same device
in the same precision. Before anything is printed both loops train in float32 on the same batches, and
their losses must agree within 1e-3.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from made_shards import contents, make_shards  # pyright: ignore[reportImplicitRelativeImport]
from open_clip_loop import (  # pyright: ignore[reportImplicitRelativeImport]
    TOWERS,
    Bench,
    Peer,
    as_open_clip,
    check_losses,
    finished,
    flops_per_sample,
    peer_batches,
    product_flops,
)

from pairmill.pretrain.towers import pick_device
from pairmill.pretrain.trainer import Trainer

WARM_UP = 3


def rate_of_ours(bench: Bench, steps: int) -> dict[str, float]:
    """Samples per second, and the share of the time spent waiting for data."""
    towers = bench.towers()
    trainer, loader = Trainer(towers, bench.training, bench.steps), bench.loader(towers)
    begun, waited = 0.0, 0.0
    for number, batch in enumerate(loader.batches(0, steps + WARM_UP)):
        if number == WARM_UP:
            begun, waited = finished(bench.device), loader.wait_s
        trainer.step(number, batch.to(bench.device))
    seconds = finished(bench.device) - begun
    wait = loader.wait_s - waited
    loader.close()
    return {"samples_per_s": steps * bench.training.batch_size / seconds, "data_wait_share": wait / seconds}


def rate_of_peer(bench: Bench, steps: int) -> dict[str, float]:
    """The same of open_clip's way: WebDataset, Pillow and its transforms in worker processes."""
    towers = bench.towers()
    peer = Peer(bench, towers, bench.amp)
    begun = waited = 0.0
    batches = peer_batches(bench, towers)
    for number in range(steps + WARM_UP):
        if number == WARM_UP:
            begun, waited = finished(bench.device), 0.0
        asked = time.perf_counter()
        pictures, tokens = next(batches)
        waited += time.perf_counter() - asked
        peer.step(number, pictures.to(bench.device), tokens.to(bench.device))
    seconds = finished(bench.device) - begun
    return {"samples_per_s": steps * bench.training.batch_size / seconds, "data_wait_share": waited / seconds}


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--towers", choices=TOWERS, default="ViT-B-32" if torch.cuda.is_available() else "small"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch, and as many to load data")
    given = parser.parse_args()
    compiled = torch.cuda.is_available()
    training = as_open_clip(TOWERS[given.towers], batch=given.batch, threads=given.threads, compiled=compiled)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), training, pick_device(), given.steps + WARM_UP)
        size = bench.towers().image_size
        make_shards(bench.folder / "shards", given.samples, 256 if size > 64 else 96)
        bench.prepare()
        print(json.dumps(measure(bench, given)))


def measure(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    """The line: both rates, one after the other twice, the better of each."""
    difference = check_losses(bench)
    side = 8192 if bench.device.type == "cuda" else 1024
    flops, peak = flops_per_sample(bench), product_flops(bench.device, bench.amp or torch.float32, side)
    rates: dict[str, list[dict[str, float]]] = {"pairmill": [], "open_clip": []}
    for _ in range(2):
        rates["pairmill"].append(rate_of_ours(bench, given.steps))
        rates["open_clip"].append(rate_of_peer(bench, given.steps))
    found: dict[str, Any] = {
        "what": "train",
        "towers": given.towers,
        "batch": given.batch,
        "steps": given.steps,
    }
    for name, each in rates.items():
        best = max(each, key=lambda rate: rate["samples_per_s"])
        mfu = best["samples_per_s"] * flops / peak
        found[name] = {key: round(value, 4) for key, value in {**best, "mfu": mfu}.items()}
        found[name]["spread"] = round(1 - min(r["samples_per_s"] for r in each) / best["samples_per_s"], 3)
    found |= {"gflop_per_sample": round(flops / 1e9, 4), "peak_gflop_per_s": round(peak / 1e9, 1)}
    return found | {
        "loss_difference": float(f"{difference:.2g}"),
        "threads": given.threads,
        **contents(),
        **machine(),
    }


if __name__ == "__main__":
    main()
