"""Groups of near-copies: each picture follows the best one that it resembles, so that a group cannot chain.

Union by pairs would join A to C through B though A and C are strangers. Here items come best first; an
item is a leader unless it resembles an earlier leader, and then it follows the first of them. So every
follower is like the one that stays in its stead, and no two leaders are alike.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

BATCH = 2_048  # the worst case, a batch of equal items, is 4 million hits of 16 bytes
AT_ONCE = 65_536  # vectors compared by cosine at once

Hits = tuple[np.ndarray, np.ndarray]  # for each query where its hits start (Q + 1,), and their ids


class Reach(Protocol):
    """Which vectors are near each other."""

    def first(self, vectors: np.ndarray, leaders: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: for each of the rows `queries` the first of the rows `leaders` that is near, or -1."""
        ...

    def among(self, vectors: np.ndarray) -> Hits:
        """All near pairs of a few vectors."""
        ...


class Cosine:
    """Exact search for unit vectors (N, D) whose cosine is above `least`. Holds a few blocks of them."""

    def __init__(self, least: float) -> None:
        self.least = least

    def first(self, vectors: np.ndarray, leaders: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: for each of the rows `queries` the first of the rows `leaders` that is near, or -1."""
        import faiss

        first = np.full(len(queries), -1, np.int64)
        for start in range(0, len(leaders), AT_ONCE):
            flat = faiss.IndexFlatIP(vectors.shape[1])
            flat.add(vectors[leaders[start : start + AT_ONCE]].astype(np.float32))
            waiting = np.flatnonzero(first < 0)
            for at in range(0, len(waiting), BATCH):
                mine = waiting[at : at + BATCH]
                asked = vectors[queries[mine]].astype(np.float32)
                limits, _, ids = flat.range_search(asked, self.least)
                found = first_hit((limits.astype(np.int64), ids))
                first[mine] = np.where(found < 0, -1, found + start)
        return first

    def among(self, vectors: np.ndarray) -> Hits:
        """All near pairs of a few vectors."""
        unit = vectors.astype(np.float32)
        rows, ids = np.nonzero(unit @ unit.T > self.least)
        return np.searchsorted(rows, np.arange(len(vectors) + 1)), ids


def follow(vectors: np.ndarray, reach: Reach) -> np.ndarray:
    """(N,) int64: for each row of `vectors` (best first) the row that it follows; a leader follows itself.

    The better half is settled first, then the rest is held against its leaders in one join, and what none of
    them is near to is settled among itself: each join is large, and the answer is that of one row after the
    other.
    """
    leader = np.arange(len(vectors))
    _settle_rows(vectors, np.arange(len(vectors)), reach, leader)
    return leader


def _settle_rows(vectors: np.ndarray, rows: np.ndarray, reach: Reach, leader: np.ndarray) -> np.ndarray:
    """Fill `leader` for `rows`, which are near no earlier leader. Returns those that lead."""
    if len(rows) <= BATCH:
        leader[rows] = rows[_greedy(reach.among(vectors[rows]))]
        return rows[leader[rows] == rows]
    half = len(rows) // 2
    leaders, later = _settle_rows(vectors, rows[:half], reach, leader), rows[half:]
    first = reach.first(vectors, leaders, later)
    near = first >= 0
    leader[later[near]] = leaders[first[near]]
    return np.concatenate([leaders, _settle_rows(vectors, later[~near], reach, leader)])


def first_hit(hits: Hits) -> np.ndarray:
    """(Q,) int64: the smallest id of each query's hits, or -1."""
    limits, ids = hits
    first = np.full(len(limits) - 1, -1, np.int64)
    found = np.flatnonzero(np.diff(limits))
    if len(found):
        first[found] = np.minimum.reduceat(ids, limits[found])
    return first


def _greedy(hits: Hits) -> np.ndarray:
    """Leaders within a batch that was searched against itself."""
    limits, ids = hits
    leader = np.full(len(limits) - 1, -1, np.int64)
    for row in range(len(leader)):
        if leader[row] < 0:
            leader[row] = row
            near = ids[limits[row] : limits[row + 1]]
            near = near[near > row]
            leader[near[leader[near] < 0]] = row
    return leader


def settle(leader: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank within its group (0 for the leader, then by row) and size of the group, (N,) int32 each."""
    order = np.argsort(leader, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(leader[order]) > 0]) if len(leader) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(leader)])
    rank = np.empty(len(leader), np.int32)
    rank[order] = np.arange(len(leader)) - np.repeat(starts, sizes)
    size = np.empty(len(leader), np.int32)
    size[order] = np.repeat(sizes, sizes)
    return rank, size
