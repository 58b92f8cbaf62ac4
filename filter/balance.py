"""From entries that captions hold, and how often each is held: what share of an entry's pairs is drawn.

The rule (MetaCLIP, section 3): an entry that is held n times draws each of its pairs with probability
min(1, t / n), and a pair stays where one of its entries draws it. All draws of a pair are one number, seeded
and taken from its uid, so that a pair's fate can be told without the others.
"""

from __future__ import annotations

import numpy as np

BITS = 24  # of a draw: a float32 holds them exactly


def draws(uids: np.ndarray, seed: int) -> np.ndarray:
    """(N,) float32 in [0, 1), uniform, from (N,) V16 uids: splitmix64 of their last half and the seed."""
    halves = np.ascontiguousarray(uids).view("<u8").reshape(-1, 2)[:, 1]
    with np.errstate(over="ignore"):
        z = halves + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    return ((z >> np.uint64(64 - BITS)).astype(np.float64) / 2**BITS).astype(np.float32)


def tail_share(counts: np.ndarray, t: int) -> float:
    """The share of all matches that fall on entries held less than `t` times (MetaCLIP 2, section 3.2)."""
    whole = counts.sum()
    return float(counts[counts < t].sum() / whole) if whole else 0.0


def t_of_share(counts: np.ndarray, share: float) -> int:
    """The count at which the tail, the rarest entries first, holds `share` of all matches; 1 at least."""
    held = np.sort(counts[counts > 0])
    if not len(held):
        return 1
    reached = np.cumsum(held) / held.sum()
    return max(1, int(held[min(np.searchsorted(reached, share), len(held) - 1)]))


def entry_shares(counts: np.ndarray, t: int) -> np.ndarray:
    """(E,) float64: with what probability an entry draws one of its pairs."""
    return np.minimum(1.0, t / np.maximum(counts, 1))


def pair_shares(edges: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N,) float32: 1 - prod(1 - p) over the matches (M,) of each row, 0 where it has none."""
    with np.errstate(divide="ignore"):
        missed = np.log1p(-shares)
    found = np.zeros(len(edges) - 1)
    some = np.flatnonzero(np.diff(edges))
    if len(some):
        found[some] = -np.expm1(np.add.reduceat(missed, edges[some]))
    return found.astype(np.float32)


def rarest(edges: np.ndarray, entries: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(N,) int64: the entry of each row that is held least often, the first of equals, or -1.

    held: (M,) how often the entry of each match is held.
    """
    found = np.full(len(edges) - 1, -1, np.int64)
    some = np.flatnonzero(np.diff(edges))
    if len(some):
        order = np.lexsort((entries, held, np.repeat(np.arange(len(found)), np.diff(edges))))
        found[some] = entries[order[edges[some]]]
    return found
