"""The nulls of pairs that have witnesses: three ways in which a pair can be wrong beside what others say.

    caption   a stranger's caption among the picture's other captions
    picture   a stranger's picture, with all captions as they are
    source    all captions of one language and host at a stranger's picture, among the others' of that one

Plain consensus knows the first alone, and keeps wrong pictures whose captions agree. How many pairs are wrong
in each way is estimated by a null of its own: pair by pair, picture by picture, source by source.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..recipe import Noise
from .calibration import STRATA, p_values
from .ratio import Ratio, fit_ratio, soft_least
from .testimony import (
    FEATURES,
    LEAST,
    SPREADS,
    Frames,
    against_picture,
    against_source,
    features_of,
    joined,
    spreads_of,
)

SHARES = (0.3, 0.05, 0.03)  # of the three nulls, in the score; they only order pairs
FEWEST = 50  # sampled pairs that a null of sources is made from
CAPTIONS, OTHERS_PART = 4, 16  # a quarter of `negatives` strangers for captions, a sixteenth for the others
OTHERS = FEATURES.index("others")
IMAGE, TEXT = [SPREADS.index("image")], [SPREADS.index("text"), SPREADS.index("text_among")]


@dataclass(frozen=True)
class Known:
    """A cell's frame, and how widely each sampled pair's sides score in it."""

    frames: Frames
    cell: int
    units: tuple[float, float]
    spreads: np.ndarray  # (M, SPREADS)


@dataclass(frozen=True)
class Sample:
    """M sampled pairs of a cell that have witnesses: centred vectors (M, D), and who is who."""

    image: np.ndarray
    text: np.ndarray
    own: np.ndarray
    rest: np.ndarray
    shown: np.ndarray  # the mean picture of the group
    counts: np.ndarray  # (M, 3): captions of `own`, of `rest`; whether the caption counts in its source
    picture: np.ndarray  # (M,) equal for one picture
    caption: np.ndarray  # (M,)

    def of_captions(self, known: Known, step: int) -> np.ndarray:
        """Features of pictures among their captions with the captions `step` places further on."""
        mine, other = self._strangers(step)
        spreads = known.spreads[mine]
        spreads[:, TEXT] = known.spreads[other][:, TEXT]
        return joined(self.image[mine], self.text[other], self.witness[mine], spreads, known.units)

    def of_pictures(self, known: Known, step: int) -> np.ndarray:
        """Features of captions among their fellows at the pictures `step` places further on."""
        mine, other = self._strangers(step)
        spreads = known.spreads[mine]
        spreads[:, IMAGE] = known.spreads[other][:, IMAGE]
        return joined(self.image[other], self.text[mine], self.witness[mine], spreads, known.units)

    def of_sources(self, known: Known, step: int) -> np.ndarray:
        """Features of captions with their own source, at a stranger's picture among its other sources."""
        mine, other = self._strangers(step)
        n = self.counts[mine, 0] + self.counts[other, 1]
        witness = (self.own[mine] + self.rest[other]) / (n + 1)[:, None]
        return features_of(self.image[other], self.text[mine], witness, known.frames, known.cell)

    def pictures(self, known: Known, step: int) -> np.ndarray:
        """Strangers' pictures against all captions of one."""
        mine, other = self._strangers(step)
        whole = (self.own + self.rest + self.text)[mine]
        return against_picture(self.shown[other], whole, known.frames, known.cell)

    def sources(self, known: Known, step: int) -> np.ndarray:
        """Sources against a stranger's picture and its other sources."""
        mine, other = self._strangers(step)
        once = self.counts[:, 2:] > 0
        part = self.own + np.where(once, self.text, 0)
        rest = self.rest + np.where(once, 0, self.text)
        n_rest = self.counts[:, 1] + ~once[:, 0]
        return against_source(
            self.shown[other], part[mine], rest[other], n_rest[other], known.frames, known.cell
        )

    def known(self, frames: Frames, cell: int) -> Known:
        """What is reckoned once for all steps."""
        spreads = spreads_of(self.image, self.text, self.witness, frames, cell)
        return Known(frames, cell, frames.units(cell), spreads)

    @property
    def witness(self) -> np.ndarray:
        """(M, D) what the other captions say."""
        return (self.own + self.rest) / (self.counts[:, 0] + self.counts[:, 1] + 1)[:, None]

    def take(self, rows: np.ndarray) -> Sample:
        """Some of them."""
        return Sample(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @property
    def in_sources(self) -> np.ndarray:
        """(M,) which have a fellow in their source, and other sources beside it."""
        inside = self.counts[:, 0] + self.counts[:, 2] > 1
        return inside & (self.counts[:, 1] + (self.counts[:, 2] == 0) > 0)

    def _strangers(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Places, and the places `step` further round the ring, of other pictures and captions."""
        other = np.roll(np.arange(len(self.text)), -step)
        mine = np.flatnonzero((self.picture != self.picture[other]) & (self.caption != self.caption[other]))
        return mine, other[mine]


@dataclass(frozen=True)
class Witnesses:
    """What scores the pairs of a cell that have witnesses: ratios over the nulls, and their sorted scores."""

    ratios: tuple[Ratio, ...]  # over captions, pictures and, where there are any, sources
    edges: np.ndarray  # (STRATA - 1,) of how well picture and witnesses agree
    captions: list[np.ndarray]  # sorted scores, by stratum
    strangers: list[np.ndarray]  # sorted scores of wrong pictures, of sources gone astray
    pictures: np.ndarray  # sorted, of whole pictures
    sources: np.ndarray  # sorted, of whole sources

    def score(self, features: np.ndarray) -> np.ndarray:
        """(N,) of (N, FEATURES): the higher, the better."""
        return soft_least([ratio(features) for ratio in self.ratios], SHARES)

    def stratum(self, features: np.ndarray) -> np.ndarray:
        """(N,) in [0, STRATA)."""
        return np.searchsorted(self.edges, features[:, OTHERS])

    def tails(self, features: np.ndarray) -> np.ndarray:
        """(N, STRATA + 2) p-values against each stratum of captions, wrong pictures, sources gone astray."""
        scores = self.score(features)
        return np.stack([p_values(scores, one) for one in (*self.captions, *self.strangers)], 1)

    def p(self, tails: np.ndarray) -> np.ndarray:
        """(N,) p-values against all strata of captions together."""
        sizes = np.array([1 + len(one) for one in self.captions])
        return tails[:, :STRATA] @ (sizes / sizes.sum())

    def to_bytes(self) -> bytes:
        """All of it, for `from_bytes`."""
        held: dict[str, Any] = {"edges": self.edges, "pictures": self.pictures, "sources": self.sources}
        held |= {f"captions{at}": scores for at, scores in enumerate(self.captions)}
        held |= {f"strangers{at}": scores for at, scores in enumerate(self.strangers)}
        for at, ratio in enumerate(self.ratios):
            held[f"ratio{at}"] = np.stack([ratio.slopes, ratio.means, ratio.spreads])
            held[f"first{at}"] = ratio.first
        file = io.BytesIO()
        np.savez(file, **held)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Witnesses:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            n = sum(name.startswith("ratio") for name in held.files)
            ratios = tuple(Ratio(float(held[f"first{at}"]), *held[f"ratio{at}"]) for at in range(n))
            captions = [held[f"captions{at}"] for at in range(STRATA)]
            strangers = [held[f"strangers{at}"] for at in range(2)]
            return cls(ratios, held["edges"], captions, strangers, held["pictures"], held["sources"])


Ask = Callable[[Known, int], np.ndarray]


def witness_null(sample: Sample, frames: Frames, cell: int, settings: Noise) -> Witnesses | None:
    """The nulls of a cell; None where its sample has fewer than two pairs with witnesses."""
    sample = sample.take(np.flatnonzero(sample.counts[:, 0] + sample.counts[:, 1] >= LEAST))
    n = len(sample.text)
    if n < 2:
        return None
    dice = np.random.default_rng([settings.seed, cell, 1])
    steps = np.sort(1 + dice.permutation(n - 1)[: -(-settings.negatives // CAPTIONS)])
    some = steps[:: OTHERS_PART // CAPTIONS]
    known = sample.known(frames, cell)
    own = joined(sample.image, sample.text, sample.witness, known.spreads, known.units)
    nulls = [_every(sample.of_captions, known, steps), _every(sample.of_pictures, known, some)]
    pictures, sources = _every(sample.pictures, known, some), np.empty(0)
    beside = sample.take(np.flatnonzero(sample.in_sources))
    if len(beside.text) >= FEWEST:
        some = np.sort(1 + dice.permutation(len(beside.text) - 1)[: len(some)])
        known = beside.known(frames, cell)
        nulls.append(_every(beside.of_sources, known, some))
        sources = _every(beside.sources, known, some)
    return _fitted(own, nulls, pictures, sources)


def _every(ask: Ask, known: Known, steps: np.ndarray) -> np.ndarray:
    return np.concatenate([ask(known, int(step)) for step in steps])


def _fitted(own: np.ndarray, nulls: list[np.ndarray], pictures: np.ndarray, sources: np.ndarray) -> Witnesses:
    ratios = tuple(fit_ratio(own, null) for null in nulls)
    scores = [soft_least([ratio(null) for ratio in ratios], SHARES) for null in nulls]
    agreed = nulls[0][:, OTHERS]
    edges = np.quantile(agreed, np.arange(1, STRATA) / STRATA) if len(agreed) else np.zeros(STRATA - 1)
    stratum = np.searchsorted(edges, agreed)
    captions = [np.sort(scores[0][stratum == one]) for one in range(STRATA)]
    strangers = [np.sort(scores[1]), np.sort(scores[-1])]  # without sources, as wrong pictures
    return Witnesses(ratios, edges, captions, strangers, np.sort(pictures), np.sort(sources))
