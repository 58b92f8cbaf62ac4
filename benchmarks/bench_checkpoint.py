"""How long the training loop stands while a checkpoint of a model is kept: copies alone, the file is written
by a thread. `stall_s` is what `save` takes, `longest_pause_s` the longest that a thread beside the write was
kept from running. python benchmarks/bench_checkpoint.py [--model ViT-B-32]"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch

from pairmill.pretrain.checkpoint import Checkpoints, Identity, found_checkpoints, read_checked
from pairmill.pretrain.optimizer import make_optimizer
from pairmill.pretrain.towers import build_towers, pick_device
from pairmill.recipe import Towers, Training

ROUNDS = 4


class Pauses(threading.Thread):
    """Notes the longest time between two of its turns."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest, self.going = 0.0, True

    def run(self) -> None:
        """Count until told to stop."""
        last = time.perf_counter()
        while self.going:
            time.sleep(0.001)
            now = time.perf_counter()
            self.longest, last = max(self.longest, now - last), now


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    model = parser.parse_args().model
    torch.set_num_threads(1)
    towers = build_towers(Towers(name=model)).to(pick_device())
    optimizer = make_optimizer(towers, Training())
    for value in towers.clip.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    state = {f"model.{name}": value for name, value in towers.clip.state_dict().items()}
    stalls, writes = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), Identity({}, ""), kept=2)
        checkpoints.prepare(state, optimizer)
        checkpoints.wait()
        pauses = Pauses()
        pauses.start()
        for step in range(ROUNDS):
            begun = time.perf_counter()
            checkpoints.save(step, state, optimizer)
            stalls.append(time.perf_counter() - begun)
            checkpoints.wait()
            writes.append(time.perf_counter() - begun)
        pauses.going = False
        files = found_checkpoints(Path(folder))
        said, tensors = read_checked(files[0])
        if int(said["step"]) != ROUNDS - 1 or len(files) != 2:
            raise SystemExit("not the last two checkpoints: nothing is reported")
        if not all(torch.equal(tensors[name], value.cpu()) for name, value in state.items()):
            raise SystemExit("a checkpoint holds other weights: nothing is reported")
        size = files[0].stat().st_size
    found = {"bench": "checkpoint", "model": model, "mb": round(size / 1e6, 1)}
    found |= {"stall_s": round(median(stalls), 3), "longest_stall_s": round(max(stalls), 3)}
    found |= {"write_s": round(median(writes), 3), "longest_pause_s": round(pauses.longest, 3)}
    print(json.dumps(found | {"device": towers.device.type, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
