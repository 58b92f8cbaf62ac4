"""What stays of the pairs that the rules keep: caps, quotas, a temperature, a target size; seeded, by uid.

The rule: pairs are drawn in the order of md5(seed:uid), so which stay depends on no other selection, and one
more pair moves few. Each step counts what the step before left, and names its own reason. A redacted pair
is drawn like any other, so that redaction moves nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from ..errors import ConfigError, DataError
from ..recipe import Sample
from .sql import quoted

ALIVE = "coalesce(reason, 'redacted') = 'redacted'"
HOST = "regexp_extract(url, '^[a-z]+://([^/?#]*)', 1)"
STEP = """
CREATE TEMP TABLE {new} AS
SELECT * REPLACE (CASE WHEN {alive}
  AND row_number() OVER (PARTITION BY {alive}, {key} ORDER BY draw, uid) > {most}
  THEN '{reason}' ELSE reason END AS reason)
FROM {old}
"""


def words_of(sample: Sample) -> frozenset[str]:
    """The columns that sampling looks at."""
    columns = {*sample.quotas} | ({"lang_v1"} if sample.temperature is not None else set())
    return frozenset(columns | ({"url"} if sample.max_per_host is not None else set()))


def keys_sql(sample: Sample) -> str:
    """What sampling needs of a row beside its uid and reason, as the end of a SELECT list."""
    host = f"{HOST} AS host_key" if sample.max_per_host is not None else "NULL AS host_key"
    lang = "lang_v1 AS lang_key" if sample.temperature is not None else "NULL AS lang_key"
    keys = [f'"{column}"::VARCHAR AS quota_{number}' for number, column in enumerate(sample.quotas)]
    draw = f"md5({quoted(str(sample.seed))} || ':' || uid::VARCHAR) AS draw"
    return ", ".join((draw, host, lang, *keys))


def sampled(connection: duckdb.DuckDBPyConnection, sample: Sample) -> str:
    """SQL of (uid, reason) by uid, from the table `fates_0` with `keys_sql`.

    Raises DataError for a quota or a size above what the rules keep.
    """
    steps = _Steps(connection)
    if sample.max_per_host is not None:
        steps.take("host_key", str(int(sample.max_per_host)), "host_surplus")
    for number, (column, quotas) in enumerate(sample.quotas.items()):
        key = f"quota_{number}"
        there = steps.counts(key)
        for value, asked in quotas.items():
            if asked > there.get(value, 0):
                raise DataError(
                    f"decide.sample.quotas.{column}.{value}: {asked:,} pairs are asked for, and the rules"
                    f" keep {there.get(value, 0):,}: ask for fewer, or drop fewer"
                )
        steps.take(key, _by_value(key, quotas), "quota_surplus")
    if sample.size is not None:
        _to_size(steps, sample)
    return f"SELECT uid, reason FROM {steps.table} ORDER BY uid"


class _Steps:
    """One table after the other, each with some more reasons."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection, self.number = connection, 0

    @property
    def table(self) -> str:
        return f"fates_{self.number}"

    def take(self, key: str, most: str, reason: str) -> None:
        """Of each value of `key` the first `most` (SQL; NULL is all) pairs by draw stay."""
        old = self.table
        self.number += 1
        names: dict[str, Any] = {"new": self.table, "old": old, "alive": ALIVE}
        self.connection.execute(STEP.format(key=key, most=most, reason=reason, **names))
        self.connection.execute(f"DROP TABLE {old}")

    def counts(self, key: str) -> dict[str, int]:
        """Pairs that are left, by value of `key`; '' where it is NULL."""
        sql = f"SELECT coalesce({key}, ''), count(*) FROM {self.table} WHERE {ALIVE} GROUP BY 1 ORDER BY 1"
        return dict(self.connection.execute(sql).fetchall())


def _to_size(steps: _Steps, sample: Sample) -> None:
    assert sample.size is not None
    there = steps.counts("lang_key")
    if sample.size > (kept := sum(there.values())):
        raise DataError(
            f"decide.sample.size: {sample.size:,} pairs are asked for, and the rules keep {kept:,}:"
            " ask for fewer, or drop fewer"
        )
    if sample.temperature is None:
        steps.take("1", str(sample.size), "size_surplus")
        return
    shares = tempered(there, sample.temperature, sample.size)
    steps.take("lang_key", _by_value("coalesce(lang_key, '')", shares), "language_surplus")


def tempered(counts: Mapping[str, int], temperature: float, size: int) -> dict[str, int]:
    """`size` pairs over languages in proportion to count^(1 / temperature), none above its count.

    What a language has not is given to the others in the same proportion; fractions go to the largest first.
    1 keeps the proportions of the counts, a large temperature makes languages equal.
    """
    left = {name: count for name, count in counts.items() if count}
    found: dict[str, int] = {}
    while left:
        weights = {name: count ** (1 / temperature) for name, count in left.items()}
        rest = size - sum(found.values())
        share = {name: rest * weight / sum(weights.values()) for name, weight in weights.items()}
        full = [name for name in left if share[name] >= left[name]]
        if not full:
            found |= {name: int(share[name]) for name in left}
            order = sorted(left, key=lambda name: (int(share[name]) - share[name], name))
            for name in order[: size - sum(found.values())]:
                found[name] += 1
            break
        found |= {name: left.pop(name) for name in full}
    return dict(sorted(found.items()))


def _by_value(key: str, most: Mapping[str, int]) -> str:
    branches = " ".join(f"WHEN {quoted(value)} THEN {int(count)}" for value, count in most.items())
    return f"CASE {key} {branches} END" if branches else "NULL"


def check_sample(sample: Sample, columns: list[str]) -> None:
    """Raises ConfigError for a quota by a column that is not there, and a temperature without a size."""
    for column in sample.quotas:
        if column not in columns:
            raise ConfigError(
                f"decide.sample.quotas: no column is called {column!r}; there are: {', '.join(columns)}"
            )
    if sample.temperature is not None and sample.size is None:
        raise ConfigError("decide.sample.temperature: give a size too, which it divides among languages")
