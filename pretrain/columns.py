"""Columns that a trained system makes of its pairs, for rules to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ..shards.commit import write_table
from ..shards.schema import MISMATCH
from .objectives.memory import Table
from .samples import Source, short_uids


def write_mismatch(source: Source, table: Table, scores: Path) -> None:
    """Commit `mismatch/mismatch.parquet`: how likely each pair is mismatched, by uid, as its table has it."""
    parts = []
    for shard in range(len(source.tables)):
        uids = source.table(shard).select(["uid"])
        parts.append(uids.append_column("mismatch_prob_v1", pa.array(table.values_of(short_uids(uids)))))
    whole = pa.concat_tables(parts).cast(MISMATCH)
    order = np.argsort(np.array(whole["uid"].to_pylist(), "S16"), kind="stable")
    write_table(whole.take(pa.array(order)), scores / "mismatch" / "mismatch.parquet")
