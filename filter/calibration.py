"""The statistics of the noise score: likelihood weights, the share of noise, q-values. Pure numpy.

A mismatched pair is a draw from all images and captions alike, so the scores of pairs that do not belong
together are its distribution (the null) and its p-value is uniform. Good pairs have small p-values, mostly.

What best tells good pairs from mismatched ones is the ratio of their likelihoods. Were embeddings normal, its
logarithm would be g s - g^2 (a + b) / 4, where s is the centred score and a, b are the variances of its
image's scores over all captions and of its caption's over all images: a pair about which the scorer knows
much and which it finds dissimilar is surely mismatched, one about which it knows little may be anything.

The share of noise is Storey's: of p-values above a threshold t, noise alone would put a share 1 - t. Good
pairs that a weak scorer cannot tell add to it, fewer the higher t is; so t is where the estimate plus its
margin is smallest. It assumes nothing about good pairs: mixtures that model them are sharper and say 0.02 for
0.30 where good pairs vary less than mismatched ones. It is reckoned in strata of how much the scorer knows,
and p-values for it within each, since noise may be commoner where captions are poor: in one stratum such
pairs hide in the middle of the null, and where 20 % of noise was asked for 27 % was kept.
"""

from __future__ import annotations

import math

import numpy as np

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
STRATA = 4  # of a null, equal in size
MARGIN = 2.0  # standard errors: the smallest of several estimates is too small by about one
FEWEST = 30  # pairs above a threshold, were all noise; with none there, a lucky gap decides
FEWEST_UNITS = 150  # likewise pictures or sources, of which nearly all are good: one step decides much
ASKED = (0.01, 0.02, 0.05, 0.1, 0.2)


