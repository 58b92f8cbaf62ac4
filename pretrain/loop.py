"""The training loop: steps, checkpoints, and the same final files however often it was stopped.

While it runs, the model's folder holds a checkpoint; when it ends, `model.safetensors`, `config.json` and
`train.json` (the loss by step, no timings), which depend on the samples, the settings and the seed alone.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..errors import DataError
from ..recipe import Training
from ..shards.commit import write_json
from ..shards.files import remove_folder
from ..shards.store_path import open_path
from .batch import Batch
from .captions import grouped_encode
from .checkpoint import LIST, Checkpoints, Identity
from .complete import write_columns
from .loader import Loader
from .mixed import make_order
from .objectives import ranks
from .objectives.registry import digest, find_system
from .objectives.system import System
from .onlooker import Onlooker, Place
from .picture_cache import FOLDER as PICTURES
from .picture_cache import CachedLoader, cache_pictures
from .rank_group import agreed, by_first_rank, first_rank_first, together
from .samplers import by_picture, shuffled
from .samples import Source
from .share import AnyOrder, Share, whole_batch
from .tokenizer import Encode
from .towers import TwoTowers, build_towers, pick_device, save_towers, take_picture_tower
from .trainer import Trainer

UNPINNED = {
    "checkpoint_every_s",
    "checkpoints_kept",
    "watch",
    "loader_threads",
    "decoded_cache_mb",
    "max_undecodable",
}  # these change no byte
CURVE_POINTS = 500
SEEN_PER_ROOT = 700  # of the number of pairs: see samples_to_see
AGREED_EVERY = 8  # steps after which several ranks ask the first one whether to keep a checkpoint
LOOK_EVERY_S = 1.0  # how often the loss is fetched from the device, to be shown and checked

Hook = Callable[[int], None]  # called with the number of steps done; a test stops the run by raising


def samples_to_see(training: Training, pairs: int) -> int:
    """What the settings say; else 700 times the root of the number of pairs, and all of them once at least.

    The root lies between what did best on 2,300 made pairs (36,000) and on 29,500 real ones (100,000): few
    pairs are soon known by heart, their noise too.
    """
    if training.samples_seen is not None:
        return training.samples_seen
    return max(pairs, math.isqrt(SEEN_PER_ROOT**2 * pairs))


def train_model(
    source: Source, encode: Encode, training: Training, place: Place, hook: Hook | None = None
) -> dict[str, Any]:
    """Train towers on a source, from the last checkpoint where there is one; returns the facts of the run.

    Raises DataError where the loss is no longer a number.
    """
    torch.set_num_threads(training.threads)
    system = find_system(training.system)
    source.label = system.label
    if training.captions is not None:
        source.say(open_path(training.captions))
    towers = build_towers(training.towers, temperature=system.temperature, seed=training.seed)
    towers = towers.to(pick_device())
    if system.image_from is not None:
        take_picture_tower(towers, open_path(system.image_from))
    own_encode = encode
    encode = grouped_encode(system.captions, source.captions(), encode, towers.context_length)
    sampler = by_picture if training.by_picture else system.sampler or shuffled
    order: AnyOrder = make_order(
        source, encode, batch=training.batch_size, seed=training.seed, sampler=sampler
    )
    if ranks.size() > 1:
        order = Share(order, ranks.rank(), ranks.size())
    loader = make_loader(order, system, towers, training, place)
    try:
        run = _Run(towers, loader, training, place, own_encode)
        run.go(hook)
        if place.scores is not None and ranks.rank() == 0:
            write_columns(run.trainer, source, own_encode, place.scores)
    finally:
        loader.close()
    return run.end()


def trained_counts(facts: dict[str, Any]) -> dict[str, int]:
    """Every pair of a run's source under what became of it."""
    undecodable = facts["undecodable"]
    return {"trained_on": facts["samples"] - undecodable, "undecodable": undecodable}


