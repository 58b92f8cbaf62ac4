"""Rule sets in words: all of them, one a line; one of them whole, as a recipe would use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..rule_files import RuleSet, is_file, read_set
from .columns import written_by
from .rules import names_in
from .rulesets import SETS, meanings, rules_of, set_of

FEW = 12  # values of a list that are shown


def list_sets() -> str:
    """Every shipped set by name, with what it keeps."""
    width = max(map(len, SETS))
    return "\n".join(f"{name:{width}}  {SETS[name].about}" for name in SETS)


def tell_set(name: str) -> str:
    """One set: what it keeps, its source, its rules in order, their values, what is open, what it reads.

    name: of a shipped set, or a YAML file. Raises ConfigError for neither.
    """
    own = {Path(name).stem: read_set(Path(name))} if is_file(name) else {}
    name = Path(name).stem if own else name
    return "\n".join(_lines(name, set_of(name, own), own))


def _lines(name: str, found: RuleSet, own: dict[str, RuleSet]) -> Iterator[str]:
    yield f"{name}: {found.about}"
    if found.source:
        yield f"source: {found.source}"
    named = rules_of(name, own)
    opens = dict.fromkeys((*found.open, *(line for _, whole, _, _ in named for line in whole.open)))
    yield from (f"open: {line}" for line in opens)
    yield "rules, the first that is true names the reason:" if named else "rules: none"
    words: set[str] = set()
    values: dict[str, str] = {}
    for whose, _, rule, defaults in named:
        whose = "" if whose == name else f"  (of {whose})"
        meaning = meanings().get(rule.reason, "")
        yield f"  {rule.reason}: {meaning}{whose}"
        yield f"      {' '.join(rule.where.split())}"
        asked, others = names_in(rule.where)
        words |= others
        values |= {one: _shown(defaults[one]) if one in defaults else "asked for" for one in sorted(asked)}
    if values:
        yield "values, each set with rules.values.NAME:"
        yield from (f"  ${one} = {value}" for one, value in values.items())
    stages = sorted({stage for column, stage in written_by().items() if column in words - {"caption"}})
    if stages:
        yield f"reads what these stages write: {', '.join(stages)}"
    columns = {str(defaults[one]) for _, whole, _, defaults in named for one in whole.given}
    if columns:
        yield f"needs columns of the list, which pairmill cannot compute: {', '.join(sorted(columns))}"


def _shown(value: object) -> str:
    if value is None:
        return "null (off)"
    if isinstance(value, list | tuple) and len(value) > FEW:
        return f"{json.dumps(value[:FEW], ensure_ascii=False)[:-1]}, … {len(value):,} in all]"
    return json.dumps(value, ensure_ascii=False)
