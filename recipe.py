"""The recipe: the settings of all stages, composed; read from YAML, with errors that name the right key.

Every setting that can change a byte of the output is pinned with the output folder; the few that
cannot (`run`) are not.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from .errors import ConfigError
from .rule_files import beside, read_yaml
from .settings import (
    Bootstrap,
    Dataset,
    Decide,
    Dedup,
    Embed,
    Evaluate,
    Fetch,
    Ingest,
    Language,
    Near,
    Noise,
    Report,
    Rule,
    Rules,
    Run,
    ScorerTraining,
    Settings,
    Towers,
    Train,
    Training,
    Write,
)
from .settings_curation import Decontaminate, Entries

__all__ = [
    "Bootstrap",
    "Dataset",
    "Decide",
    "Decontaminate",
    "Dedup",
    "Embed",
    "Entries",
    "Evaluate",
    "Fetch",
    "Ingest",
    "Language",
    "Near",
    "Noise",
    "Recipe",
    "Report",
    "Rule",
    "Rules",
    "Run",
    "ScorerTraining",
    "Settings",
    "Towers",
    "Train",
    "Training",
    "Write",
    "build_recipe",
    "differences",
    "load_recipe",
    "shipped",
    "with_overrides",
]

MOVED = {
    "fetch.plan_memory_mb": "run.memory_mb"
}  # settings of earlier versions that others took the place of
RECIPES = Path(__file__).parent / "recipes"


class Recipe(Settings):
    """Everything that a run does."""

    name: str = Field(default="", description="what the recipe is called")
    about: str = ""
    ingest: Ingest = Ingest()
    dedup: Dedup = Dedup()
    entries: Entries = Entries()
    language: Language = Language()
    fetch: Fetch = Fetch()
    near: Near = Near()
    decontaminate: Decontaminate = Decontaminate()
    bootstrap: Bootstrap = Bootstrap()
    embed: Embed = Embed()
    noise: Noise = Noise()
    decide: Decide = Decide()
    write: Write = Write()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    run: Run = Run()


def shipped() -> dict[str, Path]:
    """Recipes that come with pairmill, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def load_recipe(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, or a shipped one by name, with `overrides` ("decide.max_noise": 0.1) on top.

    Raises ConfigError for a missing file, bad YAML, an unknown key (the nearest right one is named)
    or a value out of range.
    """
    path = Path(name)
    if not path.is_file() and str(name) in shipped():  # in a checkout, demo is a folder too
        path = shipped()[str(name)]
    if not path.is_file():
        known = ", ".join(shipped())
        raise ConfigError(f"{name}: no such recipe file, and no shipped recipe of that name ({known})")
    raw = read_yaml(path, "a recipe")
    for group in raw.values():
        if isinstance(group, dict) and isinstance(group.get("rules"), dict):
            group["rules"] = beside(group["rules"], path.parent)
    return build_recipe(with_overrides(raw, overrides or {}), str(path))


def with_overrides(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with dotted keys ("decide.max_noise") set in place; a dot within `rules.values` works too."""
    for key, value in overrides.items():
        _put(raw, key, value)
    return raw


def build_recipe(raw: Mapping[str, Any], origin: str) -> Recipe:
    """A recipe from plain values; errors name `origin` and the key."""
    try:
        # a stage whose settings are all commented out is None in YAML
        return Recipe.model_validate({key: value for key, value in raw.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"{origin}: {say_wrong(error)}") from error


def say_wrong(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """What is wrong with some settings of `model` (Recipe where None), in one line: each by its key."""
    return "; ".join(_explain(item, model or Recipe) for item in error.errors())


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        inner = raw.get(folder)
        if inner is None:
            inner = raw[folder] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {folder!r} is a value, not a group of settings")
        raw[folder] = dict(inner)  # of its own: a YAML alias (*training) shares one mapping among groups
        raw = raw[folder]
    raw[last] = value


def _explain(item: Any, model: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if isinstance(said := item.get("ctx", {}).get("error"), ConfigError):
        return f"{where}: {said}"
    if item["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        said = re.sub(r"(valid )?dictionary or (an )?instance of \w+", "mapping", item["msg"])
        found = repr(item["input"])
        return f"{where}: {said.replace('a valid tuple', 'a list')} (found {_cut(found, 100)})"
    last, keys = str(item["loc"][-1]), _keys(item["loc"][:-1], model)
    elsewhere = [MOVED[where]] if where in MOVED else []
    elsewhere += [key for key in _dotted(model) if key.endswith(f".{last}")]
    near = elsewhere or difflib.get_close_matches(last, keys, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(keys)}"
    return f"{where}: no such setting; {hint}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _keys(loc: tuple[Any, ...], model: Any) -> list[str]:
    for part in loc:
        if isinstance(part, int):  # a list's items have the type that its annotation names first
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else next(iter(get_args(field.annotation)), field.annotation)
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))


def _dotted(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted(field.annotation, f"{prefix}{name}.")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two dumped recipes."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
