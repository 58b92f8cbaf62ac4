"""Counts in bins say what all pairs at once say: the same share of noise, nearly the same q-values."""

from __future__ import annotations

import numpy as np
import pytest

from pairmill.filter.calibration import STRATA, noise_by_stratum, outscored, q_values
from pairmill.filter.histogram import BINS, EDGES, NULLS, Histogram, bin_of


def made(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p (n,), tails (n, STRATA) and stratum (n,) of pairs of which a share `noise` is mismatched.

    Good pairs have small p-values, smaller ones in a stratum of which the scorer knows much.
    """
    rng = np.random.default_rng(seed)
    stratum = rng.integers(0, STRATA, n).astype(np.int8)
    power = np.where(rng.random(n) < noise, 1.0, 3.0 + 4 * stratum)
    base = rng.random(n) ** power
    tails = np.clip(base[:, None] * np.linspace(0.9, 1.1, STRATA), 1e-9, 1.0).astype(np.float32)
    return tails.mean(1).astype(np.float64), tails, stratum


@pytest.mark.parametrize(
    ("n", "noise"), [(50, 0.3), (3_000, 0.3), (300_000, 0.05), (300_000, 0.6), (20_000, 1.0)]
)
def test_a_histogram_says_what_all_pairs_at_once_say(n: int, noise: float) -> None:
    p, tails, stratum = made(n, noise, n)
    found = Histogram()
    for start in range(0, n, 70_000):
        part = slice(start, start + 70_000)
        more = Histogram()
        more.add(p[part], tails[part], stratum[part])
        found = found + more
    exact = noise_by_stratum(tails, stratum)
    assert found.n == n
    assert found.noise()[:STRATA] == pytest.approx(exact, rel=1e-12)
    assert not found.noise()[STRATA:].any()
    assert found.outscored() == pytest.approx(outscored(p))
    q = q_values(p, tails @ exact)
    above = found.q_by_bin()[bin_of(p)] - q
    assert above.min() > -1e-6
    assert above.max() < 0.002


def test_a_smaller_p_never_has_the_larger_q() -> None:
    found = Histogram()
    found.add(*made(5_000, 0.3, 1))
    assert np.all(np.diff(found.q_by_bin()) >= 0)


def test_as_many_are_said_to_be_kept_as_the_q_values_keep() -> None:
    p, tails, stratum = made(5_000, 0.3, 2)
    found = Histogram()
    found.add(p, tails, stratum)
    q = found.q_by_bin()
    own = q[bin_of(p)]
    said = {f"{asked:g}": int((own <= asked).sum()) for asked in (0.01, 0.02, 0.05, 0.1, 0.2)}
    assert found.kept_by_asked(q) == said
    assert 0 < said["0.1"] < said["0.2"]


def test_a_histogram_survives_its_bytes() -> None:
    found = Histogram()
    found.add(*made(500, 0.3, 3))
    assert Histogram.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()
    assert (found + Histogram()).to_bytes() == found.to_bytes()


def test_without_pairs_everything_is_noise() -> None:
    assert Histogram().q_by_bin().tolist() == [1.0] * BINS
    assert Histogram().noise().tolist() == [0.0] * NULLS
    assert Histogram().outscored() == 0.5


def test_every_p_value_has_a_bin_and_an_edge_belongs_to_the_bin_below_it() -> None:
    assert len(EDGES) == BINS + 1
    assert bin_of(np.array([0.0, 1e-9, EDGES[1], EDGES[2], np.nextafter(EDGES[2], 1), 1.0])).tolist() == [
        0,
        0,
        0,
        1,
        2,
        BINS - 1,
    ]
