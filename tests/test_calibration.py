"""The statistics of the noise score, against known truth and slow definitions."""

from __future__ import annotations

import numpy as np
import pytest

from pairmill.filter.calibration import (
    likelihood_weights,
    noise_by_stratum,
    outscored,
    p_values,
    q_values,
)


def noise_share(p: np.ndarray) -> float:
    """The share of noise in a single stratum."""
    return noise_by_stratum(p[:, None], np.zeros(len(p), int))[0] / len(p)


def test_p_values_count_ties_against_the_pair_and_never_reach_zero() -> None:
    null = np.array([1.0, 2.0, 2.0, 3.0])
    assert p_values(np.array([0.0, 2.0, 2.5, 3.0, 9.0]), null).tolist() == [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    assert p_values(np.array([5.0, -5.0]), np.empty(0)).tolist() == [1.0, 1.0]


def test_q_values_equal_their_slow_definition() -> None:
    p = np.random.default_rng(0).integers(1, 60, 80) / 100

    def bound(t: float) -> float:
        expected = 0.4 * t * 80 + 1
        return min(1, (expected + 2 * expected**0.5) / (p <= t).sum())

    slow = [min(bound(t) for t in p[p >= mine]) for mine in p]
    assert np.allclose(q_values(p, 0.4 * 80 * p), slow)


def test_nothing_but_noise_is_called_noise() -> None:
    shares = [noise_share(np.random.default_rng(seed).uniform(size=500)) for seed in range(40)]
    assert min(shares) > 0.8
    assert np.mean(shares) > 0.97
    p = np.random.default_rng(3).uniform(size=500)
    assert (q_values(p, noise_share(p) * p * 500) <= 0.1).mean() < 0.02


def test_no_noise_is_called_next_to_none() -> None:
    p = np.random.default_rng(0).uniform(0, 1e-4, 1_000)
    assert noise_share(p) < 0.005
    assert (q_values(p, noise_share(p) * p * 1_000) <= 0.01).all()


def test_few_pairs_are_not_judged() -> None:
    assert noise_share(np.full(59, 1e-6)) == 1.0
    assert q_values(np.empty(0), np.empty(0)).tolist() == []


@pytest.mark.parametrize("spread", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("shift", [0.9, 1.6, 3.0])
def test_the_share_of_noise_is_never_promised_too_low(shift: float, spread: float) -> None:
    """Good pairs with AUC 0.74 to 0.98, that vary less or more than mismatched ones; 30 % noise."""
    null = np.sort(np.random.default_rng(1).normal(size=200_000))
    shares = []
    for seed in range(20):
        dice = np.random.default_rng(seed)
        scores = np.r_[dice.normal(size=600), dice.normal(shift, spread, 1_400)]
        shares.append(noise_share(p_values(scores, null)))
    assert np.mean(shares) > 0.29
    assert min(shares) > 0.25
    if shift == 3.0:
        assert np.mean(shares) < 0.36


def test_what_pairs_outscore_is_a_floor_under_the_auc() -> None:
    dice = np.random.default_rng(0)
    null = np.sort(dice.normal(size=100_000))
    p = p_values(np.r_[dice.normal(size=3_000), dice.normal(1.5, 1, 7_000)], null)
    assert outscored(p) == pytest.approx(0.3 * 0.5 + 0.7 * 0.856, abs=0.01)  # Phi(1.5 / sqrt 2)
    assert outscored(np.empty(0)) == 0.5


def test_pairs_that_do_not_count_change_no_q_value_of_those_that_do() -> None:
    p = np.sort(np.random.default_rng(5).random(400) ** 2)
    counted = np.arange(400) % 3 > 0
    below = 0.4 * counted.sum() * p
    q = q_values(p, below, counted)
    assert np.array_equal(q[counted], q_values(p[counted], below[counted]))
    assert (np.diff(q) >= 0).all()


def test_the_weights_are_those_of_the_likelihood_ratio_of_normal_scores() -> None:
    """Good pairs score g (a + b) / 2 more than mismatched ones, at a variance of (a + b) / 2; g = 1.2."""
    dice = np.random.default_rng(2)
    known = dice.uniform(0.5, 3.0, 40_000)
    scores = np.sqrt(known / 2) * dice.normal(size=40_000)
    evidence = np.stack([scores, known], 1)
    good = np.arange(40_000) < 20_000
    evidence[good, 0] += 1.2 * known[good] / 2
    score, variances = likelihood_weights(evidence[good], evidence[~good])
    assert score == pytest.approx(1.2, rel=0.03)
    assert variances == pytest.approx(-(1.2**2) / 4, rel=0.1)


def test_a_score_that_speaks_against_pairs_is_taken_as_it_is() -> None:
    null = np.random.default_rng(0).normal(size=(500, 2))
    assert likelihood_weights(null - [1.0, 0.0], null).tolist() == [1.0, 0.0]
    assert likelihood_weights(null, np.empty((0, 2))).tolist() == [1.0, 0.0]


def test_each_stratum_has_its_own_share_of_noise() -> None:
    dice = np.random.default_rng(1)
    tails = np.where(dice.random((8_000, 1)) < 0.5, dice.random((8_000, 2)), 1e-4)
    stratum = np.repeat([0, 1], 4_000)
    tails[:4_000, 0] = dice.random(4_000)
    first, second = noise_by_stratum(tails, stratum)
    assert 3_600 < first <= 4_000
    assert 1_850 < second < 2_300
