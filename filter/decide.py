"""Stages `choose` and `decide`: one fate for every distinct uid, and the selection of those kept.

The rule: the screen's reason, else the outcome of fetching (of the highest wave), else the first rule
that is true, else kept. So a selection and its reasons hold every uid exactly once.

The columns of a uid are those of its first row in pairs (read part by part, beside its scores), joined by
uid with raw/, scores/near/ and scores/noise/; only columns that a rule names are read. DuckDB hashes the
right sides and sorts by uid, both spilling to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import ConfigError, DataError
from ..recipe import Bootstrap, Decide, Dedup, Recipe, Rule, Rules
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed
from ..shards.schema import LEAKS, MISMATCH, NEAR, NOISE, PAIRS, REASONS, SCREEN
from ..shards.selection import write_selection
from .columns import BESIDE, OF_PICTURE, OF_RAW, first_rows, part_names, written_by
from .language import check_settings
from .redaction import redacted_sql
from .rules import (
    SQL_ERRORS,
    Compiled,
    check_columns,
    check_rules,
    columns_for,
    compile_rules,
    failed_rule,
    names_in,
)
from .rulesets import rules_of
from .screen import count_reasons
from .sql import database, quoted
from .text import with_text

ROWS_PER_GROUP = 100_000
BEFORE = (  # why a pair is out before any rule of decide: branches of a CASE
    "WHEN screen_reason IS NOT NULL THEN screen_reason"
    " WHEN outcome IS NULL THEN 'not_fetched' WHEN outcome <> 'ok' THEN outcome"
    " WHEN blocked_v1 THEN 'blocked'"
)
T = TypeVar("T")
LIMITS = Dedup()
OF_PAIRS = {field.name: field for schema in (PAIRS, *BESIDE.values()) for field in schema}


def decide_plans(settings: Decide) -> dict[str, Rules]:
    """Which selections `decide` writes: the named one, and 'everything' that was fetched, if asked for."""
    rules = settings.rules
    if settings.max_noise is not None:
        values = {**rules.values, "max_noise": settings.max_noise}
        sets = rules.sets if "noise" in rules.sets else (*rules.sets, "noise")
        rules = rules.model_copy(update={"sets": sets, "values": values})
    plans = {settings.name: rules, **({"everything": Rules()} if settings.baseline else {})}
    if settings.name in ("bootstrap", "candidates", "screen") or (
        settings.baseline and plans[settings.name] != rules
    ):
        raise ConfigError(
            f"decide.name: {settings.name!r} is the name of a selection that pairmill itself makes"
        )
    return plans


def decide_tasks(out: Path, settings: Decide) -> list[Task]:
    """One task for each selection; none before there is anything to decide about."""
    return [Task("decide", name) for name in decide_plans(settings)] if part_names(out) else []


def decide_stage(out: Path, settings: Decide, limits: Dedup = LIMITS, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `decide`: selection/<name>.parquet, .npy and .reasons.parquet.

    limits: DuckDB's threads. Raises ConfigError for a rule that cannot work.
    """
    return _stage("decide", out, decide_plans(settings), limits, memory_mb)


def choose_tasks(out: Path) -> list[Task]:
    """The tasks that choose what the bootstrap is trained on, and what the noise is reckoned among."""
    return [Task("choose", name) for name in ("bootstrap", "candidates")] if part_names(out) else []


def choose_stage(
    out: Path, settings: Bootstrap, decide: Decide, limits: Dedup = LIMITS, memory_mb: int = MEMORY_MB
) -> Stage:
    """The stage `choose`, like `decide` but before there is a noise score.

    selection/bootstrap is trained on. selection/candidates passes every rule of `decide` but those of the
    score: a share of noise among those kept is a share of these.
    """
    plans = {"bootstrap": settings.rules, "candidates": before_scores(decide.rules)}
    return _stage("choose", out, plans, limits, memory_mb)


def before_scores(rules: Rules) -> Rules:
    """The rules less the sets and extra rules that ask for a model's score, and less the values of these."""
    scores = {*NOISE.names, *MISMATCH.names} - {"uid"}

    def free(rule: Rule) -> bool:
        return not scores & names_in(rule.where)[1]

    held = {name: [rule for _, _, rule, _ in rules_of(name, rules.own)] for name in rules.sets}
    sets = tuple(name for name in rules.sets if all(map(free, held[name])))
    extra = tuple(rule for rule in rules.extra if free(rule))
    left = [*extra, *(rule for name in sets for rule in held[name])]
    wanted = {name for rule in left for name in names_in(rule.where)[0]}
    values = {name: value for name, value in rules.values.items() if name in wanted}
    return Rules(sets=sets, values=values, extra=extra, own=rules.own)


