"""Groups of near-copies: each picture follows the best one that it resembles, so that a group cannot chain.

Union by pairs would join A to C through B though A and C are strangers. Here items come best first; an
item is a leader unless it resembles an earlier leader, and then it follows the first of them. So every
follower is like the one that stays in its stead, and no two leaders are alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

BATCH = 2_048  # the worst case, a batch of equal items, is 4 million hits of 16 bytes
TABLES, PIECE = 16, 16  # a hash of 256 bits is cut into 16 pieces of 16 bits
RECENT = 16_384  # vectors compared one by one until the tables are built anew

HASH = TABLES * PIECE // 8  # bytes
# which bits of the 16x16 frequencies make each piece: one of each row and each column, for neighbours are
# alike. Pieces of a column each have 18 times as many candidates as by chance on product photos, these 5
DIAGONALS = 16 * np.arange(16) + (5 * np.arange(16) + np.arange(16)[:, None]) % 16

Split = tuple[np.ndarray, np.ndarray]  # hashes (N, 4) uint64, and what stands behind them (N, W) uint8
# which of the pairs within reach are near, by what stands behind both hashes and their distances (N,)
Alike = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Hits = tuple[np.ndarray, np.ndarray]  # for each query where its hits start (Q + 1,), and their ids


class Index(Protocol):
    """Vectors added in order, and which of them are near a query."""

    def add(self, vectors: np.ndarray) -> None: ...
    def first(self, queries: np.ndarray) -> np.ndarray: ...
    def among(self, queries: np.ndarray) -> Hits: ...


class Hamming:
    """Exact search for hashes of 256 bits that differ in `radius` bits at most, and are `alike` where given.

    A vector is a hash of 32 bytes, and behind it whatever `alike` compares.
    Multi-index hashing: of 16 pieces, one holds a sixteenth of the differing bits at most, so looking up
    each piece with so many bits flipped misses nothing. Measured on 100,000 random hashes, ten times as
    fast as comparing all, and as FAISS's IndexBinaryMultiHash.
    """

    def __init__(self, radius: int, alike: Alike | None = None) -> None:
        self.radius, self.alike = radius, alike
        bits = np.arange(1 << PIECE, dtype=np.uint16)
        self.flips = bits[np.bitwise_count(bits) <= radius // TABLES]
        self.words = np.empty((0, 4), np.uint64)
        self.rest: np.ndarray | None = None  # (N, W), what stands behind the hashes
        self.tables: list[tuple[np.ndarray, np.ndarray]] = []
        self.n_tabled = 0

    def add(self, vectors: np.ndarray) -> None:
        """Append (N, 32 + W) uint8."""
        words, rest = _split(vectors)
        self.words = np.concatenate([self.words, words])
        self.rest = rest if self.rest is None else np.concatenate([self.rest, rest])
        if len(self.words) - self.n_tabled > RECENT and len(self.flips) <= PIECE + 1:
            self.tables = [_table(piece) for piece in _pieces(self.words)]
            self.n_tabled = len(self.words)

    def first(self, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: the first vector near each of (Q, 32 + W) uint8, or -1."""
        words, rest = _split(queries)
        if self.rest is None:
            return np.full(len(words), -1, np.int64)
        none = len(self.words)
        first = np.full(len(words), none, np.int64)
        for piece, table in zip(_pieces(words), self.tables, strict=False):
            for flip in self.flips:
                rows, ids = _look_up(piece ^ flip, table)
                distance = _distance(words[rows], self.words[ids])
                near = np.flatnonzero(distance <= self.radius)
                rows, ids = rows[near], ids[near]
                if self.alike is not None:
                    alike = self.alike(rest[rows], self.rest[ids], distance[near])
                    rows, ids = rows[alike], ids[alike]
                np.minimum.at(first, rows, ids)
        recent = self._compare((words, rest), (self.words[self.n_tabled :], self.rest[self.n_tabled :]))
        late = _first_hit(recent)
        first = np.where((first == none) & (late >= 0), late + self.n_tabled, first)
        return np.where(first == none, -1, first)

    def among(self, queries: np.ndarray) -> Hits:
        """All pairs within one batch."""
        split = _split(queries)
        return self._compare(split, split)

    def _compare(self, queries: Split, others: Split) -> Hits:
        import faiss

        flat = faiss.IndexBinaryFlat(8 * HASH)
        flat.add(others[0].view(np.uint8))
        codes = queries[0].view(np.uint8)
        limits, distance, ids = flat.range_search(codes, self.radius + 1)  # FAISS finds distance < radius
        limits = limits.astype(np.int64)
        if self.alike is None:
            return limits, ids
        rows = np.repeat(np.arange(len(codes)), np.diff(limits))
        alike = self.alike(queries[1][rows], others[1][ids], distance)
        return np.searchsorted(rows[alike], np.arange(len(codes) + 1)), ids[alike]


