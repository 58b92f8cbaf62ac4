"""The scorer that is trained on the crawl itself, cross-fitted: fold k's model never sees fold k."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ..recipe import Bootstrap
from ..runner import Stage, Tally, Task, Worker
from .folds import Folds
from .loop import Hook, train_model, trained_counts
from .onlooker import Place
from .precision import with_precision
from .samples import Selected, Source, raw_source
from .scorer import GROW, settle, settled, take_fold
from .scorer import NAME as SCORER
from .tokenizer import MAX_CAPTIONS, make_tokenizer
from .towers import open_encoder, save_config
from .trainer import with_towers

FOLDER = Path("model") / "bootstrap"
SELECTION = Path("selection") / "bootstrap.parquet"
TOO_FEW = (
    "too few for a noise score: give a longer list, loosen bootstrap.rules, or do without it with"
    " --set decide.max_noise=null"
)


def fold_folder(out: Path, fold: int) -> Path:
    """Where the model that has not seen `fold` lies."""
    return out / FOLDER / f"fold{fold}"


def tokenizer_tasks(out: Path) -> list[Task]:
    """One task."""
    return [Task("tokenizer", "tokenizer")]


def tokenizer_stage(out: Path, settings: Bootstrap) -> Stage:
    """Write `model/bootstrap/tokenizer.json`, trained on the bootstrap selection's captions."""
    return Stage("tokenizer", start_tokenizer, (out, settings))


def start_tokenizer(out: Path, settings: Bootstrap) -> Worker:
    """The worker of `tokenizer`. Counts the captions `read`; a named model has its own tokenizer."""

    def work(task: Task) -> Tally:
        grows = settings.scorer == GROW
        chosen, line = settle(out / FOLDER, settings, _chosen(out) if grows else None)
        said = {"scorer": line} if line else {}
        if settings.scorer is not None and not grows:
            return Tally({}, said)
        towers = chosen.training.towers
        if towers.name is not None:
            return Tally({}, {"tokenizer": towers.name, **said})
        source = _chosen(out)
        tokenizer = make_tokenizer(source.captions(), towers, out / FOLDER)
        tokens = {"tokens": tokenizer.get_vocab_size()}
        return Tally({"read": min(source.total, MAX_CAPTIONS)}, tokens | said)

    return work


def _chosen(out: Path) -> Source:
    return raw_source(out / "raw", Selected(out / SELECTION), TOO_FEW)


def bootstrap_tasks(out: Path, settings: Bootstrap) -> list[Task]:
    """One task per fold."""
    known = (out / FOLDER / SCORER).is_file()
    folds = settled(out / FOLDER, settings).folds if known else settings.folds
    return [Task("bootstrap", f"fold{fold}", {"fold": fold}) for fold in range(folds)]


def bootstrap_stage(out: Path, settings: Bootstrap) -> Stage:
    """Write `model/bootstrap/fold<k>/` for every fold."""
    training = settings.training
    return Stage("bootstrap", start_bootstrap, (out, settings), training.threads, training.gpus)


def start_bootstrap(out: Path, settings: Bootstrap, hook: Hook | None = None) -> Worker:
    """The worker of `bootstrap`; `hook` is for tests."""

    def work(task: Task) -> Tally:
        return train_fold(task, out, settings, hook)

    return work


def train_fold(task: Task, out: Path, settings: Bootstrap, hook: Hook | None = None) -> Tally:
    """Train the model of one fold on the bootstrap selection without that fold.

    Counts the pairs `trained_on`, and those whose picture
    is `undecodable`. Where the towers name a checkpoint nothing is trained: it is recorded.
    """
    folder = fold_folder(out, task.data["fold"])
    if settings.scorer not in (None, GROW):
        take_fold(str(settings.scorer), task.data["fold"], folder)
        return Tally({}, {"scorer": settings.scorer})
    settings = settled(out / FOLDER, settings)
    training = with_precision(with_towers(settings.training), out / FOLDER)
    if training.towers.checkpoint is not None:
        save_config(training.towers, folder)
        return Tally({}, {"checkpoint": training.towers.checkpoint})
    source = raw_source(out / "raw", OutsideFold(out, settings.folds, task.data["fold"]), TOO_FEW)
    encode = open_encoder(out / FOLDER, training.towers)
    place = Place(folder, out / "_log" / "train", task)
    facts = train_model(source, encode, training, place, hook)
    return Tally(trained_counts(facts), facts)


class OutsideFold:
    """Keeps the pairs of the bootstrap selection that are not in `fold`."""

    def __init__(self, out: Path, folds: int, fold: int) -> None:
        self.given = out, folds, fold
        self._selected, self._fold_of = Selected(out / SELECTION), Folds(out, folds)

    def __call__(self, table: pa.Table) -> np.ndarray:
        """(N,) bool."""
        return self._selected(table) & (self._fold_of(table) != self.given[2])

    def __reduce__(self) -> tuple[type[OutsideFold], tuple[Path, int, int]]:
        return OutsideFold, self.given