def _stage(stage: str, out: Path, plans: dict[str, Rules], limits: Dedup, memory_mb: int) -> Stage:
    for rules in plans.values():
        check_rules(rules, stage)
    return Stage(stage, _start, (out, plans, limits, memory_mb))


def check_recipe_rules(recipe: Recipe) -> None:
    """Try every rule of the recipe, and the language model. Raises ConfigError; starts and writes nothing."""
    check_settings(recipe.language)
    check_rules(recipe.language.rules, "screen")
    check_rules(recipe.bootstrap.rules, "choose")
    for rules in decide_plans(recipe.decide).values():
        check_rules(rules, "decide")


def _start(out: Path, plans: dict[str, Rules], limits: Dedup, memory_mb: int) -> Worker:
    return partial(_decide, out, plans, {"threads": limits.threads, "memory_mb": memory_mb})


def _decide(out: Path, plans: dict[str, Rules], limits: dict[str, Any], task: Task) -> Tally:
    """Write one selection. Counts distinct uids by reason, 'kept' for the selected."""
    compiled = compile_rules(plans[task.name])
    check_columns(out, compiled)

    def write(fates: pa.RecordBatchReader) -> Tally:
        return _write(out / "selection" / f"{task.name}.parquet", fates)

    def evaluate(some: Compiled) -> None:
        _with_fates(out, some, task, limits, lambda fates: sum(map(len, fates)))

    try:
        tally, n_rows = _with_fates(out, compiled, task, limits, write)
    except SQL_ERRORS as error:
        raise failed_rule(error, compiled, evaluate) from error
    if tally.seen != n_rows:
        raise DataError(f"{out}: {n_rows} uids, {tally.seen} fates: raw/ or scores/ hold a uid twice")
    return tally


def _with_fates(
    out: Path,
    compiled: Compiled,
    task: Task,
    limits: dict[str, Any],
    use: Callable[[pa.RecordBatchReader], T],
) -> tuple[T, int]:
    """What `use` makes of the fates of all distinct uids, which come as a stream; and how many there are."""
    sql = fates_sql(out, compiled, task.stage)
    return with_rows(out, compiled.words, task, limits, sql, compiled.values, use)


def with_rows(
    out: Path,
    words: frozenset[str],
    task: Task,
    limits: dict[str, Any],
    sql: str,
    values: dict[str, Any],
    use: Callable[[pa.RecordBatchReader], T],
) -> tuple[T, int]:
    """What `use` makes of the answer to `sql` over `rows_sql`; and how many distinct uids there are."""
    rows = _FirstRows(out, columns_for(words, OF_PAIRS), task)
    name = f"{task.stage}-{task.name}"
    with database(out, name, **limits) as connection:
        connection.register("source", pa.RecordBatchReader.from_batches(rows.schema, rows))
        return use(connection.sql(sql, params=values).to_arrow_reader(ROWS_PER_GROUP)), rows.n_rows


class _FirstRows:
    """First rows as batches; their uid is a 128-bit number, which joins and sorts twice as fast as bytes."""

    def __init__(self, out: Path, columns: set[str], task: Task) -> None:
        fields = [OF_PAIRS[name] for name in sorted({*columns, "pair_rank_v1"} - {"uid"})]
        reason = SCREEN.field("reason").with_name("screen_reason")
        self.schema = pa.schema([pa.field("uid", pa.uuid()), *fields, reason])
        self.n_rows = 0
        self._out, self._columns, self._task = out, columns, task

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        n_parts = len(part_names(self._out))
        for done, batch in enumerate(first_rows(self._out, self._columns)):
            beat(self._task, min(done, n_parts), n_parts + 1)
            self.n_rows += len(batch)
            arrays = {name: batch.column(name) for name in batch.schema.names}
            arrays["uid"] = pa.ExtensionArray.from_storage(pa.uuid(), arrays["uid"])
            arrays["screen_reason"] = arrays["reason"]
            yield pa.RecordBatch.from_arrays([arrays[name] for name in self.schema.names], schema=self.schema)


def fates_sql(out: Path, compiled: Compiled, stage: str) -> str:
    """SQL for (uid, reason) of every row of `source`, by uid; a NULL reason is kept."""
    table = rows_sql(out, compiled.words, stage)
    last = redacted_sql(out, _near_files(out, stage)) if stage == "decide" else None
    end = f"\nWHEN {last} THEN 'redacted'" if last else ""
    return f"SELECT uid, CASE {BEFORE}\n{compiled.branches}{end} END AS reason FROM {table} ORDER BY uid"


