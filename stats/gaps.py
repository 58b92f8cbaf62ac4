"""Tasks that are missing from every count: failed ones, and ones that never came to their end.

Their rows are in no tally, so whoever adds up must name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..shards import ledger
from ..shards.files import readable
from .tallies import STAGES

MOST_LINES = 5  # that one stage may list
PART, RAW_PLAN, REUSE_PLAN, RAW_SHARD, PLAN = (
    "pairs/{}.parquet",
    "_plan/fetch/{}.parquet",
    "_plan/reuse/{}.parquet",
    "raw/{}.parquet",
    "_plan/write/{}.parquet",
)
# stage -> the file that holds a row for each row of one of its tasks; None: a task is of all that there is
READS: dict[str, str | None] = {
    "ingest": None,
    "dedup": None,
    "language": PART,
    "frequency": None,
    "screen": PART,
    "plan-fetch": None,
    "fetch": RAW_PLAN,
    "reuse": REUSE_PLAN,
    "near": None,
    "choose": None,
    "embed": RAW_SHARD,
    "near-embedding": None,
    "noise": None,
    "decide": None,
    "plan-write": None,
    "write": PLAN,
}


@dataclass(frozen=True, slots=True)
class Gap:
    """A task without a tally. error: empty where it did not fail, but never came to its end."""

    stage: str
    task: str
    about: str  # the list, where the task is one
    rows: int | None  # None where nobody knows
    error: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stage": self.stage,
            "task": self.task,
            "about": self.about,
            "rows": self.rows,
            "error": self.error or None,
        }

    def words(self) -> str:
        """The gap in one line: what is missing, how much of it, and why."""
        what = f"list {self.about}" if self.about else f"{self.stage} task {self.task}"
        if not self.error:
            return f"{what} did not come to its end{_with(self.rows, self.stage)}: run again"
        return f"{what} failed{_with(self.rows, self.stage)}: {one_line(self.error)}"


def _with(rows: int | None, stage: str) -> str:
    if rows is not None:
        return f", with {rows:,} rows"
    return ", with an unknown number of rows" if stage == "ingest" else ""


def gap_lines(found: Sequence[Gap], *, most: int = MOST_LINES) -> list[str]:
    """A line for each gap; of a stage with many, for the first and for the rest together."""
    lines = []
    for stage in dict.fromkeys(gap.stage for gap in found):
        mine = [gap for gap in found if gap.stage == stage]
        lines += [gap.words() for gap in mine[:most]]
        if rest := mine[most:]:
            rows = sum(gap.rows or 0 for gap in rest)
            lines.append(f"{len(rest):,} more {stage} tasks without a tally, with {rows:,} rows")
    return lines


def one_line(error: str) -> str:
    """The last line of an error: of a traceback it says most."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"


def gaps(out: Path) -> list[Gap]:
    """Every task of a stage whose tasks are rows that has no whole tally, in the order of the job."""
    found = []
    for stage in STAGES:
        if stage not in READS:
            continue
        failed = {failure.task: failure for failure in ledger.failures(out, stage)}
        planned = ledger.planned_tasks(out, stage)
        for task in sorted({*planned, *failed}):
            if ledger.read_tally(out, stage, task) is None:
                data = planned.get(task) or (failed[task].data if task in failed else {})
                error = failed[task].error if task in failed else ""
                found.append(_gap(out, stage, task, data, error))
    return found


def _gap(out: Path, stage: str, task: str, data: Mapping[str, Any], error: str) -> Gap:
    reads = READS[stage]
    path = (
        Path(str(data.get("path", ""))) if stage == "ingest" else out / reads.format(task) if reads else None
    )
    return Gap(stage, task, str(data.get("source", "")), _rows(path), error)


def _rows(path: Path | None) -> int | None:
    """The rows of a Parquet file by its footer; of a list only where it lies on this machine."""
    if path is None or not path.is_file():
        return None
    try:
        return pq.read_metadata(readable(path)).num_rows
    except (OSError, pa.ArrowException):
        return None
