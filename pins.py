"""An output folder belongs to one recipe: what would change finished work is refused, and the key named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError
from .recipe import Recipe, build_recipe, differences, with_overrides
from .shards.commit import write_bytes
from .shards.job import finished_tasks
from .steps import STEPS

UNPINNED = ("run", "report")  # groups that change no byte of the data
OF_THEIR_OWN = {"decide", "train", "evaluate"}  # done anew, or beside what is there, for other settings
RESOURCES = (  # nor do these: how much of the machine a stage may use, how often it saves, whether it runs
    "dedup.threads",
    "fetch.concurrency",
    "fetch.per_host",
    "fetch.per_host_rate",
    "fetch.hosts",
    "fetch.dead_after",
    "fetch.proxy",
    "fetch.contact",
    "fetch.cpus",
    "near.threads",
    "bootstrap.training.loader_threads",
    "bootstrap.training.max_undecodable",
    "bootstrap.training.decoded_cache_mb",
    "bootstrap.training.checkpoint_every_s",
    "bootstrap.training.checkpoints_kept",
    "bootstrap.training.watch",
    "train.enabled",
    "train.source",  # the same pairs from another place: a model that is there stays
    "train.training.loader_threads",
    "train.training.max_undecodable",
    "train.training.decoded_cache_mb",
    "train.training.checkpoint_every_s",
    "train.training.checkpoints_kept",
    "train.training.watch",
)


def pinned(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide bytes, as plain values."""
    dumped = recipe.model_dump(mode="json", exclude=set(UNPINNED))
    for key in RESOURCES:
        group, _, name = key.rpartition(".")
        inner = dumped
        for part in group.split("."):
            inner = inner[part]
        inner.pop(name)
    return dumped


@contextmanager
def pinned_to(recipe: Recipe, out: Path, command: str | None = None) -> Iterator[None]:
    """Hold the folder to the recipe while it is worked on: all of it for a run, for a command its own stage.

    recipe.yaml is the recipe of `run`. A command puts its stage's settings there, and only once a task of it
    is finished; what else it was told is for that one time. How a selection was decided lies beside the
    selection, how a model was trained beside the model. Raises ConfigError as `pin` does.
    """
    path = out / "recipe.yaml"
    before = path.read_bytes() if path.exists() else None
    pin(recipe, out, command)
    try:
        yield
    finally:
        stages = [step.stage for step in STEPS if step.command == command]
        if before is not None and stages and not any(finished_tasks(out, stage) for stage in stages):
            write_bytes(before, path)


def pin(recipe: Recipe, out: Path, command: str | None = None) -> None:
    """Write the settings that decide bytes into the folder, or compare them with those that are there.

    Raises ConfigError naming the keys whose change would alter finished work.
    """
    path = out / "recipe.yaml"
    stored = stored_recipe(out) if path.exists() else None
    if stored is not None:
        _refuse_other(stored, recipe, out)
    elif any((out / name).exists() for name in ("pairs", "raw", "shards", "_done")):
        raise ConfigError(f"{out}: holds pairs or shards but no recipe.yaml: give a new folder as --out")
    _refuse_other_selection(recipe, out)
    models = _models(recipe) if command in (None, "train") and recipe.train.enabled else ()
    for name in models:
        _refuse_other_model(recipe, out, name)
    kept = recipe if command is None else _with_own(stored or Recipe(), recipe, command)
    _keep(kept.model_dump(mode="json"), path)  # defaults too: another version may have others
    if command in (None, "decide"):
        _keep(recipe.decide.model_dump(mode="json"), _selection_file(recipe, out))
    for name in models:
        if name not in finished_tasks(out, "train"):
            _keep(recipe.train.model_dump(mode="json"), _model_file(out, name))


def _with_own(stored: Recipe, recipe: Recipe, command: str) -> Recipe:
    """The folder's recipe with what the command's own stage is told, as far as it decides bytes.

    Another selection than the folder's leaves it as it is, and so does training: these have their own files.
    """
    other = command == "decide" and recipe.decide.name != stored.decide.name
    if other or command == "train" or command in UNPINNED:
        return stored
    dumped, own = stored.model_dump(mode="json"), recipe.model_dump(mode="json")[command]
    for key in RESOURCES:
        if key.startswith(f"{command}."):
            _copy(dumped, {command: own}, key)
    return build_recipe({**dumped, command: own}, str(command))


def _copy(source: dict[str, Any], target: dict[str, Any], key: str) -> None:
    *groups, last = key.split(".")
    for group in groups:
        source, target = source[group], target[group]
    target[last] = source[last]