def _split(vectors: np.ndarray) -> Split:
    codes = np.ascontiguousarray(vectors[:, :HASH])
    return codes.view(np.uint64).reshape(-1, HASH // 8), vectors[:, HASH:]


def _pieces(words: np.ndarray) -> list[np.ndarray]:
    """16 arrays (N,) uint16."""
    bits = np.unpackbits(words.view(np.uint8).reshape(-1, HASH), axis=1)
    packed = (np.ascontiguousarray(np.packbits(bits[:, places], axis=1)) for places in DIAGONALS)
    return [piece.view(np.uint16).reshape(-1) for piece in packed]


def _table(piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.zeros((1 << PIECE) + 1, np.int64)
    np.cumsum(np.bincount(piece, minlength=1 << PIECE), out=starts[1:])
    return starts, np.argsort(piece, kind="stable")


def _look_up(keys: np.ndarray, table: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All (query row, id) whose piece equals the key."""
    starts, order = table
    begin = starts[keys]
    counts = starts[keys.astype(np.int64) + 1] - begin
    rows = np.repeat(np.arange(len(keys)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[begin[rows] + within]


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b).sum(1, dtype=np.int64)


class Cosine:
    """Exact search for unit vectors whose cosine is above `least`."""

    def __init__(self, dim: int, least: float) -> None:
        import faiss

        self.index, self.least = faiss.IndexFlatIP(dim), least

    def add(self, vectors: np.ndarray) -> None:
        """Append (N, D), unit rows."""
        self.index.add(vectors.astype(np.float32))

    def first(self, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: the first vector near each of (Q, D), unit rows, or -1."""
        limits, _, ids = self.index.range_search(queries.astype(np.float32), self.least)
        return _first_hit((limits.astype(np.int64), ids))

    def among(self, queries: np.ndarray) -> Hits:
        """All pairs within one batch."""
        rows, ids = np.nonzero(queries.astype(np.float32) @ queries.astype(np.float32).T > self.least)
        return np.searchsorted(rows, np.arange(len(queries) + 1)), ids


def follow(vectors: np.ndarray, index: Index) -> np.ndarray:
    """(N,) int64: for each row of `vectors` (best first) the row that it follows; a leader follows itself.

    A row follows the first earlier leader that the empty `index` calls near. Needs the index of the
    leaders and one batch's hits, never all pairs.
    """
    leader = np.arange(len(vectors))
    leaders = np.empty(0, np.int64)
    for start in range(0, len(vectors), BATCH):
        rows = np.arange(start, min(start + BATCH, len(vectors)))
        first = index.first(vectors[rows]) if len(leaders) else np.full(len(rows), -1)
        leader[rows[first >= 0]] = leaders[first[first >= 0]]
        rest = rows[first < 0]
        leader[rest] = rest[_greedy(index.among(vectors[rest]))]
        fresh = rest[leader[rest] == rest]
        index.add(vectors[fresh])
        leaders = np.concatenate([leaders, fresh])
    return leader


def _first_hit(hits: Hits) -> np.ndarray:
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
