"""What the embeddings of one cell say about a pair, and about pairs that do not belong together."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .calibration import STRATA, likelihood_weights, p_values

FITTED = 65_536  # mismatched pairs that the weights are fitted to
TINY = 1e-12  # a variance below it is none: every caption scores the same


@dataclass
class Space:
    """What is known of the embeddings of one cell: how many, their sums and their products."""

    dim: int
    n: int = 0
    sums: np.ndarray = field(init=False)  # (2, D) float64: images, texts
    products: np.ndarray = field(init=False)  # (2, D, D) float64

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, self.dim))
        self.products = np.zeros((2, self.dim, self.dim))

    def add(self, image: np.ndarray, text: np.ndarray) -> None:
        """Take in the embeddings (N, D) of some pairs."""
        self.n += len(image)
        for side, vectors in enumerate((image.astype(np.float64), text.astype(np.float64))):
            self.sums[side] += vectors.sum(0)
            self.products[side] += vectors.T @ vectors

    def centred(self, image: np.ndarray, text: np.ndarray) -> tuple[Side, Side]:
        """Vectors whose dot products are the centred scores of all pairs of these images and texts.

        (I - mean I)(T - mean T) is the score less its image's and its caption's mean; an image's variance
        over all captions is (I - mean I)' cov(T) (I - mean I), and a caption's likewise. Scores are in units
        of their spread over all pairs.
        """
        means = self.sums / self.n
        spreads = self.products / self.n - means[:, :, None] * means[:, None, :]
        whole = float((spreads[0] * spreads[1]).sum())
        unit = 1 / whole if whole > TINY else 0.0
        sides = []
        for side, vectors in enumerate((image, text)):
            inner = vectors - means[side]
            variance = unit * np.maximum(((inner @ spreads[1 - side]) * inner).sum(1), 0)
            sides.append(Side((inner * unit**0.25).astype(np.float32), variance.astype(np.float32)))
        return sides[0], sides[1]


@dataclass(frozen=True)
class Side:
    """Centred images, or captions, of one cell: vectors (N, D), and the variances (N,) of their scores."""

    vectors: np.ndarray
    variance: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Side:
        return Side(self.vectors[rows], self.variance[rows])


def evidence_of(image: Side, text: Side) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) score and variances' sum of each pair, and (N,) how much the scorer knows about it."""
    scores = np.einsum("nd,nd->n", image.vectors, text.vectors)
    return np.stack([scores, image.variance + text.variance], 1), image.variance * text.variance


@dataclass(frozen=True)
class Null:
    """The sorted scores of a cell's mismatched pairs, by strata of how much the scorer knows about a pair."""

    weights: np.ndarray  # (2,)
    edges: np.ndarray  # (STRATA - 1,), of how much is known
    scores: list[np.ndarray]

    def tails(self, evidence: np.ndarray) -> np.ndarray:
        """(N, STRATA) p-values against each stratum."""
        scores = evidence @ self.weights
        return np.stack([p_values(scores, one) for one in self.scores], 1)

    def p(self, tails: np.ndarray) -> np.ndarray:
        """(N,) p-values against all strata together."""
        sizes = np.array([1 + len(one) for one in self.scores])
        return tails @ (sizes / sizes.sum())


def null_of(pairs: np.ndarray, mismatched: np.ndarray, known: np.ndarray) -> Null:
    """The null of a cell, from the evidence (N, 2) of its pairs and (M, 2) of mismatched ones.

    known: (M,) how much the scorer knows about each mismatched one; strata are quarters of these.
    """
    weights = likelihood_weights(pairs, mismatched[:: 1 + len(mismatched) // FITTED])
    edges = np.quantile(known, np.arange(1, STRATA) / STRATA) if len(known) else np.zeros(STRATA - 1)
    stratum, scores = np.searchsorted(edges, known), mismatched @ weights
    return Null(weights, edges, [np.sort(scores[stratum == one]) for one in range(STRATA)])