def likelihood_weights(pairs: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(2,) weights of (score, variances' sum) in the logarithm of the likelihood ratio, up to a factor.

    A logistic regression of pairs (N, 2) against null (M, 2), both sides weighing as much. The score alone
    where there is nothing to learn from, or a higher score speaks against a pair.
    """
    rows = np.concatenate([pairs, null])
    rows = np.column_stack([np.ones(len(rows)), rows])
    listed = np.arange(len(rows)) < len(pairs)
    weight = np.where(listed, 1.0, len(pairs) / max(len(null), 1))
    found = np.zeros(3)
    for _ in range(15):
        chance = 1 / (1 + np.exp(-np.clip(rows @ found, -30, 30)))
        bend = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + np.eye(3)
        found += np.linalg.solve(bend, rows.T @ (weight * (listed - chance)) - found)
    return found[1:] if found[1] > 0 else np.array([1.0, 0.0])


def p_values(scores: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(N,) in (0, 1]: the chance of a score at least this high for a mismatched pair; ties count against.

    null: sorted, ascending; where it is empty every p is 1.
    """
    above = len(null) - np.searchsorted(null, scores, side="left")
    return (1 + above) / (1 + len(null))


def _least_share(above: np.ndarray, n: int, fewest: int = FEWEST) -> tuple[float, float]:
    """The share of noise among `n` p-values and its standard error: of several, the least upper bound.

    above: (THRESHOLDS,) how many of them lie above each threshold. All, without error, for fewer than 60.
    """
    found = (1.0, 0.0)
    for threshold, count in zip(THRESHOLDS, above.tolist(), strict=True):
        expected = n * (1 - threshold)
        if expected >= fewest:
            found = min(found, (count / expected, math.sqrt(count + 1) / expected), key=_upper)
    return found


def _upper(estimate: tuple[float, float]) -> float:
    return estimate[0] + MARGIN * estimate[1]


def allowed(asked: float, kept: int) -> float:
    """The share of noise that `kept` pairs bear before a promise of `asked` is called broken.

    How many mismatched pairs are among them is a draw: three standard errors more than was asked come by
    chance in 1.3 of 1,000 such draws, were the bound no more than exact. Tests, benchmarks and the README
    mean this by a promise.
    """
    return asked + 3 * math.sqrt(asked * (1 - asked) / max(kept, 1))


def noise_by_stratum(tails: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """(S,) estimated numbers of mismatched pairs. tails: (N, S) p-values against the null of each stratum.

    stratum: (N,) each pair's own.
    """
    own = [tails[stratum == one, one] for one in range(tails.shape[1])]
    above = np.array([[(p > threshold).sum() for threshold in THRESHOLDS] for p in own])
    return noise_from_counts(above, np.array([len(p) for p in own]))


def noise_from_counts(above: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(S,) estimated numbers of mismatched pairs in strata of `sizes` (S,) pairs.

    above: (S, THRESHOLDS) pairs of each whose p-value lies above each threshold.
    A stratum of fewer than 60 pairs is taken for noise. Of the margin of two standard errors one makes good
    for taking the least of several estimates, in every stratum; the other is for chance, which the strata
    share: their sum errs by less than their errors' sum.
    """
    found = [_least_share(row, int(n)) for row, n in zip(above, sizes, strict=True)]
    shares, errors = (sizes * np.array(column) for column in zip(*found, strict=True))
    return with_margin(shares, errors, sizes)


def with_margin(shares: np.ndarray, errors: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Estimated numbers of mismatched pairs with their margin, at most `sizes`. errors: standard errors."""
    part = np.sqrt((errors**2).sum()) / errors.sum() if errors.any() else 1.0
    return np.minimum(shares + (1 + part) * MARGIN / 2 * errors, sizes)


def noise_with_units(above: np.ndarray, sizes: np.ndarray, concerned: np.ndarray) -> np.ndarray:
    """(S + U,) as `noise_from_counts`, with U kinds of units that are wrong as a whole behind the S strata.

    above: (S + U, THRESHOLDS), sizes: (S + U,) of pairs and of units; concerned: (U,) pairs that the units
    have. All of them where the units are too few to tell.
    """
    units = len(concerned)
    found = [_least_share(row, int(n)) for row, n in zip(above[:-units], sizes[:-units], strict=True)]
    for row, n in zip(above[-units:], sizes[-units:], strict=True):
        fewest = FEWEST_UNITS if n * (1 - THRESHOLDS[0]) >= FEWEST_UNITS else FEWEST
        found.append(_least_share(row, int(n), fewest))
    pairs = np.concatenate([sizes[:-units], concerned])
    shares, errors = (pairs * np.array(column) for column in zip(*found, strict=True))
    return with_margin(shares, errors, pairs)


def q_values(
    p: np.ndarray, below: np.ndarray, counted: np.ndarray | None = None, *, errors: float = MARGIN
) -> np.ndarray:
    """(N,) in (0, 1]: a bound on the share of noise among all pairs with this p-value or a smaller one.

    Made monotone: a smaller p-value never has the larger q-value; equal p-values have equal q-values. How
    many mismatched pairs there are is a draw: those expected, one, and `errors` standard errors are counted,
    so that the bound holds for the list at hand, and nothing is promised for a handful of pairs: a q-value of
    0.05 needs at least 60.

    below: (N,) how many mismatched pairs are expected at each p or below. counted: (N,) bool, the pairs whose
    noise is a share of, all where None; any other gets the q-value that it would have as one of them.
    """
    among = np.arange(len(p)) if counted is None else np.flatnonzero(counted)
    among = among[np.argsort(p[among], kind="stable")]
    ranked = p[among]
    as_good = np.searchsorted(ranked, ranked, side="right")  # pairs with this p or a smaller one
    expected = below[among] + 1
    raw = np.minimum((expected + errors * np.sqrt(expected)) / as_good, 1.0)
    q = np.append(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q[np.searchsorted(ranked, p, side="left")]


def outscored(p: np.ndarray) -> float:
    """How many mismatched pairs the average pair outscores, noise included: 0.5 for all noise or no skill.

    A floor under the scorer's AUC. The AUC itself would need the true share of noise: with the upper
    estimate above, it came out as 0.83 for a true 0.67 on photos.
    """
    return float(1 - p.mean()) if len(p) else 0.5
