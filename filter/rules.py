"""Rules in SQL: resolved from a recipe, checked before work starts, compiled into one CASE.

The rule: values are bound, never written into the SQL, and the first rule that is true names the reason.
A rule set's default for `$min_words` holds for its own rules only; a value in the recipe holds for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ..errors import ConfigError, DataError
from ..recipe import Rule, Rules
from .columns import check_given, stage_columns, written_by
from .rulesets import nearest, rules_of
from .sql import database, quoted, value_error
from .text import TEXT, with_text

# SQL strings are stepped over, so that '(jpg|png)$end' in a pattern is no value
TOKEN = re.compile(r"'(?:[^']|'')*'|\"((?:[^\"]|\"\")*)\"|\$([A-Za-z_]\w*)|([A-Za-z_]\w*)")
REASON = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = frozenset({"kept", "ok"})
SQL_ERRORS = (duckdb.Error, pa.ArrowInvalid)  # the latter where the rows of a query are read as a stream


@dataclass(frozen=True, slots=True)
class Bound:
    """One rule with the values of its $names; `origin` says whose rule it is."""

    rule: Rule
    values: Mapping[str, Any]
    origin: str
    given: tuple[str, ...] = ()  # which of the values name a column of the list


@dataclass(frozen=True, slots=True)
class Compiled:
    """`branches` are those of a CASE (without CASE and END); `values` is what it binds."""

    branches: str
    values: dict[str, Any]
    words: frozenset[str]  # every name in the rules: the columns they need are among them
    bounds: tuple[Bound, ...] = ()


def names_in(where: str) -> tuple[set[str], set[str]]:
    """The $names, and all other names in lower case, in a piece of SQL; strings are left out."""
    found = [match.groups(default="") for match in TOKEN.finditer(where)]
    values = {name for _, name, _ in found if name}
    return values, {(quoted_name or word).lower() for quoted_name, _, word in found if quoted_name or word}


def resolve(rules: Rules) -> list[Bound]:
    """The rules of the named sets in order, then the extra ones, each with its values.

    Raises ConfigError for an unknown set, a $name without a value, and a value that no rule has.
    """
    found = [
        (rule, values, f"set {whose}", whole.given)
        for name in rules.sets
        for whose, whole, rule, values in rules_of(name, rules.own)
    ]
    found += [(rule, {}, "extra", ()) for rule in rules.extra]
    wanted = {name for rule, *_ in found for name in names_in(rule.where)[0]}
    for name in rules.values:
        if name not in wanted:
            raise ConfigError(f"rules.values.{name}: no rule has ${name}{nearest(name, wanted)}")
    bounds = []
    for rule, defaults, origin, given in found:
        values = _values(rule, {**defaults, **rules.values}, origin)
        bounds.append(Bound(rule, values, origin, tuple(name for name in given if name in values)))
    return bounds


def _values(rule: Rule, given: Mapping[str, Any], origin: str) -> dict[str, Any]:
    if not REASON.fullmatch(rule.reason) or rule.reason in TAKEN:
        raise ConfigError(
            f"{origin}: reason {rule.reason!r}: expected a word like 'too_small', not 'kept' or 'ok'"
        )
    names = names_in(rule.where)[0]
    if missing := sorted(names - set(given)):
        raise ConfigError(f"{origin}: rule {rule.reason!r} needs a value: set rules.values.{missing[0]}")
    return {name: given[name] for name in sorted(names)}


def compile_rules(rules: Rules) -> Compiled:
    """The rules as branches of one CASE over the columns; raises ConfigError like `resolve`."""
    return _compile(resolve(rules))


def _compile(bounds: Sequence[Bound]) -> Compiled:
    branches, values, words = [], {}, set()
    for number, bound in enumerate(bounds):
        where = numbered(bound.rule.where, number)
        branches.append(f"WHEN ({where}\n) THEN {quoted(bound.rule.reason)}")
        values.update({f"{name}_{number}": value for name, value in bound.values.items()})
        words |= names_in(bound.rule.where)[1]
    return Compiled("\n".join(branches), values, frozenset(words), tuple(bounds))


def given_columns(compiled: Compiled) -> dict[str, str]:
    """The columns of the lists that rules need, and whose rules these are."""
    return {
        str(bound.values[name]).removeprefix("$."): bound.origin
        for bound in compiled.bounds
        for name in bound.given
    }


def check_columns(out: Path, compiled: Compiled) -> None:
    """Raises DataError where a rule needs a column of the lists, and none of them carries it."""
    for name, origin in given_columns(compiled).items():
        check_given(out, [name], origin)


def failed_rule(error: Exception, compiled: Compiled, evaluate: Callable[[Compiled], object]) -> Exception:
    """What to raise for an `error` of evaluating rules: a DataError that names the rule which cannot be.

    evaluate: applies rules to the same rows again, all of them. The error itself where no rule is at fault.
    """
    least, most = (
        -1,
        len(compiled.bounds),
    )  # the first `least` rules can be evaluated, the first `most` cannot
    while most - least > 1:
        half = (least + most) // 2
        try:
            evaluate(_compile(compiled.bounds[:half]))
            least = half
        except SQL_ERRORS as another:
            error, most = another, half
    if most == 0:
        return error
    bound = compiled.bounds[most - 1]
    return DataError(
        f"{bound.origin}: rule {bound.rule.reason!r} ({bound.rule.where}) cannot be evaluated:"
        f" {value_error(error)}, and a rule that is NULL drops nothing"
    )


def numbered(where: str, number: int) -> str:
    """`$name` -> `$name_3`: two sets may give the same name two values."""
    return TOKEN.sub(lambda match: f"{match[0]}_{number}" if match[2] else match[0], where)


def check_rules(rules: Rules, stage: str) -> None:
    """Try every rule of `stage` ('screen', 'choose' or 'decide') on a table with the right columns.

    Raises ConfigError that names the rule, what DuckDB says, and the columns there are.
    """
    schema = stage_columns(stage)
    stored = pa.schema([field for field in schema if field.name not in TEXT.names])
    empty = pa.table([pa.nulls(1, field.type) for field in stored], schema=stored)
    bound_rules = resolve(rules)
    with database() as connection:
        connection.register("empty", empty)
        for bound in bound_rules:
            _try(connection, bound, schema.names)
            if stage == "screen" and "over" in names_in(bound.rule.where)[1]:
                raise ConfigError(
                    f"{bound.origin}: rule {bound.rule.reason!r} ranks rows (OVER), and the screen sees"
                    " one part of them at a time: put the rule into decide.rules"
                )


def _try(connection: duckdb.DuckDBPyConnection, bound: Bound, columns: list[str]) -> None:
    rule = bound.rule
    words = names_in(rule.where)[1]
    sql = f"SELECT CASE WHEN ({rule.where}\n) THEN 1 END FROM {with_text('empty', words)}"
    try:
        if len(connection.extract_statements(sql)) != 1:
            raise ConfigError(
                f"{bound.origin}: rule {rule.reason!r} ({rule.where}): one expression is expected"
            )
        connection.execute(sql, dict(bound.values)).fetchall()
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        there = ", ".join(columns)
        raise ConfigError(
            f"{bound.origin}: rule {rule.reason!r} ({rule.where}): {said}.{_written_later(words, columns)}"
            f" Columns at this stage: {there}"
        ) from error


def _written_later(words: set[str], columns: list[str]) -> str:
    """Which stages write the columns that a rule names and that are not there yet."""
    later = [f"{name} is written by stage {stage}" for name, stage in written_by().items() if name in words]
    missing = [line for line in later if line.partition(" ")[0] not in columns]
    return f" {'; '.join(missing)}, after these rules: put the rule into decide.rules." if missing else ""


def columns_for(words: frozenset[str], names: Iterable[str]) -> set[str]:
    """Which of `names` the rules need; text columns need the caption."""
    needed = {name for name in names if name in words}
    if words & set(TEXT.names):
        needed.add("caption")
    return needed
