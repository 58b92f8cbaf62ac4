"""Which fold a pair is in, so that no model scores a picture that it was trained on.

Pictures that are near-copies of each other share a fold; else all pairs of one picture do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..shards.files import readable
from ..shards.schema import fold_of
from ..shards.selection import uids_to_array


class Folds:
    """Gives the fold of every row of a raw shard; holds 32 bytes for each pair that has a near-copy."""

    def __init__(self, out: Path, folds: int) -> None:
        self.folds = folds
        self._known = read_groups(out / "scores" / "near")

    def __call__(self, table: pa.Table) -> np.ndarray:
        """(N,) int16 for a table with `uid` and `url_hash`."""
        groups = uids_to_array(table["url_hash"]).copy()
        copied, group = find_groups(table, self._known)
        groups[copied] = group
        distinct, index = np.unique(groups.view("S16"), return_inverse=True)
        keys = distinct.view("V16")
        drawn = np.fromiter((fold_of(key.tobytes(), self.folds) for key in keys), np.int16, len(keys))
        return drawn[index.reshape(-1)]


Groups = tuple[np.ndarray, np.ndarray]


def find_groups(table: pa.Table, known: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a table with `uid` that have a near-copy, (M,), and their groups, (M,) V16."""
    uids, groups = known
    if not len(uids):
        return np.empty(0, np.int64), groups
    wanted = uids_to_array(table["uid"]).view("S16")
    at = np.searchsorted(uids, wanted).clip(max=len(uids) - 1)
    rows = np.flatnonzero(uids[at] == wanted)
    return rows, groups[at[rows]]


def read_groups(folder: Path) -> Groups:
    """Sorted uids (S16) of pairs with a near-copy, and the group (V16) of each; empty where none is known.

    By pixels, which are there before any model: groups joined by embeddings would move the folds.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        return np.empty(0, "S16"), np.empty(0, "V16")
    columns, several = ["uid", "near_group_v1"], [("near_size_v1", ">", 1)]
    grouped = pa.concat_tables(
        pq.read_table(readable(path), columns=columns, filters=several) for path in files
    )
    uids = np.ascontiguousarray(uids_to_array(grouped["uid"])).view("S16")
    order = np.argsort(uids, kind="stable")
    return uids[order], uids_to_array(grouped["near_group_v1"])[order]
