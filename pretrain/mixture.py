"""Which losses are those of mismatched pairs: a mixture of two normals, and whether there are two at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TWO = 1.8  # Ashman's D below which losses are one heap: clean made data gave 1.6, 10 % of swaps 1.8
ROUNDS, ENOUGH, LEAST = 100, 1e-6, 5e-4  # of EM; change of the likelihood at which it ends; least variance


@dataclass(frozen=True)
class Mixture:
    """Two normals on losses scaled to [0, 1], the one with the lower mean first."""

    mean: np.ndarray  # (2,)
    variance: np.ndarray  # (2,)
    weight: np.ndarray  # (2,)

    @property
    def distance(self) -> float:
        """Ashman's D: how far the two lie apart, in their spreads."""
        return float(abs(self.mean[1] - self.mean[0]) / np.sqrt(self.variance.mean()))

    def high(self, values: np.ndarray) -> np.ndarray:
        """(N,) the probability of having come from the second one, never falling where values rise."""
        share = _densities(values, self)
        found = share[1] / share.sum(0)
        order = np.argsort(values, kind="stable")
        rising = np.maximum.accumulate(np.where(values[order] < self.mean[0], 0.0, found[order]))
        risen = np.empty_like(rising)
        risen[order] = rising
        return risen


def fit(values: np.ndarray) -> Mixture:
    """By expectation and maximisation, from the lower and the upper half. values: (N,) in [0, 1]."""
    low, high = np.quantile(values, [0.25, 0.75])
    spread = max(float(values.var()) / 2, LEAST)
    found = Mixture(np.array([low, high]), np.array([spread, spread]), np.array([0.5, 0.5]))
    before = -np.inf
    for _ in range(ROUNDS):
        dense = _densities(values, found)
        total = dense.sum(0)
        likelihood = float(np.log(total).mean())
        if likelihood - before < ENOUGH:
            break
        before = likelihood
        share = dense / total
        mass = share.sum(1)
        mean = share @ values / mass
        variance = np.maximum((share * (values - mean[:, None]) ** 2).sum(1) / mass, LEAST)
        found = Mixture(mean, variance, mass / len(values))
    order = np.argsort(found.mean)
    return Mixture(found.mean[order], found.variance[order], found.weight[order])


def _densities(values: np.ndarray, of: Mixture) -> np.ndarray:
    off = (values - of.mean[:, None]) ** 2 / of.variance[:, None]
    return of.weight[:, None] * np.exp(-off / 2) / np.sqrt(of.variance[:, None]) + 1e-300


@dataclass(frozen=True)
class NoiseOfLosses:
    """How likely each pair is mismatched, from what it lost (NLIP; the mixture is NCR's, 2021).

    two: Ashman's D from which on the losses are believed to be of two kinds; below it every pair is clean.
    """

    two: float = TWO

    def __call__(self, losses: np.ndarray) -> np.ndarray:
        """(N,) in [0, 1], never lower where the loss is higher."""
        span = float(np.ptp(losses))
        if len(losses) < 10 or span == 0:
            return np.zeros(len(losses))
        scaled = (losses - losses.min()) / span
        found = fit(scaled)
        return found.high(scaled) if found.distance >= self.two else np.zeros(len(losses))
