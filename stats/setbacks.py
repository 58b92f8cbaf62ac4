"""Why a pair's story breaks off: a task that failed on it, a damaged picture, a shard not yet written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..shards import ledger
from .gaps import READS, one_line
from .tables import Tables

# stages whose tasks are parts or shards -> the view whose files are named by the task
NAMED = {
    "language": "pairs",
    "screen": "pairs",
    "fetch": "fetch_plan",
    "reuse": "reuse_plan",
    "embed": "attempts",
    "write": "write_plan",
}


def setbacks(tables: Tables, uid: bytes) -> list[dict[str, Any]]:
    """The failed tasks that the pair was in, in the order of the job."""
    found = []
    for stage in READS:
        if stage == "ingest" or not (failed := ledger.failures(tables.out, stage)):
            continue
        mine = _tasks_of(tables, NAMED[stage], uid) if stage in NAMED else {gap.task for gap in failed}
        found += [
            {"stage": stage, "task": gap.task, "error": one_line(gap.error)}
            for gap in failed
            if gap.task in mine
        ]
    return found


def not_in_shards(tables: Tables, uid: bytes) -> dict[str, str]:
    """Why a pair that is no sample is in no shard, by the name of the selection that `shards/` are of."""
    out = tables.out
    if not (plans := list(ledger.records(out, "plan-write"))):
        return {}
    shards = sorted(_tasks_of(tables, "write_plan", uid))
    if not shards:
        return {plans[0]["task"]: "it has no picture"}
    failed = {failure.task: failure.error for failure in ledger.failures(out, "write")}
    if shards[0] in failed:
        why = f"its write task {shards[0]} failed: {one_line(failed[shards[0]])}"
    elif ledger.read_tally(out, "write", shards[0]) is None:
        why = f"shard {shards[0]} is not written yet"
    else:
        why = "picture_damaged: the bytes in raw/ are not those that were stored"
    return {plans[0]["task"]: why}


def _tasks_of(tables: Tables, view: str, uid: bytes) -> set[str]:
    if view not in tables.have:
        return set()
    rows = tables.rows(f"SELECT DISTINCT filename FROM {view} WHERE uid = $1", [uid])
    return {Path(name).stem for (name,) in rows}
