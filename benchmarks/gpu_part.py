"""What every part of gpu.py works with: the card and what its maker states, sizes, the file that it fills."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip_loop import Bench, as_open_clip, finished  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pretrain.peaks import peak_of
from pairmill.pretrain.towers import pick_device
from pairmill.recipe import Towers

BOUND_S = 5.0  # a rate is measured for this long, and two steps at least
SMALL_TRANSFORMERS = Towers(
    image_size=32,
    embed_dim=32,
    vision={"layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    text={"width": 64, "heads": 2, "layers": 2},
    context_length=16,
    vocab_size=512,
)


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    towers: Towers
    samples: int
    batch: int
    checked_batch: int
    product: int  # side of the matrices
    copied: int  # bytes
    threads: tuple[int, ...]
    short: int  # tokens of a short text
    bound_s: float


FULL = Sizes(Towers(name="ViT-B-32"), 65_536, 4096, 128, 8192, 1 << 30, (1, 4, 8, 16), 16, BOUND_S)
TINY = Sizes(SMALL_TRANSFORMERS, 128, 32, 16, 256, 1 << 20, (1, 2), 8, 0.2)


class Part:
    """The card, the sizes, and the file that a part fills."""

    def __init__(self, work: Path, path: Path, *, cpu: bool) -> None:
        self.work, self.path, self.sizes, self.cpu = work, path, TINY if cpu else FULL, cpu
        self.device = torch.device("cpu") if cpu else pick_device()
        if not cpu and self.device.type != "cuda":
            raise SystemExit("torch sees no GPU here: `--cpu` tries the parts on tiny sizes")
        self.card = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.found: dict[str, Any] = {"card": self.card}

    def note(self, **found: Any) -> None:
        """Write what was found so far."""
        self.found |= found
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def bench(self, *, batch: int | None = None, threads: int | None = None) -> Bench:
        """What trains; compiled on a GPU."""
        size = min(batch or self.batch, self.sizes.samples)
        threads = threads or self.sizes.threads[-1]
        training = as_open_clip(self.sizes.towers, batch=size, threads=threads, compiled=not self.cpu)
        return Bench(self.work, training, self.device, 1000)

    @property
    def batch(self) -> int:
        """Pairs in a batch: what fits, by the card's memory (some 25 MB for a pair)."""
        if self.device.type != "cuda":
            return self.sizes.batch
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return next((n for n in (4096, 2048, 1024, 512) if n * 30e6 < memory), 256)

    def rate(self, step: Callable[[int], object], pairs: int, *, warm_up: int = 3) -> float:
        """Samples per second of a step, after some that compile and tune."""
        for number in range(warm_up):
            step(number)
        begun, done = finished(self.device), 0
        while done < 2 or time.perf_counter() - begun < self.sizes.bound_s:
            step(warm_up + done)
            done += 1
            if done % 4 == 0:
                finished(self.device)  # or the clock would run ahead of the device
        return done * pairs / (finished(self.device) - begun)

    def utilisation(self, rate: float, flops: float) -> float | None:
        """MFU of a rate; None where the card's peak is not known."""
        peak = peak_of(self.card)
        return None if peak is None else round(rate * flops / peak, 4)
