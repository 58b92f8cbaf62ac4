"""One step of training: the batch made ready, its loss and gradients, the optimizer, what is remembered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import ConfigError
from ..recipe import ScorerTraining, Training
from .augment import batch_seed, draw_crops
from .average import Average
from .batch import Batch
from .objectives import ranks
from .objectives.memory import Bank, Table, Teacher
from .objectives.objective import Objective
from .objectives.registry import find_system
from .objectives.step import Found, Setting, backward
from .objectives.system import Stage
from .optimizer import learning_rate, make_optimizer, set_rates
from .samples import Source
from .towers import TwoTowers, autocast_dtype, check_towers


def check_training(training: Training, system: str | dict[str, Any] | None = None) -> None:
    """Find what cannot be built, before any work starts. system: in place of the training's own.

    Raises ConfigError as `find_system` and `check_towers` do.
    """
    if system is not None:
        training = training.model_copy(update={"system": system})
    training = with_towers(training)
    found = find_system(training.system)
    if "image" in found.lock and found.image_from is None and training.towers.checkpoint is None:
        raise ConfigError(
            f"system {found.name}: locks the picture tower, which must have learned: give image_from,"
            " the folder of a model, or towers.name and towers.checkpoint"
        )
    if isinstance(training, ScorerTraining) and all(term.interact.reads == "tokens" for term in found.terms):
        raise ConfigError(
            f"system {found.name}: compares token by token, but scores are cosines of pooled rows, which it"
            " does not teach: choose another system for bootstrap"
        )
    entities = found.captions.entities
    if entities is not None and not Path(entities).is_file():
        raise ConfigError(f"system {found.name}: entities {entities}: no such file")
    if found.cached and (training.crop < 1 or training.flip):
        raise ConfigError(
            f"system {found.name}: pictures embedded once cannot be cropped or mirrored in each step: set"
            " training.crop to 1 and training.flip to false, or cached to false"
        )
    check_towers(training.towers, patch_dropout=training.patch_dropout)


def own_seed(seed: int) -> int:
    """Of this rank: what is drawn for each row must differ from what another draws for its own."""
    return (seed + (ranks.rank() << 32)) % 2**63


def with_towers(training: Training) -> Training:
    """The settings with towers as the system needs them."""
    towers = training.towers.model_copy(update=dict(find_system(training.system).towers))
    return training.model_copy(update={"towers": towers})


class Trainer:
    """Towers, the objective of a system, their optimizer, and one step of training."""

    def __init__(
        self, towers: TwoTowers, training: Training, steps: int, source: Source | None = None
    ) -> None:
        """source: of the pairs, for systems that remember a value for each."""
        self.towers, self.training, self.steps = towers, training, steps
        self.system = system = find_system(training.system)
        towers.lock(system.lock)
        towers.drop_patches(training.patch_dropout)
        towers.clip.logit_scale.requires_grad_(system.learn_temperature)
        self.objective = Objective(system, towers, seed=training.seed)
        self.optimizer = make_optimizer(towers, training, self.objective)
        self.amp = autocast_dtype(training.precision, towers.device)
        followed = {"towers": towers, "objective": self.objective}
        self.teacher = None if system.ema is None else Teacher(followed, system.ema)
        sides = [side for term in system.terms if term.bank for side in (term.left, term.right)]
        self.bank = Bank(sides, system.bank, towers.dimension, towers.device) if sides else None
        self.table = None if system.table is None or source is None else Table(system.table, source.uids())
        self.average = None if training.ema is None else Average(self.named_parameters(), training.ema)
        self.norm = torch.zeros(())  # of the last step's gradients, before they were clipped
        self._stage: Stage | None = None
        if training.compile:
            towers.compile_towers()

    def step(self, step: int, batch: Batch) -> Tensor:
        """Do step `step`, counted from 0, with a batch on the towers' device. Returns its loss."""
        progress = step / max(1, self.steps)
        seed = batch_seed(self.training.seed, step)
        set_rates(self.optimizer, learning_rate(step, self.steps, self.training))
        self._enter(self.system.stage(progress))
        self.towers.train()
        self.objective.train()
        batch = self._prepared(batch, seed)
        system = self.system.at(progress)
        setting = Setting(system, own_seed(seed), self.teacher, self.bank, progress, self.amp)
        self.optimizer.zero_grad(set_to_none=True)
        found = backward(self.objective, batch, setting, chunks=self.training.accumulate)
        values = [*self.towers.clip.parameters(), *self.objective.parameters()]
        ranks.sum_gradients(values)
        self.norm = nn.utils.clip_grad_norm_(values, self.training.clip_norm or math.inf)
        self.optimizer.step()
        self.objective.clamp()
        self._remember(batch, found)
        return ranks.summed(found.loss)

    def _prepared(self, batch: Batch, seed: int) -> Batch:
        """With what the step draws at random, and with what is remembered."""
        for name in self.pictures(batch):
            crops = self._crops(batch, name, seed)
            if crops is not None:
                index = {f"{name}_crop": batch.shared[name]} if name in batch.shared else {}
                batch = batch.having({f"{name}_crop": crops.to(batch[name].device)}, index)
        dice = Generator().manual_seed(own_seed(seed))
        for view in self.system.views:
            batch = view(batch, dice)
        return batch if self.table is None else self.table.fill(batch)

    def _crops(self, batch: Batch, name: str, seed: int) -> Tensor | None:
        """For each picture; on several ranks what each would have on one."""
        crop, flip = self.training.crop, self.training.flip
        if ranks.size() == 1:
            return draw_crops(len(batch[name]), crop=crop, flip=flip, seed=seed)
        every = torch.unique(ranks.gathered(batch["picture"]))
        crops = draw_crops(len(every), crop=crop, flip=flip, seed=seed)
        own = batch["picture"]
        if name in batch.shared:
            own = own.new_zeros(len(batch[name])).scatter_(0, batch.shared[name], own)
        return None if crops is None else crops[torch.searchsorted(every, own).cpu()]

    @staticmethod
    def pictures(batch: Batch) -> list[str]:
        """Fields that are cropped and mirrored: photographs, not pictures of text."""
        return [name for name in ("image",) if name in batch]

    def _remember(self, batch: Batch, found: Found) -> None:
        if self.table is not None:
            losses = ranks.gathered(found.rows[self.table.refresh.term].detach())
            self.table.note(ranks.gather_batch(batch), losses)
        if self.bank is not None:
            self.bank.push(found.encoded, ranks.gather_batch(batch))
        if self.teacher is not None:
            self.teacher.follow()
        if self.average is not None:
            self.average.follow()

    def _enter(self, stage: Stage | None) -> None:
        """Let a new stage's weights be learned, and no others."""
        if stage is self._stage:
            return
        self._stage = stage
        for name, value in self.named_parameters():
            value.requires_grad_(stage is None or stage.trains(name))
        self.towers.lock(self.system.lock)
        if not self.system.learn_temperature:
            self.towers.clip.logit_scale.requires_grad_(False)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Every weight: the towers' as `towers.<open_clip's name>`."""
        own = [(f"towers.{name}", value) for name, value in self.towers.clip.named_parameters()]
        return own + list(self.objective.named_parameters())

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Within it the model is what would be saved now, ready to embed."""
        mean = self.average if self.training.ema_saved else None
        with nullcontext() if mean is None else mean.in_place():
            self.towers.eval()
            self.objective.eval()
            yield

    def settle(self) -> None:
        """The run is over: the model becomes what is to be saved of it."""
        if self.average is not None and self.training.ema_saved:
            self.average.exchange()

    def end_epoch(self) -> None:
        """Every pair was seen once more."""
        self.objective.end_epoch()
        if self.table is not None:
            self.table.turn()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the optimizer's moments: the tensors themselves."""
        found = {f"model.{name}": value for name, value in self.towers.clip.state_dict().items()}
        found |= {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for memory in (self.teacher, self.bank, self.table, self.average):
            found |= {} if memory is None else memory.state()
        return found