def rows_sql(out: Path, words: frozenset[str], stage: str) -> str:
    """SQL for every row of `source` with the columns among `words`, wherever these lie, and `blocked_v1`."""
    raw = columns_for(words, OF_RAW.names) - {"uid", "caption"} | {"outcome"}
    joined = f"source LEFT JOIN {_pictures(out, sorted(raw), _near_files(out, stage))} raw USING (uid)"
    by_uid = {"leaks": LEAKS, "noise": NOISE, "mismatch": MISMATCH}
    places = [(schema, out / "scores" / name / "*.parquet") for name, schema in by_uid.items()]
    held = any((out / "scores" / "leaks").glob("*.parquet"))  # a blocked picture is out, whatever the rules
    words = words | {"blocked_v1"} if held else words
    for schema, files in ((NEAR, _near_files(out, stage)), *places):
        wanted = sorted(columns_for(words, schema.names) - {"uid", "caption"})
        if not wanted:
            continue
        if not any(files.parent.glob(files.name)):
            raise DataError(
                f"{files.parent}: a rule needs {wanted[0]}, and it is not there: run stage"
                f" {written_by()[wanted[0]]}, which writes it"
            )
        columns = f"uid::UUID AS uid, {', '.join(wanted)}"
        joined += f" LEFT JOIN (SELECT {columns} FROM read_parquet({quoted(str(files))})) USING (uid)"
    bare = "" if held else ", NULL::BOOLEAN AS blocked_v1"
    return with_text(f"(SELECT *{bare} FROM {joined})", words)


def _near_files(out: Path, stage: str) -> Path:
    from .near import near_files

    return near_files(out, embedding=stage == "decide")


def _pictures(out: Path, columns: list[str], near: Path) -> str:
    """The attempts that count; where a caption was adopted, its picture is the one that took it over."""
    raw = _raw(out, columns)
    taken = [name for name in columns if name in OF_PICTURE]
    if not taken or not any(near.parent.glob(near.name)):
        return raw
    files, near_rows = quoted(str(out / "raw" / "*.parquet")), f"read_parquet({quoted(str(near))})"
    adopted = f"(SELECT uid::UUID AS uid, near_group_v1 FROM {near_rows} WHERE near_adopted_v1)"
    best = (
        f"(SELECT DISTINCT ON (url_hash) url_hash, true AS takes, {', '.join(taken)}"
        f" FROM read_parquet({files}) WHERE outcome = 'ok'"
        f" AND url_hash IN (SELECT near_group_v1 FROM {adopted}) ORDER BY url_hash, wave DESC, uid)"
    )
    shown = [f"CASE WHEN takes THEN b.{c} ELSE r.{c} END AS {c}" if c in taken else f"r.{c}" for c in columns]
    return (
        f"(SELECT r.uid, {', '.join(shown)} FROM {raw} r LEFT JOIN {adopted} n ON r.uid = n.uid"
        f" LEFT JOIN {best} b ON b.url_hash = n.near_group_v1)"
    )


def _raw(out: Path, columns: list[str]) -> str:
    """The attempts that count: for each uid those of its highest wave."""
    if not any((out / "raw").glob("*.parquet")):
        return f"(SELECT NULL::UUID AS uid, {', '.join(f'NULL AS {name}' for name in columns)} WHERE false)"
    files = f"read_parquet({quoted(str(out / 'raw' / '*.parquet'))})"
    again = f"(SELECT uid, max(wave) AS last FROM {files} WHERE wave > 0 GROUP BY uid)"
    chosen = ", ".join(f"a.{name}" for name in columns)
    return (
        f"(SELECT a.uid::UUID AS uid, {chosen} FROM {files} a LEFT JOIN {again} b ON a.uid = b.uid"
        " WHERE a.wave = coalesce(b.last, 0))"
    )


def _write(path: Path, batches: pa.RecordBatchReader) -> Tally:
    """Write the reasons as they come, then the kept uids (16 bytes each in memory)."""
    counts: Counter[str] = Counter()
    kept: list[pa.Array] = []
    reasons = path.with_name(f"{path.stem}.reasons.parquet")
    with committed(reasons) as temporary, pq.ParquetWriter(temporary, REASONS, compression="zstd") as writer:
        held = REASONS.empty_table()
        for batch in batches:
            table = pa.table([batch.column("uid").storage, batch.column("reason")], schema=REASONS)
            counts.update(count_reasons(table.column("reason")))
            good = pc.is_null(table.column("reason"))
            kept += table.column("uid").filter(good).chunks
            held = pa.concat_tables([held, table.filter(pc.invert(good))])
            while len(held) >= ROWS_PER_GROUP:  # groups of a fixed size: the bytes know no batches
                writer.write_table(held.slice(0, ROWS_PER_GROUP).combine_chunks())
                held = held.slice(ROWS_PER_GROUP)
        writer.write_table(held.combine_chunks())
    write_selection(pa.chunked_array(kept, pa.binary(16)), path)
    return Tally(dict(sorted(counts.items())))
