"""How much likelier a pair's evidence is where it belongs together than under a null, learned without labels.

The pairs of a crawl are a mixture: a share of them is mismatched and looks like the null. So the ratio of
good pairs to the null is fitted by expectation and maximisation: a pair counts as good by the ratio so far.
Its errors cost power and never the promise, which p-values against the nulls themselves keep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SUPPOSED = 0.3  # share of mismatched pairs that the mixture is fitted with; it only orders pairs
ROUNDS, STEPS = 6, 4  # of expectation, and of Newton's method in each
FITTED = 8_192  # mismatched pairs that a ratio is fitted to
FAR = 25.0  # a logarithm of a ratio beyond it tells no more


@dataclass(frozen=True)
class Ratio:
    """The logarithm of a likelihood ratio, linear in standardised features."""

    first: float
    slopes: np.ndarray  # (F,)
    means: np.ndarray  # (F,)
    spreads: np.ndarray  # (F,)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N,) of features (N, F); term by term, so that a row's value does not depend on other rows."""
        found = np.full(len(features), self.first)
        for column in range(features.shape[1]):
            found += (features[:, column] - self.means[column]) / self.spreads[column] * self.slopes[column]
        return np.clip(found, -FAR, FAR)


def fit_ratio(pairs: np.ndarray, null: np.ndarray) -> Ratio:
    """Fit to pairs (N, F), of which a share SUPPOSED is mismatched, and to mismatched ones (M, F)."""
    null = null[:: 1 + len(null) // FITTED]
    rows = np.concatenate([pairs, null])
    means, spreads = rows.mean(0), rows.std(0)
    spreads = np.where(spreads > 1e-9, spreads, 1.0)
    design = np.column_stack([np.ones(len(rows)), (rows - means) / spreads])
    n, found = len(pairs), np.zeros(design.shape[1])
    listed = np.arange(len(rows)) < n
    good = np.full(n, 1 - SUPPOSED)
    for _ in range(ROUNDS):
        weight = np.where(listed, 1.0, n / max(len(null), 1))
        weight[:n] = good * n / max(good.sum(), 1e-9)
        for _ in range(STEPS):
            chance = 1 / (1 + np.exp(-np.clip(design @ found, -30, 30)))
            bend = (design * (weight * chance * (1 - chance))[:, None]).T @ design + np.eye(len(found))
            found = found + np.linalg.solve(bend, design.T @ (weight * (listed - chance)) - found)
        likelier = (1 - SUPPOSED) * np.exp(np.clip(design[:n] @ found, -30, 30))
        good = likelier / (likelier + SUPPOSED)
    return Ratio(float(found[0]), found[1:], means, spreads)


def soft_least(ratios: list[np.ndarray], shares: tuple[float, ...]) -> np.ndarray:
    """(N,) the logarithm of good pairs' likelihood over the nulls' together, each weighed by its share.

    ratios: for each null (N,) logarithms of good over that null. The least of them nearly: a pair is as good
    as its worst enemy lets it be.
    """
    total = np.zeros_like(ratios[0])
    for ratio, share in zip(ratios, shares, strict=False):
        total += share * np.exp(-ratio)
    return -np.log(total)
