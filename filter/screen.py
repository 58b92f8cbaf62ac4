"""Stage `screen`: which rows of the lists are worth fetching, by rules that need no picture.

The rule: a row without a reason is fetched. Copies of a pair are always dropped, whatever the rules are, and
so is what lies in a corpus that the recipe names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..recipe import Language, Rules
from ..runner import Stage, Tally, Task, Worker
from ..settings import MEMORY_MB
from ..shards.commit import write_table
from ..shards.schema import SCREEN
from .columns import part_names, read_part, stage_columns
from .corpus import IN_CORPUS, in_corpora
from .rules import SQL_ERRORS, Compiled, check_columns, check_rules, columns_for, compile_rules, failed_rule
from .sql import database
from .text import with_text


def screen_tasks(out: Path) -> list[Task]:
    """One task for each part of pairs."""
    return [Task("screen", name) for name in part_names(out)]


def screen_stage(
    out: Path, settings: Language, memory_mb: int = MEMORY_MB, against: Sequence[str] = ()
) -> Stage:
    """The stage `screen`: selection/screen/<part>.parquet.

    against: finished corpora; their pictures are not worth fetching. Raises ConfigError for a rule that
    cannot work.
    """
    check_rules(settings.rules, "screen")
    return Stage("screen", _start, (out, settings.rules, memory_mb, tuple(against)))


def _start(out: Path, rules: Rules, memory_mb: int, against: Sequence[str]) -> Worker:
    return partial(_screen_part, out, compile_rules(rules), memory_mb, against)


def _screen_part(out: Path, compiled: Compiled, memory_mb: int, against: Sequence[str], task: Task) -> Tally:
    """Write the reasons of one part. Counts rows by reason, 'kept' for those worth fetching."""
    check_columns(out, compiled)
    needed = columns_for(compiled.words, stage_columns("screen").names)
    rows = read_part(out, task.name, {"pair_rank_v1", "caption", "url", *needed})
    try:
        reasons = _reasons(rows, memory_mb, compiled)
    except SQL_ERRORS as error:
        raise failed_rule(error, compiled, partial(_reasons, rows, memory_mb)) from error
    if against:
        known = in_corpora(rows.column("url"), against, out, f"screen-{task.name}", memory_mb)
        known = pc.and_(known, pc.equal(rows.column("pair_rank_v1"), 0))  # the others are copies of these
        reasons = pc.if_else(known, IN_CORPUS, reasons.cast(pa.string()))
    table = pa.table([rows.column("uid"), reasons.cast(pa.string())], schema=SCREEN)
    write_table(table, out / "selection" / "screen" / f"{task.name}.parquet")
    return Tally(count_reasons(reasons))


def _reasons(rows: pa.Table, memory_mb: int, compiled: Compiled) -> pa.ChunkedArray:
    """(N,) the reason of each row, NULL where none of the rules is true."""
    with database(memory_mb=memory_mb) as connection:
        connection.register("part", rows)
        sql = (
            "SELECT CASE WHEN pair_rank_v1 > 0 THEN 'pair_copy' "
            f"{compiled.branches} END AS reason FROM {with_text('part', compiled.words)}"
        )
        return connection.sql(sql, params=compiled.values).to_arrow_table().column("reason")


def count_reasons(reasons: pa.ChunkedArray) -> dict[str, int]:
    """How many rows have each reason, NULL as 'kept', sorted by reason."""
    counted = pc.value_counts(pc.fill_null(reasons.cast(pa.string()), "kept").combine_chunks())
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return dict(sorted(pairs))
