"""Rules as settings: one rule, a set of them in a YAML file, word lists in text files, and which decide.

The rule: whatever a recipe takes from files is read when the recipe is, and kept with it. So a folder says by
which rules and words it was decided, and a worker on another machine needs none of these files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from .errors import ConfigError
from .setting_types import NO_FLAG, Scalar, Settings

Value = Scalar | list[Scalar] | None
MOST_WORDS = 100_000  # of one list: it is bound to a rule and kept with the recipe


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Rule:
    """Drop a pair, for `reason`, where `where` is true. NULL is not true: "not scored" needs its own rule."""

    reason: str
    where: str  # DuckDB SQL over columns; values come in as $names, never formatted in


class RuleSet(Settings):
    """A named set of rules, as a file of filter/sets has it, or one of the user's own."""

    about: str = Field(description="one sentence: what it keeps")
    source: str = Field(
        default="", description="where the rules and numbers stand: paper and section, or code"
    )
    open: tuple[str, ...] = Field(
        default=(), description="what the source leaves open, or says otherwise, and what is done here"
    )
    sets: tuple[str, ...] = Field(default=(), description="sets whose rules come before its own")
    values: dict[str, Value] = Field(
        default_factory=dict,
        description="of the $names; null is off, and a name without a value is asked for",
    )
    given: tuple[str, ...] = Field(
        default=(), description="values that name a column of the list, which pairmill cannot compute"
    )
    rules: tuple[Rule, ...] = Field(
        default=(), description="in order: the first that is true names the reason"
    )


class Rules(Settings):
    """Which rules decide, in order: the first that is true names the reason."""

    sets: tuple[str, ...] = Field(
        default=(), description="rule sets in order: a name of `pairmill rules`, or a YAML file of your own"
    )
    values: dict[str, Value] = Field(
        default_factory=dict, description="values for the rules' $names, over the set's own"
    )
    words: dict[str, str] = Field(
        default_factory=dict, description="values that are word lists: text files, UTF-8, a word a line"
    )
    extra: tuple[Rule, ...] = Field(default=(), description="further rules, after the sets")
    own: Annotated[dict[str, RuleSet], NO_FLAG] = Field(
        default_factory=dict, description="the sets that were read from files, by the name of the file"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, raw: Any) -> Any:
        return read_files(raw) if isinstance(raw, Mapping) else raw


def is_file(name: object) -> bool:
    """Whether the name of a set is that of a file."""
    return isinstance(name, str) and name.endswith((".yaml", ".yml"))


def beside(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`raw` rules of a recipe that lies in `folder`: files that it names are looked for there too."""

    def placed(name: Any) -> Any:
        there = isinstance(name, str) and not Path(name).exists() and (folder / name).is_file()
        return str(folder / name) if there else name

    found = dict(raw)
    if isinstance(sets := found.get("sets"), list):
        found["sets"] = [placed(name) if is_file(name) else name for name in sets]
    if isinstance(words := found.get("words"), Mapping):
        found["words"] = {name: placed(path) for name, path in words.items()}
    return found


def read_files(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` rules with the sets and word lists that they name as files in place. Raises ConfigError."""
    found = dict(raw)
    sets = found.get("sets") or ()
    if isinstance(sets, list | tuple) and any(map(is_file, sets)):
        own = dict(found.get("own") or {})
        own |= {Path(name).stem: read_set(Path(name)) for name in sets if is_file(name)}
        found |= {"own": own, "sets": [Path(name).stem if is_file(name) else name for name in sets]}
    words = found.pop("words", None)
    if isinstance(words, Mapping):
        lists = {name: read_words(Path(str(path))) for name, path in words.items()}
        found["values"] = {**(found.get("values") or {}), **lists}
    elif words is not None:
        found["words"] = words  # the model says what is wrong
    return found


def read_set(path: Path) -> RuleSet:
    """The rule set in a YAML file; its `words` are text files beside it. Raises ConfigError, in one line."""
    from .recipe import say_wrong

    raw = read_yaml(path, "a rule set")
    words = raw.pop("words", None) or {}
    if not isinstance(words, dict):
        raise ConfigError(f"{path}: words: expected a mapping of $names to text files")
    try:
        made = RuleSet.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {say_wrong(error, RuleSet)}") from error
    lists = {name: read_words(path.parent / str(file)) for name, file in words.items()}
    return made.model_copy(update={"values": {**made.values, **lists}})


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError where there is none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: expected {what} in YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {what} is a mapping, found {type(raw).__name__}")
    return raw


def read_words(path: Path) -> list[str]:
    """The lines of a word list, in order, without blank ones and those that begin with `#`.

    Raises ConfigError where it is missing, not UTF-8, empty, or longer than MOST_WORDS.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: no word list there: {error.strerror}: expected a word a line") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}: line {line}, byte {error.start}: not UTF-8 ({error.reason}):"
            " save the word list as UTF-8"
        ) from error
    lines = (line.strip() for line in text.splitlines())
    words = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not 0 < len(words) <= MOST_WORDS:
        raise ConfigError(f"{path}: {len(words):,} words, expected 1 to {MOST_WORDS:,}, one a line")
    return words
