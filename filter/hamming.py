"""Near-copies by hash: exact search for hashes of 256 bits that differ in few, by FAISS's inverted lists.

Multi-index hashing: of 16 pieces of a hash, one holds a sixteenth of the differing bits at most. So for each
piece the leaders lie in one list per value of it, and a query looks into 17: its own value's, and those one
bit away. Queries go by value, so that the lists they look into are still in the cache; one piece after the
other, so that one set of lists is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .groups import Hits, first_hit

PIECES, PIECE = 16, 16  # a hash of 256 bits is cut into 16 pieces of 16 bits
VALUES = 1 << PIECE
HASH = PIECES * PIECE // 8  # bytes
# which bits of the 16x16 frequencies make each piece: one of each row and each column, for neighbours are
# alike. Pieces of a column each have 18 times as many candidates as by chance on product photos, these 5
DIAGONALS = 16 * np.arange(16) + (5 * np.arange(16) + np.arange(16)[:, None]) % 16
FEW = 10_000  # with so many leaders and queries, twice, lists cost as much as they save
AT_ONCE = 1 << 24  # candidates of the queries that are looked up at once: as many hits would take 200 MB
FLAT_AT_ONCE = 1 << 22  # pairs compared at once: if all were hits, 50 MB
ROWS_AT_ONCE = 65_536

# which of the pairs within reach are near, by what stands behind both hashes and their distances (N,)
Alike = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Hamming:
    """Exact search for hashes of 256 bits that differ in `radius` bits at most, and are `alike` where given.

    A vector is a hash of 32 bytes, and behind it whatever `alike` compares.
    """

    def __init__(self, radius: int, alike: Alike | None = None) -> None:
        self.radius, self.alike = radius, alike
        bits = np.arange(VALUES, dtype=np.uint16)
        self.flips = bits[np.bitwise_count(bits) <= radius // PIECES]

    def first(self, vectors: np.ndarray, leaders: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: for each of the rows `queries` the first of the rows `leaders` that is near, or -1.

        vectors: (N, 32 + W) uint8.
        """
        return self.join(vectors[leaders], vectors[queries])

    def join(self, leaders: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(Q,) int64: for each of (Q, 32 + W) uint8 the first of the leaders (L, 32 + W) near it, or -1."""
        if not len(leaders) or not len(queries):
            return np.full(len(queries), -1, np.int64)
        few = len(leaders) * len(queries) < FEW * (len(leaders) + len(queries))
        if few or len(self.flips) > PIECE + 1:
            step = max(1, FLAT_AT_ONCE // len(leaders))
            parts = (queries[start : start + step] for start in range(0, len(queries), step))
            return np.concatenate([first_hit(self._compare(part, leaders)) for part in parts])
        none = len(leaders)
        first = np.full(len(queries), none, np.int64)
        theirs, mine = _hashes(leaders), _hashes(queries)
        for of_leaders, of_queries in zip(pieces_of(theirs), pieces_of(mine), strict=True):
            lists = _lists(theirs, of_leaders)
            lists.nprobe = len(self.flips)
            for rows in self._shares(of_leaders, of_queries):
                values = (of_queries[rows][:, None] ^ self.flips).astype(np.int64)
                found = lists.range_search_preassigned(
                    mine[rows], self.radius + 1, values, np.zeros(values.shape, np.int32)
                )
                limits, distance, ids = found  # FAISS finds distance < radius
                hit = np.repeat(rows, np.diff(limits.astype(np.int64)))
                if self.alike is not None:
                    alike = self.alike(queries[hit, HASH:], leaders[ids, HASH:], distance)
                    hit, ids = hit[alike], ids[alike]
                np.minimum.at(first, hit, ids)
        return np.where(first == none, -1, first)

    def among(self, vectors: np.ndarray) -> Hits:
        """All near pairs of a few vectors."""
        return self._compare(vectors, vectors)

    def _shares(self, of_leaders: np.ndarray, of_queries: np.ndarray) -> Iterator[np.ndarray]:
        """Rows of queries by value of the piece, each with candidates, so many at once as memory bears."""
        sizes = np.bincount(of_leaders, minlength=VALUES)
        values = np.arange(VALUES, dtype=np.uint16)
        candidates = sizes[values[:, None] ^ self.flips].sum(1)
        order = np.argsort(of_queries, kind="stable")
        order = order[candidates[of_queries[order]] > 0]
        so_far = np.cumsum(candidates[of_queries[order]])
        start = 0
        while start < len(order):
            before = so_far[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(so_far, before + AT_ONCE, side="right")))
            end = min(end, start + 4 * ROWS_AT_ONCE)
            yield order[start:end]
            start = end

    def _compare(self, queries: np.ndarray, others: np.ndarray) -> Hits:
        import faiss

        flat = faiss.IndexBinaryFlat(8 * HASH)
        flat.add(_hashes(others))
        limits, distance, ids = flat.range_search(_hashes(queries), self.radius + 1)
        limits = limits.astype(np.int64)
        if self.alike is None:
            return limits, ids
        rows = np.repeat(np.arange(len(queries)), np.diff(limits))
        alike = self.alike(queries[rows, HASH:], others[ids, HASH:], distance)
        return np.searchsorted(rows[alike], np.arange(len(queries) + 1)), ids[alike]


def _hashes(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors[:, :HASH])


def _lists(hashes: np.ndarray, piece: np.ndarray) -> Any:
    """FAISS's inverted lists, one for each value of the piece; in each by row."""
    import faiss

    lists = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(8 * HASH), 8 * HASH, VALUES)
    lists.is_trained = True  # the piece says which list, no quantizer
    ids = np.argsort(piece, kind="stable")
    sorted_hashes, values = hashes[ids], piece[ids].astype(np.int64)
    lists.add_core(len(ids), *(faiss.swig_ptr(array) for array in (sorted_hashes, ids, values)))
    return lists


def pieces_of(hashes: np.ndarray) -> np.ndarray:
    """(16, N) uint16: the pieces of hashes (N, 32), by `DIAGONALS`, the first bit the highest.

    Row i of the 16x16 bits is turned by 5 i, and then the bits are transposed (Hacker's Delight, 7-3).
    """
    pieces = np.empty((PIECES, len(hashes)), np.uint16)
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        part = np.ascontiguousarray(hashes[start : start + ROWS_AT_ONCE]).view(">u2").T.astype(np.uint16)
        for row in range(PIECES):
            turn = 5 * row % PIECE
            part[row] = part[row] << turn | part[row] >> (PIECE - turn) if turn else part[row]
        for width, mask in ((8, 0x00FF), (4, 0x0F0F), (2, 0x3333), (1, 0x5555)):
            upper, lower = part.reshape(-1, 2, width, part.shape[1]).swapaxes(0, 1)
            moved = (upper ^ lower >> width) & np.uint16(mask)
            upper ^= moved
            lower ^= moved << width
        pieces[:, start : start + part.shape[1]] = part
    return pieces
