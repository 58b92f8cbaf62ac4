"""The model that is trained on the result, and its twin on everything that was fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, DataError
from ..recipe import Dataset, Evaluate, Train, Training
from ..runner import Stage, Tally, Task, Worker
from ..shards.ledger import finished_tasks
from ..shards.store_path import open_path
from .loop import Hook, train_model, trained_counts
from .onlooker import Place
from .precision import with_precision
from .rank_group import agreed, first_rank_first, reported, share_job
from .samples import Selected, Source, dataset_source, mixed_source, raw_source
from .tokenizer import make_tokenizer
from .towers import open_encoder
from .trainer import with_towers

EVERYTHING = "everything"


def train_tasks(out: Path, settings: Train, name: str) -> list[Task]:
    """One task for the dataset, which is the selection `name`; one for everything where asked for."""
    tasks = [Task("train", name, {"source": settings.source})]
    if settings.compare_everything and name != EVERYTHING:
        tasks.append(Task("train", EVERYTHING, {"source": "raw"}))
    return tasks


def train_stage(out: Path, settings: Train, held_out: Evaluate | None = None) -> Stage:
    """Write `model/<selection>/`. held_out: what is evaluated on the way, where `watch` says how often.

    Raises ConfigError for datasets beside raw shards.
    """
    if settings.data and settings.source == "raw":
        raise ConfigError("train.data: datasets are mixed as they were written: set train.source to shards")
    training = settings.training
    if settings.system is not None:
        training = training.model_copy(update={"system": settings.system})
    arguments = (out, training, held_out, settings.data)
    return Stage("train", start_train, arguments, training.threads, training.gpus)


def start_train(
    out: Path,
    training: Training,
    held_out: Evaluate | None = None,
    data: Sequence[Dataset] = (),
    *,
    hook: Hook | None = None,
) -> Worker:
    """The worker of `train`; `hook` is for tests."""

    def work(task: Task) -> Tally:
        with reported():
            share_job((out, training, held_out, data, task))
            return trained(task)

    def trained(task: Task) -> Tally:
        if task.data["source"] == "shards":
            _refuse_other_dataset(out, task.name)
            source = mixed(out, data) if data else dataset_source(out / "shards")
        else:
            source = raw_source(out / "raw", Selected(out / "selection" / f"{task.name}.parquet"))
        scores = out / "scores" if task.name != EVERYTHING else None  # of the twin nothing is filtered by
        place = Place(out / "model" / task.name, out / "_log" / "train", task, scores, held_out)
        return train_on(source, training, place, hook)

    return work


def follow_training(
    out: Path, training: Training, held_out: Evaluate | None, data: Sequence[Dataset], task: Task
) -> None:
    """What another rank does while rank 0 is at a task."""
    start_train(out, training, held_out, data)(task)


def mixed(out: Path, data: Sequence[Dataset]) -> Source:
    """The datasets that `train.data` names. Raises ConfigError where one is named twice, or is none."""
    weights: dict[Path, float] = {}
    for one in data:
        folder = out if one.folder is None else open_path(one.folder)
        folder = folder / "shards" if (folder / "shards").is_dir() else folder
        if folder in weights:
            raise ConfigError(f"train.data: {folder} is named twice: give it one weight")
        if not any(folder.glob("*.parquet")):
            raise ConfigError(f"train.data: {folder}: no shards there: give a run's folder, or one of shards")
        weights[folder] = one.weight
    return mixed_source(weights)


def _refuse_other_dataset(out: Path, name: str) -> None:
    """Raises DataError where the shards were not written from the selection that names the model."""
    written = finished_tasks(out, "plan-write")
    if written and name not in written:
        raise DataError(
            f"{out / 'shards'}: holds selection {written[0]!r}, not {name!r}: write that first, or train with"
            " --source raw"
        )


def train_on(source: Source, training: Training, place: Place, hook: Hook | None = None) -> Tally:
    """Train a tokenizer where the towers need one, then the towers.

    Counts the pairs `trained_on`, and those whose picture is `undecodable`.
    """
    training = with_precision(with_towers(training), place.folder)
    agreed("what it trains on", source.summary())
    for first in first_rank_first():
        if first and training.towers.name is None and not training.towers.text.get("render"):
            make_tokenizer(source.captions(), training.towers, place.folder)
    encode = open_encoder(place.folder, training.towers)
    facts = train_model(source, encode, training, place, hook)
    return Tally(trained_counts(facts), facts)
