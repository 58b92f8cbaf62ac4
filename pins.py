"""An output folder belongs to one recipe: what would change finished work is refused, and the key named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError
from .recipe import Recipe, build_recipe, differences
from .shards.commit import write_bytes
from .shards.job import finished_tasks
from .steps import STEPS

UNPINNED = ("run", "report")  # groups that change no byte of the data
RESOURCES = (  # nor do these: how much of the machine a stage may use, how often it saves, whether it runs
    "dedup.memory_mb",
    "dedup.threads",
    "fetch.concurrency",
    "fetch.per_host",
    "fetch.plan_memory_mb",
    "fetch.cpus",
    "near.threads",
    "bootstrap.training.loader_threads",
    "bootstrap.training.decoded_cache_mb",
    "bootstrap.training.checkpoint_every_s",
    "embed.cpus",
    "train.enabled",
    "train.source",  # the same pairs from another place: a model that is there stays
    "train.training.loader_threads",
    "train.training.decoded_cache_mb",
    "train.training.checkpoint_every_s",
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


def pin(recipe: Recipe, out: Path) -> None:
    """Write `recipe.yaml` into the folder, or compare with the one that is there.

    Raises ConfigError naming the keys whose change would alter finished work.
    """
    path = out / "recipe.yaml"
    if path.exists():
        _refuse_other(stored_recipe(out), recipe, out)
    elif any((out / name).exists() for name in ("pairs", "raw", "shards", "_done")):
        raise ConfigError(f"{out}: holds pairs or shards but no recipe.yaml: give a new folder as --out")
    _refuse_other_selection(recipe, out)
    _keep(recipe.model_dump(mode="json"), path)  # defaults too: another version may have others
    _keep(recipe.decide.model_dump(mode="json"), _selection_file(recipe, out))


def _keep(dumped: Any, path: Path) -> None:
    text = yaml.safe_dump(dumped, allow_unicode=True, sort_keys=False)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_bytes(text.encode(), path)


def _selection_file(recipe: Recipe, out: Path) -> Path:
    """Beside each selection lies how it was decided."""
    return out / "selection" / f"{recipe.decide.name}.yaml"


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


def with_selection(recipe: Recipe, out: Path, name: str) -> Recipe:
    """The recipe with the rules by which the selection `name` was decided, where it was."""
    path = out / "selection" / f"{name}.yaml"
    if not path.exists():
        return recipe
    decided = build_recipe({"decide": _kept(path)}, str(path)).decide
    return recipe.model_copy(update={"decide": decided})


def _refuse_other(old: Recipe, new: Recipe, out: Path) -> None:
    finished = {step.group for step in STEPS if finished_tasks(out, step.stage)} - {"decide"}
    changed = differences(pinned(old), pinned(new))
    fixed = [key for key in changed if key.partition(".")[0] in finished]
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
    there = _kept(path)
    if fixed := differences(there, settings):
        raise ConfigError(
            f"{path}: this selection was decided with another {', '.join(fixed)}"
            f" ({fixed[0]}: {_value(there, fixed[0])!r} there, {_value(settings, fixed[0])!r} here);"
            " give the new selection a name of its own with --set decide.name=NAME"
        )


def _value(dumped: Any, key: str) -> Any:
    value = dumped
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
