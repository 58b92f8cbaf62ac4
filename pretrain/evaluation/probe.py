"""Linear probe: a logistic regression on the pictures' rows, by L-BFGS, its penalty chosen on held-back rows.

As CLIP (Radford et al. 2021, section 3.2 and appendix A.3) measures representations; their rows are those
before the projection, ours the ones that are compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .intervals import bootstrapped_mean_of_classes, wilson

PENALTIES = tuple(10.0**power for power in range(-7, 1))
ITERATIONS = 200
HELD_BACK = 5  # every fifth row of the training half


def linear_probe(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Accuracy on `test` of a classifier that learned on `train`, with 95 % intervals.

    train: (N, D) and test: (M, D) rows, or (., T, D) with NaN where no token is. Labels from 0.
    """
    rows, other = _plain(train), _plain(test)
    mean, spread = rows.mean(0), rows.std(0).clamp(min=1e-6)
    rows, other = (rows - mean) / spread, (other - mean) / spread
    target = torch.from_numpy(train_labels)
    classes = int(max(train_labels.max(), labels.max())) + 1
    back = torch.arange(len(rows)) % HELD_BACK == 0
    scored = []
    for penalty in PENALTIES:
        weights = fit(rows[~back], target[~back], classes, penalty)
        scored.append((float((predict(weights, rows[back]) == target[back]).double().mean()), penalty))
    best = max(scored)[1]  # of equal ones the stronger penalty
    hit = (predict(fit(rows, target, classes, best), other) == torch.from_numpy(labels)).numpy()
    present, sizes = np.unique(labels, return_counts=True)
    hits = np.array([int(hit[labels == label].sum()) for label in present])
    return {
        "trained_on": len(rows),
        "pictures": len(labels),
        "top1": round(float(hit.mean()), 6),
        "top1_interval": wilson(int(hit.sum()), len(hit)),
        "mean_per_class": round(float((hits / sizes).mean()), 6),
        "mean_per_class_interval": bootstrapped_mean_of_classes(hits, sizes),
        "penalty": str(best),
    }


def fit(rows: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """(D + 1, C) weights and biases: the least mean cross-entropy plus `penalty` times half their square."""
    weights = torch.zeros(rows.shape[1] + 1, classes, dtype=rows.dtype, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = cross_entropy(_scores(weights, rows), labels) + penalty / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach()


def predict(weights: Tensor, rows: Tensor) -> Tensor:
    """(N,) the likeliest class."""
    return _scores(weights, rows).argmax(1)


def _scores(weights: Tensor, rows: Tensor) -> Tensor:
    return rows @ weights[:-1] + weights[-1]


def _plain(rows: np.ndarray) -> Tensor:
    """(N, D) float64; of tokens their mean."""
    return torch.from_numpy(np.nanmean(rows, 1) if rows.ndim == 3 else rows).double()
