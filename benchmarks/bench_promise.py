"""How often the noise score breaks its promise: made scores of many shapes, against the known truth.

A draw breaks it where the share of mismatched pairs among those kept is above what was asked for, by however
little. Part of that no estimator can avoid: "known" is the same with the true shares of noise given.

"Good kept" is the mean share of the good pairs that are kept. --errors: the standard errors that the bound
carries for chance, two by default.

python benchmarks/bench_promise.py [--draws N] [--pairs 300 1000 3000 10000] [--errors 2]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from common import machine  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.filter.calibration import ASKED, MARGIN, q_values
from pairmill.filter.evidence import null_of
from pairmill.filter.histogram import Histogram, bin_of

NOISE = (0.0, 0.05, 0.15, 0.3, 0.6)
SPREAD = 0.35  # of how much the scorer knows, in natural logarithms, for each image and each caption
Dice = np.random.Generator

# standardised scores of good pairs; `known` is the product of the variances of image and caption
GOOD: dict[str, Callable[[Dice, np.ndarray], np.ndarray]] = {
    "weak": lambda dice, known: dice.normal(1.0, 1.0, len(known)),
    "strong": lambda dice, known: dice.normal(3.0, 1.0, len(known)),
    "narrow": lambda dice, known: dice.normal(1.2, 0.6, len(known)),
    "two kinds": lambda dice, known: dice.normal(np.where(dice.random(len(known)) < 0.4, 0.4, 3.0), 1.0),
    "heavy tails": lambda dice, known: 2.0 + _noise(dice, len(known), heavy=True),
    "by knowledge": lambda dice, known: dice.normal(1.6 * np.sqrt(known), 1.0),
    "noise where little is known": lambda dice, known: dice.normal(1.6 * np.sqrt(known), 1.0),
}


def _noise(dice: Dice, n: int, *, heavy: bool = False) -> np.ndarray:
    return dice.standard_t(5, n) / np.sqrt(5 / 3) if heavy else dice.normal(size=n)


def _evidence(scores: np.ndarray, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([np.sqrt(image * text) * scores, image + text], 1), image * text


def draw(shape: str, n: int, share: float, dice: Dice, errors: float) -> tuple[np.ndarray, list[float]]:
    """(2, asked) what the kept hold above what was asked, estimated and with known shares, -1 where none is
    kept; and the share of good pairs kept, with the estimated share."""
    image, text = np.exp(SPREAD * dice.normal(size=(2, n)))
    known, heavy = image * text, shape == "heavy tails"
    chance = np.full(n, share)
    if shape == "noise where little is known":
        chance = np.where(known < np.median(known), min(2 * share, 1.0), 0.0)
    bad = dice.random(n) < chance
    scores = np.where(bad, _noise(dice, n, heavy=heavy), GOOD[shape](dice, known))
    pairs, of_pair = _evidence(scores, image, text)
    turned = np.concatenate([dice.permutation(n) for _ in range(max(4, 100_000 // n))])
    images = np.resize(image, len(turned))
    null = null_of(pairs, *_evidence(_noise(dice, len(turned), heavy=heavy), images, text[turned]))
    tails, stratum = null.tails(pairs), np.searchsorted(null.edges, of_pair)
    true = np.bincount(stratum[bad], minlength=tails.shape[1])
    found, good = [], ~bad
    kept: list[float] = []
    p, counted = null.p(tails), Histogram()
    counted.add(p, tails.astype(np.float32), stratum)
    estimated = counted.q_by_bin(errors)[bin_of(p)]
    for q in (estimated, q_values(p, tails @ true, errors=errors)):
        kept = kept or [float((good & (q <= asked)).sum() / max(good.sum(), 1)) for asked in ASKED]
        found.append([bad[q <= asked].mean() - asked if (q <= asked).any() else -1 for asked in ASKED])
    return np.array(found), kept


def main() -> None:
    """Print one JSON line per number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--pairs", type=int, nargs="+", default=[300, 1_000, 3_000, 10_000])
    parser.add_argument("--errors", type=float, default=MARGIN)
    given = parser.parse_args()
    for n in given.pairs:
        begun, broken, kept = time.perf_counter(), {}, []
        for number, shape in enumerate(GOOD):
            for share in NOISE:
                seeds = ([n, number, round(share * 100), one] for one in range(given.draws))
                drawn = [draw(shape, n, share, np.random.default_rng(seed), given.errors) for seed in seeds]
                broken[shape, share] = (np.stack([above for above, _ in drawn]) > 0).mean(0)
                kept += [good for _, good in drawn]
        every = np.stack(list(broken.values()))
        worst = max(broken, key=lambda case: float(broken[case][0].max()))
        figures = {
            "what": "promise",
            "pairs": n,
            "errors": given.errors,
            "good_kept": dict(zip(map(str, ASKED), np.mean(kept, 0).round(3).tolist(), strict=True)),
            "draws": given.draws * len(broken),
            "broken": dict(zip(map(str, ASKED), every[:, 0].mean(0).round(4).tolist(), strict=True)),
            "known": dict(zip(map(str, ASKED), every[:, 1].mean(0).round(4).tolist(), strict=True)),
            "worst": [*worst, *broken[worst].max(1).round(4).tolist()],
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(json.dumps({**figures, **machine()}), flush=True)


if __name__ == "__main__":
    main()
