"""What the embeddings of one cell say about a pair, and about pairs that do not belong together."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .calibration import STRATA, likelihood_weights, p_values

FITTED = 65_536  # mismatched pairs that the weights are fitted to
GRID = 2.0**20  # steps in one unit of an embedding
EXACT = 8_192  # vectors of length one: their products' sum is below 2**53 steps
AT_ONCE = 1_024  # vectors of a cell that are multiplied together, at least
TINY = 1e-12  # a variance below it is none: every caption scores the same


class Space:
    """How many embeddings of one cell there are, their sums and their products. Two of them add up with `+`.

    Embeddings are taken to a 2**-20th, far finer than the float16 unit rows they are stored as. Their
    products are then whole multiples of 2**-40, whose sums fit two float64 exactly: so the moments, and all
    that is reckoned from them, depend neither on blocks and sources nor on the order of adding.
    """

    def __init__(self, dim: int) -> None:
        self.dim, self.n = dim, 0
        self.sums = np.zeros((2, dim))  # images, texts; in units of 1 / GRID
        self.products = np.zeros((2, dim, dim))  # in units of 1 / GRID ** 2
        self.rest = np.zeros((2, dim, dim))  # what of the products' sum does not fit a float64
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, image: np.ndarray, text: np.ndarray) -> None:
        """Take in the embeddings (N, D) of some pairs."""
        self.n += len(image)
        self._waiting.append((image, text))
        if sum(len(some) for some, _ in self._waiting) >= AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Reckon those that wait for others: a product of few costs nearly what one of many does."""
        for side in (0, 1):
            for vectors in _chunks([pair[side] for pair in self._waiting]):
                whole = np.rint(vectors.astype(np.float64) * GRID)
                self.sums[side] += whole.sum(0)
                self._add_products(side, whole.T @ whole)
        self._waiting = []

    def _add_products(self, side: int, more: np.ndarray) -> None:
        """Knuth's two-sum: the sum, and exactly what it loses."""
        old = self.products[side]
        new = old + more
        taken = new - old
        self.rest[side] += (old - (new - taken)) + (more - taken)
        self.products[side] = new

    def __add__(self, other: Space) -> Space:
        both = Space(self.dim)
        for each in (self, other):
            each.settle()
            both.n += each.n
            both.sums += each.sums
            both.rest += each.rest
            for side in (0, 1):
                both._add_products(side, each.products[side])
        return both

    def frame(self) -> Frame:
        """Means and covariances."""
        self.settle()
        means = self.sums / GRID / max(self.n, 1)
        spreads = (self.products + self.rest) / GRID**2 / max(self.n, 1) - means[:, :, None] * means[
            :, None, :
        ]
        return Frame(means, spreads)

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`; of what is symmetric one half."""
        self.settle()
        upper = np.triu_indices(self.dim)
        parts = [np.array([self.dim, self.n]), self.sums, self.products[:, *upper]]
        parts += [self.rest[:, *upper]] if self.rest.any() else []
        return b"".join(part.astype(np.float64).tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Space:
        """What `to_bytes` gave."""
        values = np.frombuffer(data, np.float64)
        space = cls(int(values[0]))
        space.n, dim, upper = int(values[1]), space.dim, np.triu_indices(space.dim)
        space.sums[:] = values[2 : 2 + 2 * dim].reshape(2, dim)
        halves = values[2 + 2 * dim :].reshape(-1, 2, len(upper[0]))
        for half, matrices in zip(halves, (space.products, space.rest), strict=False):
            matrices[:, *upper] = half
            matrices[:, *upper[::-1]] = half
        return space


def _chunks(waiting: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Vectors of length one, so many that the sum of their products is exact."""
    rows = np.concatenate(waiting) if waiting else np.empty((0, 0))
    for start in range(0, len(rows), EXACT):
        yield rows[start : start + EXACT]


@dataclass(frozen=True)
class Frame:
    """Means and covariances of the embeddings of one cell: images, texts."""

    means: np.ndarray  # (2, D)
    spreads: np.ndarray  # (2, D, D)

    def centred(self, image: np.ndarray, text: np.ndarray) -> tuple[Side, Side]:
        """Vectors whose dot products are the centred scores of all pairs of these images and texts.

        (I - mean I)(T - mean T) is the score less its image's and its caption's mean; an image's variance
        over all captions is (I - mean I)' cov(T) (I - mean I), and a caption's likewise. Scores are in units
        of their spread over all pairs.
        """
        whole = float((self.spreads[0] * self.spreads[1]).sum())
        unit = 1 / whole if whole > TINY else 0.0
        sides = []
        for side, vectors in enumerate((image, text)):
            inner = vectors - self.means[side]
            variance = unit * np.maximum(((inner @ self.spreads[1 - side]) * inner).sum(1), 0)
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

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`."""
        file = io.BytesIO()
        held: dict[str, Any] = {"weights": self.weights, "edges": self.edges}
        held |= {f"scores{at}": scores for at, scores in enumerate(self.scores)}
        np.savez(file, **held)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Null:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            strata = [held[f"scores{at}"] for at in range(len(held["edges"]) + 1)]
            return cls(held["weights"], held["edges"], strata)


def null_of(pairs: np.ndarray, mismatched: np.ndarray, known: np.ndarray) -> Null:
    """The null of a cell, from the evidence (N, 2) of its pairs and (M, 2) of mismatched ones.

    known: (M,) how much the scorer knows about each mismatched one; strata are quarters of these.
    """
    weights = likelihood_weights(pairs, mismatched[:: 1 + len(mismatched) // FITTED])
    edges = np.quantile(known, np.arange(1, STRATA) / STRATA) if len(known) else np.zeros(STRATA - 1)
    stratum, scores = np.searchsorted(edges, known), mismatched @ weights
    return Null(weights, edges, [np.sort(scores[stratum == one]) for one in range(STRATA)])
