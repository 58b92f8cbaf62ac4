"""The named sets of rules: one YAML file each in `sets/`, read when it is asked for.

To add a rule, copy a line; to add a set, a file. A comparison with a float column casts its value to FLOAT,
because 0.05 as stored (0.0500000007) is more than 0.05 as written. A value of null makes the comparison NULL,
which drops nothing: that is how an optional rule is off. What NULL in a column means is a rule of its own.
What each reason means stands in `reasons.yaml`, once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipe import Rule
from ..rule_files import RuleSet, read_set, read_yaml

FOLDER = Path(__file__).parent / "sets"
REASONS = Path(__file__).parent / "reasons.yaml"


class _Shipped(Mapping[str, RuleSet]):
    """The sets that ship with pairmill, by name."""

    def __getitem__(self, name: str) -> RuleSet:
        if name not in names():
            raise KeyError(name)
        return _read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(names())

    def __len__(self) -> int:
        return len(names())


@cache
def names() -> tuple[str, ...]:
    """Names of the shipped sets, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def _read(name: str) -> RuleSet:
    return read_set(FOLDER / f"{name}.yaml")


SETS: Mapping[str, RuleSet] = _Shipped()


@cache
def meanings() -> dict[str, str]:
    """What each reason of the shipped sets means."""
    return read_yaml(REASONS, "a list of reasons")


def set_of(name: str, own: Mapping[str, RuleSet]) -> RuleSet:
    """The set of that name: one of the recipe's own, or one that ships. Raises ConfigError for neither."""
    if name in own:
        return own[name]
    if name not in SETS:
        there = nearest(name, [*own, *SETS])
        raise ConfigError(
            f"rules.sets: no rule set is called {name!r}{there}; a file of your own ends in .yaml"
        )
    return SETS[name]


Named = tuple[str, RuleSet, Rule, Mapping[str, Any]]  # whose it is by name, the set, a rule, default values


def rules_of(name: str, own: Mapping[str, RuleSet]) -> list[Named]:
    """The rules of a set, those of the sets within it first, each with the values that hold for it."""
    return list(_walk(name, own, {}, ()))


def _walk(
    name: str, own: Mapping[str, RuleSet], above: Mapping[str, Any], within: tuple[str, ...]
) -> Iterator[Named]:
    if name in within:
        raise ConfigError(f"rules.sets: {' > '.join((*within, name))}: a set cannot hold itself")
    found = set_of(name, own)
    values = {**found.values, **above}
    for inner in found.sets:
        yield from _walk(inner, own, values, (*within, name))
    for rule in found.rules:
        yield name, found, rule, values


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as the end of a message."""
    there = list(known)
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(there)) or 'none'}"
