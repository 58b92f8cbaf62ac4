"""A step of training on batches that lie in memory: pairmill's Trainer beside open_clip's own loop.

    [PAIRMILL_DATA=folder] python benchmarks/bench_step.py [--towers ViT-B-32] [--batch 16] [--steps 3]

Both take the same model, batches, captions and precision, by turns in one process. open_clip computes the
whole context, we the longest caption of the batch. Both losses of the first steps must agree, or nothing
is printed. The best of the steps of each counts, by CPU time where the device is a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
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
    finished,
    on_peer_terms,
)

from pairmill.pretrain.towers import pick_device
from pairmill.pretrain.trainer import Trainer

WARM_UP = 1
APART = {None: 1e-3, torch.bfloat16: 3e-2}  # relative difference of the first losses that is let pass


def clock(device: torch.device) -> float:
    """Seconds of work: of the processor, or of a GPU once it has done all it was given."""
    return time.process_time() if device.type == "cpu" else finished(device)


def step_times(bench: Bench, steps: int) -> dict[str, Any]:
    """The best second count of a step of each, and how far their first losses lie apart."""
    compiled = bench.training.compile
    batches = bench.resident(2)
    ours, theirs = bench.towers(), bench.towers()
    trainer = Trainer(ours, bench.training, bench.steps)
    peer = Peer(bench, theirs, bench.amp, compiled=compiled)
    on_theirs = [on_peer_terms(theirs, batch) for batch in batches]
    seconds: dict[str, list[float]] = {"pairmill": [], "open_clip": []}
    apart = 0.0
    for number in range(steps + WARM_UP):
        at = clock(bench.device)
        one = trainer.step(number, batches[number % 2])
        between = clock(bench.device)
        other = peer.step(number, *on_theirs[number % 2])
        seconds["pairmill"].append(between - at)
        seconds["open_clip"].append(clock(bench.device) - between)
        if number == 0:
            apart = abs(float(one) - float(other)) / float(other)
    best = {name: min(times[WARM_UP:]) for name, times in seconds.items()}
    lengths = [batch["text"].shape[1] for batch in batches]
    return {
        **{name: {"samples_per_s": round(bench.training.batch_size / s, 3)} for name, s in best.items()},
        "ratio": round(best["open_clip"] / best["pairmill"], 3),
        "loss_difference": float(f"{apart:.2g}"),
        "tokens": {"pairmill": lengths, "open_clip": ours.context_length},
    }


def main() -> None:
    """Measure, and print one JSON line."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser()
    parser.add_argument("--towers", choices=TOWERS, default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=1024 if gpu else 16)
    parser.add_argument("--steps", type=int, default=20 if gpu else 3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        training = as_open_clip(TOWERS[given.towers], batch=given.batch, threads=given.threads, compiled=gpu)
        bench = Bench(Path(name), training, pick_device(), given.steps + WARM_UP)
        make_shards(bench.folder / "shards", 2 * given.batch, 256)
        bench.prepare()
        found = step_times(bench, given.steps)
    if found["loss_difference"] > APART[bench.amp]:
        sys.exit(f"losses differ by {found['loss_difference']:.2e}: nothing is measured")
    more = {"towers": given.towers, "batch": given.batch, "steps": given.steps, "threads": given.threads}
    more |= {"precision": str(bench.amp or torch.float32), **contents(), **machine()}
    print(json.dumps({"what": "step", **found, **more}))


if __name__ == "__main__":
    main()
