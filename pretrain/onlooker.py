"""What a run says of itself on its way: progress, a line in the log, evaluations between two steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..recipe import Evaluate
from ..runner import Task, beat
from .batch import Batch
from .compare import Comparison
from .evaluation.measure import measure
from .flops import FlopCounter, stated_peak
from .run_log import Pace, RunLog
from .tokenizer import Encode
from .trainer import Trainer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run writes: its model folder, its timings, and its live progress."""

    folder: Path
    log: Path
    task: Task
    scores: Path | None = None  # where columns go that a system makes of its pairs
    held_out: Evaluate | None = None  # what it is evaluated on, on the way too


class Onlooker:
    """Follows a run. Nothing here changes what is learned."""

    def __init__(self, trainer: Trainer, place: Place, encode: Encode, *, first: int, batch: int) -> None:
        """first: steps that are done. batch: pairs in one."""
        self.trainer, self.place, self.encode, self.batch = trainer, place, encode, batch
        self.log = RunLog(place.log, place.task.name, trainer.training, since=first)
        self.flops = FlopCounter(trainer.towers, trainer.system)
        self.peak = stated_peak(trainer.towers.device, trainer.amp)
        self.paces = Pace(first), Pace(first)  # of the progress and of the log
        self.per_step = 0.0  # FLOP

    def show(self, done: int, loss: Tensor, waited: float, said: str) -> None:
        """Progress after `done` steps. waited: seconds that the loop stood waiting for data."""
        values = self._values(0, done, loss, waited)
        names = {"loss": "{:.2f}", "samples_per_s": "{:,.0f} samples/s", "mfu": "MFU {:.2f}"}
        names |= {"waiting": "waiting {:.0%}", "temperature": "temperature {:.3f}"}
        names |= {"grad_norm": "gradient {:.2g}"}
        words = [text.format(values[name]) for name, text in names.items() if values.get(name) is not None]
        beat(
            self.place.task,
            done,
            self.trainer.steps,
            "  ".join([f"loss {words[0]}", *words[1:], said]).strip(),
        )

    def note(self, done: int, loss: Tensor, waited: float, batch: Batch | None) -> None:
        """A line in the log; the batch is the last one, whose operations are counted."""
        if batch is not None:
            self.per_step = self.flops.of(batch)
        values = self._values(1, done, loss, waited)
        rate = next(group["lr"] for group in self.trainer.optimizer.param_groups if group["share"] == 1)
        self.log.note(done, values | {"lr": rate, "gflop_per_step": round(self.per_step / 1e9, 3)})

    def _values(self, which: int, done: int, loss: Tensor, waited: float) -> dict[str, Any]:
        """Utilisation is of the operations of the batch that was counted last."""
        found: dict[str, Any] = {"loss": round(float(loss), 6)}
        found |= self.paces[which].since(done, self.batch, waited)
        if self.peak is not None and self.per_step:
            rate = found["samples_per_s"] / self.batch * self.per_step
            found["mfu"] = round(rate / self.peak, 4)
        found["temperature"] = round(1 / float(self.trainer.towers.scale.detach()), 6)
        found["grad_norm"] = round(float(self.trainer.norm), 6)
        return found

    def evaluate(self, done: int) -> None:
        """Measure the model as it is, or its running mean where that will be saved."""
        assert self.place.held_out is not None
        begun, trainer = time.perf_counter(), self.trainer
        with trainer.as_saved():
            model = Comparison(trainer.towers, trainer.objective)
            found = measure(model, self.encode, self.place.held_out)
        for pace in self.paces:
            pace.skip(time.perf_counter() - begun)
        self.log.note(done, {"evaluation": found}, group="evaluation")

    def evaluates(self, done: int) -> bool:
        """Whether it is time to."""
        every = self.trainer.training.watch.evaluate_every
        return every is not None and self.place.held_out is not None and done % every == 0
