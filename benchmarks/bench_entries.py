"""Balancing by entries: 500,000 entries against captions, as MetaCLIP's metadata; CPU seconds per million.

Entries and captions are made from a seed: words with the frequencies of a natural language (Zipf), a fifth of
the entries pairs of words, a tenth of entries and captions Chinese. Checks 300 captions against the slow
definition before it prints a JSON line. `python benchmarks/bench_entries.py [millions of captions]`.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
from common import machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.balance import draws, entry_shares, pair_shares
from pairmill.filter.matching import Matcher, spaced

N_ENTRIES, CHUNK, SAMPLE = 500_000, 100_000, 300
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def vocabulary(dice: np.random.Generator, n: int) -> list[str]:
    sizes = dice.integers(3, 10, n)
    letters = "".join(LETTERS[dice.integers(0, 26, sizes.sum())])
    ends = np.cumsum(sizes)
    return list(dict.fromkeys(letters[end - size : end] for size, end in zip(sizes, ends, strict=True)))


def chinese(dice: np.random.Generator, n: int, size: int) -> list[str]:
    codes = 0x4E00 + np.minimum(dice.zipf(1.2, (n, size)), 3_000)
    return ["".join(map(chr, row)) for row in codes]


def captions(dice: np.random.Generator, words: np.ndarray, n: int) -> list[str]:
    """`n` captions of nine words, a tenth of them Chinese of twelve characters."""
    picks = np.minimum(dice.zipf(1.15, (n - n // 10, 9)), len(words)) - 1
    return [", ".join((" ".join(row[:4]), " ".join(row[4:]))) for row in words[picks]] + chinese(
        dice, n // 10, 12
    )


def main() -> int:
    n = int(float(sys.argv[1]) * 1_000_000) if len(sys.argv) > 1 else 1_000_000
    dice = np.random.default_rng(0)
    words = np.array(vocabulary(dice, 500_000), object)
    pairs = [" ".join(pair) for pair in words[np.minimum(dice.zipf(1.15, (200_000, 2)), len(words)) - 1]]
    entries = list(dict.fromkeys([*words[:400_000], *pairs, *chinese(dice, 200_000, 2)]))[:N_ENTRIES]
    began = time.process_time()
    matcher = Matcher(entries)
    build_s = time.process_time() - began
    counts, edges, found, match_s = np.zeros(len(entries), np.int64), [], [], 0.0
    for start in range(0, n, CHUNK):
        some = captions(dice, words, min(CHUNK, n - start))
        began = time.process_time()
        edge, entry = matcher.find(some)
        counts += np.bincount(entry, minlength=len(entries))
        match_s += time.process_time() - began
        edges.append(edge)
        found.append(entry)
        if start == 0:
            check(some, entries, edge, entry)
    began = time.process_time()
    shares = entry_shares(counts, 20_000)
    kept = 0
    for edge, entry in zip(edges, found, strict=True):
        uids = dice.integers(0, 256, (len(edge) - 1, 16), dtype=np.uint8).view("V16").ravel()
        kept += int((draws(uids, 0) < pair_shares(edge, shares[entry])).sum())
    draw_s = time.process_time() - began
    line = {
        "what": "balancing by entries",
        "entries": len(entries),
        "captions": n,
        "matches": int(counts.sum()),
    }
    line |= {"kept": kept, "build_cpu_s": round(build_s, 1), "match_cpu_s": round(match_s, 1)}
    line |= {"draw_cpu_s": round(draw_s, 1), "match_cpu_s_per_million": round(match_s / n * 1e6, 1)}
    line |= {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    print(json.dumps(line | machine()))
    return 0


def check(some: list[str], entries: list[str], edges: np.ndarray, found: np.ndarray) -> None:
    """Captions from both ends, which are words and Chinese, against the slow definition."""
    patterns = [entry if ord(entry[0]) >= 0x4E00 else f" {entry} " for entry in entries]
    for row in [*range(SAMPLE // 2), *range(len(some) - SAMPLE // 2, len(some))]:
        text = spaced(some[row])
        slow = [number for number, pattern in enumerate(patterns) if pattern in text]
        assert found[edges[row] : edges[row + 1]].tolist() == slow, some[row]


if __name__ == "__main__":
    sys.exit(main())
