"""What rules would keep, before they decide: the fate of every pair, and which rules agree on it.

The rule: nothing is written. Every rule is evaluated for every pair that earlier stages let through, not just
up to the first that is true; so it can be told which reason alone drops a pair, and which ones do together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipe import Dedup, Rules
from ..runner import Task
from ..settings import MEMORY_MB
from .decide import BEFORE, LIMITS, rows_sql, with_rows
from .near import near_files
from .redaction import redacted_sql
from .rules import SQL_ERRORS, Bound, Compiled, check_columns, compile_rules, failed_rule, numbered

EXAMPLES = 20
MOST_RULES = 61  # bits of one number, and one for what is redacted
STAGE = "decide"


@dataclass(slots=True)
class Trial:
    """What a set of rules says of all distinct pairs."""

    seen: int = 0
    before: Counter[str] = field(default_factory=Counter)  # dropped by earlier stages, by reason
    first: Counter[str] = field(default_factory=Counter)  # by the first reason that is true, or 'kept'
    true: Counter[str] = field(default_factory=Counter)  # for how many pairs a rule of the reason is true
    alone: Counter[str] = field(default_factory=Counter)  # … and no rule of another reason
    together: Counter[tuple[str, str]] = field(default_factory=Counter)  # for how many pairs both are
    languages: dict[str, Counter[str]] = field(default_factory=dict)  # pairs and kept, '?' where unknown
    examples: dict[str, list[bytes]] = field(default_factory=dict)  # uids, the first by uid, by first reason

    def as_json(self) -> dict[str, Any]:
        """Plain values, each table by count, the largest first."""
        pairs = sorted(self.together.items(), key=lambda item: (-item[1], item[0]))
        spoken = sorted(self.languages.items(), key=lambda item: (-item[1]["pairs"], item[0]))
        return {
            "seen": self.seen,
            "dropped_before": dict(self.before.most_common()),
            "kept": self.first["kept"],
            "dropped": {reason: n for reason, n in self.first.most_common() if reason != "kept"},
            "true_for": dict(self.true.most_common()),
            "alone": {reason: self.alone[reason] for reason, _ in self.true.most_common()},
            "together": [{"reasons": list(both), "pairs": n} for both, n in pairs],
            "languages": {name: {"pairs": n["pairs"], "kept": n["kept"]} for name, n in spoken},
        }


def try_rules(
    out: Path, rules: Rules, limits: Dedup = LIMITS, memory_mb: int = MEMORY_MB, examples: int = EXAMPLES
) -> Trial:
    """Evaluate every rule for every pair of the folder; reads the columns that they name, once.

    Raises what `decide` would: ConfigError for a rule that cannot work, DataError for one that fails.
    """
    compiled = compile_rules(rules)
    if len(compiled.bounds) > MOST_RULES:
        raise ConfigError(
            f"--try: {len(compiled.bounds)} rules, expected {MOST_RULES} at most: try fewer sets"
        )
    check_columns(out, compiled)
    told = {"threads": limits.threads, "memory_mb": memory_mb}

    def counted(some: Compiled) -> list[dict[str, Any]]:
        task = Task(STAGE, "try")
        words = some.words | {"lang_v1"}
        sql = _sql(out, rows_sql(out, words, STAGE), some.bounds, examples)
        rows, _ = with_rows(
            out, words, task, told, sql, some.values, lambda found: found.read_all().to_pylist()
        )
        return rows

    try:
        rows = counted(compiled)
    except SQL_ERRORS as error:
        raise failed_rule(error, compiled, counted) from error
    return _added_up(rows, [*(bound.rule.reason for bound in compiled.bounds), "redacted"], examples)


def _sql(out: Path, table: str, bounds: tuple[Bound, ...], examples: int) -> str:
    """Pairs counted by what dropped them before, the rules that are true (a bit each), and language."""
    bits = [
        f"CASE WHEN ({numbered(bound.rule.where, number)}\n) THEN {1 << number}::BIGINT ELSE 0 END"
        for number, bound in enumerate(bounds)
    ]
    if last := redacted_sql(out, near_files(out)):
        bits.append(f"CASE WHEN {last} THEN {1 << len(bits)}::BIGINT ELSE 0 END")
    mask = " + ".join(bits) or "0"
    return (
        f"SELECT before, CASE WHEN before IS NULL THEN mask ELSE 0 END AS mask, lang_v1, count(*) AS n,"
        f" min(uid, {examples:d}) AS uids FROM (SELECT uid, lang_v1, CASE {BEFORE} END AS before,"
        f" {mask} AS mask FROM {table}) GROUP BY ALL"
    )


def _added_up(rows: list[dict[str, Any]], reasons: list[str], examples: int) -> Trial:
    trial = Trial()
    for row in sorted(rows, key=lambda row: (row["before"] or "", row["mask"], row["lang_v1"] or "")):
        n, before = row["n"], row["before"]
        trial.seen += n
        if before is not None:
            trial.before[before] += n
            continue
        true = list(dict.fromkeys(_true(row["mask"], reasons)))
        first = true[0] if true else "kept"
        trial.first[first] += n
        trial.true.update(dict.fromkeys(true, n))
        trial.alone.update({true[0]: n} if len(true) == 1 else {})
        trial.together.update(dict.fromkeys(combinations(sorted(true), 2), n))
        spoken = trial.languages.setdefault(row["lang_v1"] or "?", Counter())
        spoken.update(pairs=n, kept=n * (not true))
        uids = [*trial.examples.get(first, []), *(_bytes(uid) for uid in row["uids"])]
        trial.examples[first] = sorted(uids)[:examples]
    return trial


def _true(mask: int, reasons: list[str]) -> Iterator[str]:
    return (reason for number, reason in enumerate(reasons) if mask >> number & 1)


def _bytes(uid: Any) -> bytes:
    """A uid as DuckDB gives it back: a UUID, or 16 bytes."""
    return uid if isinstance(uid, bytes) else uid.bytes
