"""Which scorer a crawl gets: one that grows with it, one that an earlier crawl trained, or the recipe's own.

Sizes go by pairs and device (`sized`): for some 50,000 pairs they were measured, on 4,500 photos with ten
captions each; the rest is scaling practice. What was settled lies in `model/bootstrap/scorer.json` from the
first task on, so that a run which goes on elsewhere goes on alike.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
import xxhash

from ..errors import ConfigError, DataError
from ..recipe import Bootstrap, ScorerTraining, Towers
from ..shards.commit import json_text, write_bytes, write_once
from ..shards.store_path import open_path
from .samples import Source
from .towers import read_config

NAME = "scorer.json"
GROW = "grow"
VIEWS, ENOUGH = 20, 100_000  # views of a picture up to so many pairs; half for each decade more
POOLED, DOUBLED = [24, 48, 96, 192], [48, 96, 192, 384]
SYSTEM = {"name": "clip", "targets": "same", "smoothing": 0.1, "doubt": 0.25}
ASKING = {"ask": "captions", "captions": 1.0}  # where pictures have several captions


@dataclass(frozen=True)
class Size:
    """Towers, folds, and what a view of a picture costs."""

    most: float  # pairs it is for
    towers: dict[str, Any]
    folds: int
    view_s: float  # seconds of one core, or of the GPU
    gpu: bool = False


SIZES = (
    Size(3e4, {"vision": {"channels": POOLED, "pool": True}}, 5, 1.5e-3),
    Size(3e5, {"vision": {"channels": POOLED, "pool": True}}, 4, 1.5e-3),
    Size(
        3e6,
        {"vision": {"channels": DOUBLED, "pool": True}, "image_size": 96, "embed_dim": 256}
        | {"text": {"width": 256, "layers": 0}, "vocab_size": 16_384},
        3,
        12e-3,
    ),
    Size(3e7, {"name": "RN50", "image_size": 224}, 2, 1e-3, gpu=True),
    Size(math.inf, {"name": "ViT-B-32"}, 2, 0.5e-3, gpu=True),
)


def sized(pairs: int, pictures: int, *, gpu: bool) -> tuple[dict[str, Any], str]:
    """The settings of `bootstrap` for a crawl, and a line that says them with their cost.

    Samples seen are pictures times views times captions a picture. Without a GPU the towers stop growing at
    the size for a million pairs.
    """
    fitting = [size for size in SIZES if gpu or not size.gpu]
    size = next((size for size in fitting if pairs <= size.most), fitting[-1])
    views = VIEWS * 0.5 ** max(0.0, math.log10(max(pairs, 1) / ENOUGH))
    samples = max(round(views * pairs), 1)
    several = pairs >= 1.5 * pictures
    training = {
        "towers": size.towers,
        "system": SYSTEM | (ASKING if several else {}),
        "samples_seen": samples,
        "by_picture": several,
        "batch_size": 512 if pairs >= 8_192 else 128,
        "weight_decay": 0.5,
    }
    hours = size.folds * views * pictures * (size.folds - 1) / size.folds * size.view_s / 3_600
    tower = size.towers.get("name") or f"pooled convolutions {size.towers['vision']['channels']}"
    line = (
        f"scorer: {tower}, {size.folds} folds, {samples:,} samples seen in each ({views:.1f} views of"
        f" {pictures:,} pictures, {pairs:,} pairs); about {hours:.2g} hours of one"
        f" {'GPU' if size.gpu else 'core'} in all; --set bootstrap.scorer=null takes the recipe's training"
    )
    return {"folds": size.folds, "training": training}, line


def settle(out_folder: Path, settings: Bootstrap, source: Source | None) -> tuple[Bootstrap, str]:
    """The scorer of this folder, as settled before or now; and a line about it, or nothing.

    out_folder: `model/bootstrap`. source: the pairs that it is trained on; None where none are needed.
    """
    if settings.scorer is None:
        return settings, ""
    if settings.scorer != GROW:
        return _reused(out_folder, open_path(settings.scorer), settings)
    assert source is not None
    gpu = settings.training.gpus > 0 or torch.cuda.is_available()
    given, line = sized(source.total, pictures_of(source), gpu=gpu)
    said = {"settings": _over(given, settings), "line": line}
    kept = _read(write_once(json_text(said).encode(), out_folder / NAME), out_folder / NAME)
    return _settled(settings, kept["settings"]), str(kept["line"])


def settled(out_folder: Path, settings: Bootstrap) -> Bootstrap:
    """The scorer as the first task settled it. Raises DataError where it has not."""
    if settings.scorer is None:
        return settings
    path = out_folder / NAME
    if not path.is_file():
        raise DataError(f"{path}: missing: `pairmill bootstrap` settles which scorer is trained")
    return _settled(settings, _read(path.read_bytes(), path)["settings"])


def _settled(settings: Bootstrap, said: dict[str, Any]) -> Bootstrap:
    whole = settings.model_dump(mode="json", exclude={"folds", "training"}) | said
    return Bootstrap.model_validate(whole)


def _over(given: dict[str, Any], settings: Bootstrap) -> dict[str, Any]:
    """The sizes by rule, with what the recipe sets itself on top."""
    own = settings.training.model_dump(mode="json", exclude_defaults=True)
    training = {**given["training"], **own}
    if "towers" in own:
        training["towers"] = {**given["training"]["towers"], **own["towers"]}
    whole = ScorerTraining.model_validate(training).model_dump(mode="json")
    folds = settings.folds if settings.folds != Bootstrap().folds else given["folds"]
    return {"folds": folds, "training": whole}


def _read(data: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data)
        Bootstrap.model_validate(found["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a scorer; `pairmill verify --mend` makes it anew: {error}") from error
    return dict(found)


def pictures_of(source: Source) -> int:
    """How many pictures the pairs have."""
    return sum(
        int(pc.count_distinct(pc.coalesce(table["sha256"], table["place"].cast("binary"))).as_py())
        for table in (source.table(shard) for shard in range(len(source.tables)))
    )


def check_scorer(settings: Bootstrap) -> None:
    """Find a scorer that is named and is none, before any work starts. Raises ConfigError."""
    if settings.scorer not in (None, GROW):
        try:
            _folds_of(open_path(str(settings.scorer)))
        except DataError as error:
            raise ConfigError(f"bootstrap.scorer: {error}") from error


def _folds_of(folder: Path) -> tuple[int, Towers]:
    """How many models a saved scorer has, and their towers."""
    folds = 0
    while (folder / f"fold{folds}" / "config.json").is_file():
        folds += 1
    if folds < 2:
        raise DataError(
            f"{folder}: {folds} models there, expected fold0, fold1 and more: name the folder model/bootstrap"
            " of a finished run"
        )
    towers = [read_config(folder / f"fold{fold}") for fold in range(folds)]
    if any(other != towers[0] for other in towers):
        raise DataError(f"{folder}: its models have different towers")
    if towers[0].name is None:
        _check_tokenizer(folder / "tokenizer.json", towers[0])
    return folds, towers[0]


def _check_tokenizer(path: Path, towers: Towers) -> None:
    from tokenizers import Tokenizer

    try:
        size = Tokenizer.from_str(path.read_text(encoding="utf-8")).get_vocab_size()
    except Exception as error:
        raise DataError(f"{path}: not a tokenizer file: {error}") from error
    if size > towers.vocab_size:
        raise DataError(
            f"{path}: {size:,} tokens, but the models beside it know {towers.vocab_size:,}: it is another's"
        )


def _reused(out_folder: Path, folder: Path, settings: Bootstrap) -> tuple[Bootstrap, str]:
    """Take a saved scorer over: its tokenizer now, its models fold by fold (`take_fold`).

    A pair that both crawls have is in the same fold of both, so no model scores what it was trained on.
    """
    folds, towers = _folds_of(folder)
    training = settings.training.model_copy(update={"towers": towers})
    digests = {name: xxhash.xxh3_64_hexdigest((folder / name).read_bytes()) for name in _files(folder, folds)}
    line = f"scorer: the {folds} models of {folder}, used as they are"
    said = {"folds": folds, "training": training.model_dump(mode="json")}
    text = json_text({"settings": said, "line": line, "files": digests})
    kept = _read(write_once(text.encode(), out_folder / NAME), out_folder / NAME)
    if kept.get("files") != digests:
        raise DataError(f"{folder}: has changed since this run began with it: give another folder as --out")
    if towers.name is None:
        write_bytes((folder / "tokenizer.json").read_bytes(), out_folder / "tokenizer.json")
    return _settled(settings, kept["settings"]), line


def _files(folder: Path, folds: int) -> list[str]:
    names = ["tokenizer.json", *(f"fold{k}/{name}" for k in range(folds) for name in MODEL)]
    return [name for name in names if (folder / name).is_file()]


MODEL = ("config.json", "model.safetensors")


def take_fold(scorer: str, fold: int, to: Path) -> None:
    """Copy one model of a saved scorer, its weights first."""
    for name in reversed(MODEL):
        path = open_path(scorer) / f"fold{fold}" / name
        if path.is_file():
            write_bytes(path.read_bytes(), to / name)