def _keep(dumped: Any, path: Path) -> None:
    text = yaml.safe_dump(dumped, allow_unicode=True, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_bytes(text.encode(), path)


def _selection_file(recipe: Recipe, out: Path) -> Path:
    """Beside each selection lies how it was decided."""
    return out / "selection" / f"{recipe.decide.name}.yaml"


def _model_file(out: Path, name: str) -> Path:
    """Beside each model lies how it was trained."""
    return out / "model" / f"{name}.yaml"


def _models(recipe: Recipe) -> list[str]:
    """The models that the recipe trains, by name: one of a selection, and one of everything if asked for."""
    names = [recipe.decide.name, *(["everything"] if recipe.train.compare_everything else [])]
    return list(dict.fromkeys(names))


def stored_recipe(out: Path) -> Recipe:
    """The recipe that a folder was made with. Raises ConfigError where there is none."""
    path = out / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(f"{out}: no recipe.yaml there: not an output folder of pairmill")
    return build_recipe(_kept(path), str(path))


def _kept(path: Path) -> dict[str, Any]:
    """What `_keep` wrote. Raises ConfigError where it was overwritten since."""
    try:
        dumped = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(dumped, dict):
        raise ConfigError(f"{path}: expected settings, found {type(dumped).__name__}: it was overwritten")
    return dumped


def command_recipe(out: Path, command: str, overrides: Mapping[str, Any]) -> Recipe:
    """What one command works by: the folder's recipe, the selection's and the model's own, the flags on top.

    Raises ConfigError where there is no recipe, and for flags that do not fit.
    """
    begins = command == "ingest" and not (out / "recipe.yaml").exists()
    base = Recipe() if begins else stored_recipe(out)
    name = str(overrides.get("decide.name", base.decide.name))
    base = with_selection(base, out, name)
    if command == "train":
        base = with_model(base, out, name)
    if command in ("train", "evaluate"):  # whoever says so means it, whatever the recipe's own run does
        overrides = {"train.enabled": True, **overrides}
    raw = base.model_dump(mode="json", exclude_defaults=True)
    made = build_recipe(with_overrides(raw, overrides), str(out))
    if command == "ingest" and not made.ingest.input:
        raise ConfigError(f"{out}: no list to read: give --input with a file, a folder or a glob")
    return made


def with_selection(recipe: Recipe, out: Path, name: str) -> Recipe:
    """The recipe with the rules by which the selection `name` was decided, where it was."""
    path = out / "selection" / f"{name}.yaml"
    if name not in finished_tasks(out, "decide") or not path.exists():
        return recipe
    decided = build_recipe({"decide": _kept(path)}, str(path)).decide
    return recipe.model_copy(update={"decide": decided})


def with_model(recipe: Recipe, out: Path, name: str) -> Recipe:
    """The recipe with the settings by which the model of the selection `name` was trained, where it was."""
    if name not in finished_tasks(out, "train") or not _model_file(out, name).exists():
        return recipe
    path = _model_file(out, name)
    return recipe.model_copy(update={"train": build_recipe({"train": _kept(path)}, str(path)).train})


def _refuse_other(old: Recipe, new: Recipe, out: Path) -> None:
    finished = {step.group for step in STEPS if finished_tasks(out, step.stage)} - {
        "decide",
        "train",
        "evaluate",
        "decontaminate",
    }
    changed = differences(pinned(old), pinned(new))
    fixed = [key for key in changed if key.partition(".")[0] in finished]
    if old.ingest.input == new.ingest.input[: len(old.ingest.input)]:  # lists behind the others
        fixed = [key for key in fixed if key != "ingest.input"]
    if fixed:
        before, after = (_value(pinned(recipe), fixed[0]) for recipe in (old, new))
        raise ConfigError(
            f"{out}: was made with other settings, and finished work would change: {', '.join(fixed)}"
            f" ({fixed[0]}: {before!r} there, {after!r} here); give another folder as --out"
        )


def _refuse_other_selection(recipe: Recipe, out: Path) -> None:
    """A finished selection is not decided differently under the same name."""
    path, settings = _selection_file(recipe, out), recipe.decide.model_dump(mode="json")
    if not path.exists() or recipe.decide.name not in finished_tasks(out, "decide"):
        return
    there = build_recipe({"decide": _kept(path)}, str(path)).decide.model_dump(mode="json")
    if fixed := differences(there, settings):
        raise ConfigError(
            f"{path}: this selection was decided with another {', '.join(fixed)}"
            f" ({fixed[0]}: {_value(there, fixed[0])!r} there, {_value(settings, fixed[0])!r} here);"
            " give the new selection a name of its own with --set decide.name=NAME"
        )


def _refuse_other_model(recipe: Recipe, out: Path, name: str) -> None:
    """A model that is there is not trained differently under the same name."""
    path = _model_file(out, name)
    if name not in finished_tasks(out, "train") or not path.exists():
        return
    there = build_recipe({"train": _kept(path)}, str(path))
    before, after = (
        {key: pinned(one)["train"][key] for key in ("training", "data")} for one in (there, recipe)
    )
    if fixed := differences(before, after):
        raise ConfigError(
            f"{path}: this model was trained with another train.{', train.'.join(fixed)}"
            f" ({fixed[0]}: {_value(before, fixed[0])!r} there, {_value(after, fixed[0])!r} here);"
            " train another selection, or give another folder as --out"
        )


def _value(dumped: Any, key: str) -> Any:
    value = dumped
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