def make_loader(
    order: AnyOrder, system: System, towers: TwoTowers, training: Training, place: Place
) -> Loader | CachedLoader:
    """Pictures decoded for each step, or embedded once beforehand where the system says so."""
    threads = training.loader_threads
    if system.cached:
        for first in first_rank_first():
            if first:
                cache_pictures(place.folder, order.source, towers, threads=threads)
        return CachedLoader(order, place.folder / PICTURES, context=towers.context_length)
    cache_mb = training.decoded_cache_mb
    size, context = towers.image_size, towers.context_length
    return Loader(
        order,
        size=size,
        context=context,
        threads=threads,
        cache_mb=cache_mb,
        device=towers.device,
        max_undecodable=training.max_undecodable,
    )


class _Run:
    """A training run from its last checkpoint, or from the start, to its final files."""

    def __init__(
        self,
        towers: TwoTowers,
        loader: Loader | CachedLoader,
        training: Training,
        place: Place,
        encode: Encode,
    ) -> None:
        self.towers, self.loader, self.training, self.place = towers, loader, training, place
        self.batch = loader.order.batch
        self.steps = -(-samples_to_see(training, loader.order.samples) // self.batch)
        self.trainer = Trainer(towers, training, self.steps, loader.order.source)
        self.trainer.objective.fit(loader.order.source.captions, encode)
        self.losses = torch.zeros(self.steps, device=towers.device)
        self.norms = torch.zeros_like(self.losses)  # of the gradients, before they were clipped
        identity = _identity(loader, training)
        self.checkpoints = Checkpoints(place.folder, identity, kept=training.checkpoints_kept)
        resumed = self.checkpoints.load(self._state(), self.trainer.optimizer)
        self.first, self.said = resumed.step, resumed.said
        agreed("the step that it goes on from", self.first)
        loader.undecodable.update(resumed.lists.get("undecodable", torch.empty(0)).tolist())
        if self.said:
            logging.getLogger(__name__).warning("%s: %s", place.folder, self.said)
        self.begun = self.looked = self.saved = time.perf_counter()
        self.eyes = Onlooker(self.trainer, place, encode, first=self.first, batch=self.batch)

    def _state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the optimizer's moments and what is counted."""
        return self.trainer.state() | {"losses": self.losses, "norms": self.norms}

    def go(self, hook: Hook | None) -> None:
        """Take every step that is left."""
        try:
            with self.eyes.log.profiled() as recorded:
                for step, batch in enumerate(self.loader.batches(self.first, self.steps), self.first):
                    if step and step % self.loader.order.per_epoch == 0:
                        self.trainer.end_epoch()
                    self.losses[step] = self.trainer.step(step, batch.to(self.towers.device))
                    self.norms[step] = self.trainer.norm
                    self._after(step + 1, batch)
                    recorded()
                    if hook is not None:
                        hook(step + 1)
        finally:
            self.checkpoints.close()
            if ranks.rank() == 0:
                self.eyes.log.close()
        self.trainer.settle()

    def _after(self, done: int, batch: Batch) -> None:
        now, last = time.perf_counter(), done == self.steps
        save = self._saves(done, now) and not last
        note, evaluate = last or self.eyes.log.due, self.eyes.evaluates(done)
        if save or note or evaluate or now - self.looked > LOOK_EVERY_S:
            self._look(done, now)
        if ranks.rank() == 0:
            if note:
                self.eyes.note(done, self.losses[done - 1], self.loader.wait_s, batch)
            if evaluate:
                self.eyes.evaluate(done)
            if done == self.first + 1:
                self.checkpoints.prepare(self._state(), self.trainer.optimizer)
        if save:
            self._save(done)

    def _saves(self, done: int, now: float) -> bool:
        """Whether it is time for a checkpoint. On several ranks the first one says so, and rarely asks."""
        due = now - self.saved >= self.training.checkpoint_every_s
        if ranks.size() == 1:
            return due
        return done % AGREED_EVERY == 0 and bool(by_first_rank(due))

    def _save(self, done: int) -> None:
        lost = together(self.loader.undecodable)
        if ranks.rank() == 0:
            counted = {f"{LIST}undecodable": torch.tensor(sorted(lost), dtype=torch.int64)}
            self.checkpoints.save(done, self._state() | counted, self.trainer.optimizer)
        self.saved = time.perf_counter()

    def _look(self, done: int, now: float) -> None:
        """Show the loss; stop where it is not finite, before a checkpoint could keep it."""
        self.looked = now
        finite = torch.isfinite(self.losses[:done]) & torch.isfinite(self.norms[:done])
        if not bool(finite.all()):
            self._refuse(int((~finite).nonzero()[0]))
        self.eyes.show(done, self.losses[done - 1], self.loader.wait_s, self.said)

    def _refuse(self, step: int) -> None:
        """Raise DataError for a step that was no good; its batch's uids are left in the log's folder."""
        shown = whole_batch(self.loader.order, step).uid.byteswap()  # the digits of a uid in their order
        uids = [f"{uid & (2**64 - 1):016x}" for uid in shown.tolist()]
        loss, norm = float(self.losses[step]), float(self.norms[step])
        path = self.place.log / f"{self.place.task.name}.nan.json"
        found = {"step": step, "loss": str(loss), "grad_norm": str(norm), "uids_begin_with": uids}
        if ranks.rank() == 0:
            write_json(found, path)
        raise DataError(
            f"{self.place.folder}: the loss is {loss} and its gradient's norm {norm} at step {step} of"
            f" {self.steps}; pairs {', '.join(uids[:3])} and {len(uids) - 3} more ({path}): lower training.lr"
            f" (now {self.training.lr:g}) or clip_norm, lengthen warmup, or train in float32"
        )

    def end(self) -> dict[str, Any]:
        """Write the final files, then remove the checkpoint."""
        losses = self.losses.cpu().double()
        folder = self.place.folder
        lost = together(self.loader.undecodable)
        facts = {
            "steps": self.steps,
            "batch": self.batch,
            "samples": self.loader.order.samples,
            "samples_seen": self.steps * self.batch,
            "undecodable": len(lost),
            "loss": round(float(losses[-max(1, self.steps // 20) :].mean()), 6) if self.steps else None,
        }
        if ranks.rank():
            return facts
        save_towers(self.towers, folder, system=self.training.system, objective=self.trainer.objective)
        settings = self.training.model_dump(mode="json", exclude=UNPINNED)
        write_json(facts | {"settings": settings, "curve": _curve(losses)}, folder / "train.json")
        self._write_timings()
        self.checkpoints.remove()
        remove_folder(folder / PICTURES)
        return facts

    def _write_timings(self) -> None:
        seconds = time.perf_counter() - self.begun
        seen = (self.steps - self.first) * self.batch
        timings = {
            "device": self.towers.device.type,
            "precision": str(self.trainer.amp or torch.float32),
            "steps": self.steps - self.first,
            "seconds": round(seconds, 3),
            "samples_per_s": round(seen / max(seconds, 1e-9), 1),
            "data_wait_share": round(self.loader.wait_s / max(seconds, 1e-9), 4),
            "resumed": self.said,
        }
        write_json(timings, self.place.log / f"{self.place.task.name}.json")


def _identity(loader: Loader | CachedLoader, training: Training) -> Identity:
    counts = json.dumps(loader.order.source.counts.tolist())
    settings = training.model_dump(mode="json", exclude=UNPINNED)
    settings["system_source"] = digest(training.system)
    if loader.order.source.weights is not None:
        settings["weights"] = [*loader.order.source.weights.values()]
    return Identity(settings, xxhash.xxh3_128_hexdigest(counts.encode()))


def _curve(losses: Tensor) -> dict[str, list[float]]:
    """The loss as the mean of at most CURVE_POINTS stretches of steps; `step` is where each ends."""
    n = len(losses)
    stretches = torch.tensor_split(losses, max(1, min(n, CURVE_POINTS))) if n else ()
    ends = torch.tensor([len(part) for part in stretches]).cumsum(0) if n else torch.empty(0)
    return {"step": [int(end) for end in ends], "loss": [round(float(part.mean()), 6) for part in stretches]}
