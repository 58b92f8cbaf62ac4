"""What the other captions of a picture say about a pair: its witnesses.

A picture's captions, those of its near-copies too, are read by one model (they share a fold), whatever
their language. Each is centred by its cell's mean; their sum, less the pair's own, is held against the pair's
caption (do they agree?) and against its picture (do they fit it?). A caption that is said twice at one
picture testifies once, and never for itself. Captions of one language from one host are one source: they may
all have gone astray together, so what other sources say is kept apart from what the pair's own says.

Sums are exact (embeddings in steps of a 2**-20th), products are made in full tiles and row by row, and what
is left of a pair is float32: so it depends on the picture's captions alone, not on what is read with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .evidence import GRID, TINY, Frame

CHUNK = 16_384  # pairs in memory at once; of a picture with more captions as many testify for each other
TILE = 64  # rows of a matrix product: full tiles give a row the same bits whatever its neighbours are
LEAST = 2  # fewer witnesses than these are not asked
SPREADS = ("image", "text", "text_among", "witness_among", "witness")  # see `spreads_of`
FEATURES = ("pair", "agree", "others", *SPREADS)
RECORD = np.dtype(
    [
        ("features", "<f4", (len(FEATURES),)),
        ("n", "<i4"),  # witnesses: other captions of the picture
        ("picture", "<f4"),  # the picture against all its captions, standardised
        ("source", "<f4"),  # all captions of the pair's source against picture and other sources
        ("flags", "u1"),
    ]
)
PICTURE, SOURCE, IN_SOURCE = 1, 2, 4  # flags: stands for its picture, for its source, is in such a source


@dataclass(frozen=True)
class Frames:
    """Means of all cells, (C, 2, D), and the frames of those that are in memory."""

    means: np.ndarray
    of_cell: dict[int, Frame]

    def units(self, cell: int) -> tuple[float, float]:
        """One over the spread of scores between picture and caption, and between captions."""
        image, text = self.of_cell[cell].spreads
        return _inverse((image * text).sum()), _inverse((text * text).sum())


def _inverse(variance: float) -> float:
    return float(1 / np.sqrt(variance)) if variance > TINY else 0.0


@dataclass(frozen=True)
class Asked:
    """N pairs that can be scored, with their places: arrays of one length."""

    group: np.ndarray  # V16: the picture, or its group of near-copies
    uid: np.ndarray  # V16
    caption: np.ndarray  # uint64, equal for equal captions
    host: np.ndarray  # uint64
    cell: np.ndarray  # int32
    counted: np.ndarray  # bool
    drawn: np.ndarray  # bool: is in the sample of its cell

    def take(self, rows: np.ndarray) -> Asked:
        """Some of them."""
        return Asked(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Sworn:
    """The vectors of those that are drawn, for `strangers.py`: float32 (M, D)."""

    rows: np.ndarray  # (M,) int64
    own: np.ndarray  # sum of the other captions of the pair's source, centred
    rest: np.ndarray  # of the other sources'
    picture: np.ndarray  # the mean picture of the group, centred
    counts: np.ndarray  # (M, 3) int32: captions of `own`, of `rest`; whether the pair counts in its source


def no_sworn(frames: Frames) -> Sworn:
    """What is sworn of nobody."""
    none = np.empty((0, frames.means.shape[2]), np.float32)
    return Sworn(np.empty(0, np.int64), none, none, none, np.empty((0, 3), np.int32))


Vectors = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def hear_witnesses(
    asked: Asked, vectors: Vectors, frames: Frames, batch: range
) -> Iterator[tuple[np.ndarray, np.ndarray, Sworn]]:
    """Chunk by chunk: rows (M,) whose cells lie in `batch`, their RECORDs, and what is sworn of the drawn.

    vectors: gives the image and text embeddings, float32 (M, D), of some rows.
    """
    order, edges = _chunks(asked)
    wanted = (asked.cell >= batch.start) & (asked.cell < batch.stop)
    for start, stop in pairwise(edges):
        rows = order[start:stop]
        if wanted[rows].any():
            mine = wanted[rows]
            records, sworn = _hear(asked.take(rows), *vectors(rows), frames, mine)
            yield rows[mine], records[mine], replace(sworn, rows=rows[sworn.rows])


def _chunks(asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of groups and uids, and where chunks of about CHUNK rows end, at groups' borders."""
    keys = [_halves(asked.uid)[1], _halves(asked.uid)[0], _halves(asked.group)[1], _halves(asked.group)[0]]
    order = np.lexsort(keys)
    first, second = keys[3][order], keys[2][order]
    new = np.flatnonzero(np.r_[True, (first[1:] != first[:-1]) | (second[1:] != second[:-1])])
    ends = np.r_[new[1:], len(order)]
    cuts = [0]
    for begin, end in zip(new.tolist(), ends.tolist(), strict=True):
        if end - cuts[-1] > CHUNK and begin > cuts[-1]:
            cuts.append(begin)
        cuts += range(begin + CHUNK, end, CHUNK) if end - begin > CHUNK else ()
    return order, np.array([*cuts, len(order)] if len(order) else [0])


def _halves(keys: np.ndarray) -> np.ndarray:
    """(2, N) of V16."""
    return np.frombuffer(np.ascontiguousarray(keys).tobytes(), ">u8").reshape(-1, 2).T


def _numbered(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) numbers of equal rows, in their order, and where each number is first seen."""
    _, first, number = np.unique(np.column_stack(keys), axis=0, return_index=True, return_inverse=True)
    return number.reshape(-1), first


@dataclass(frozen=True)
class _Heard:
    """Sums of a chunk: of sources by number, and of pictures."""

    group: np.ndarray  # (N,) number of the picture
    source: np.ndarray  # (N,) number of the source
    of_source: np.ndarray  # (S, D) sums of centred captions
    n_source: np.ndarray  # (S,)
    of_group: np.ndarray  # (G, D)
    n_group: np.ndarray
    picture: np.ndarray  # (G, D) mean centred picture
    same: np.ndarray  # (N,) whether the pair's caption counts in its own source


def _sums(asked: Asked, image: np.ndarray, text: np.ndarray, means: np.ndarray) -> _Heard:
    """image, text: (N, D) whole numbers of 1 / GRID."""
    group, _ = _numbered(*_halves(asked.group))
    source, at = _numbered(group.astype(np.uint64), asked.cell.astype(np.uint64), asked.host)
    said, first = _numbered(group.astype(np.uint64), asked.caption)
    same = source[first[said]] == source
    of_source = _added(source[first], text[first], len(at)) / GRID
    n_source = np.bincount(source[first], minlength=len(at))
    of_source -= n_source[:, None] * means[asked.cell[at], 1]
    groups = int(group[-1]) + 1 if len(group) else 0
    of_group = _added(group[at], of_source, groups)
    n_group = np.bincount(group[at], n_source, groups).astype(np.int64)
    rows, rows_of = np.bincount(group, minlength=groups), np.bincount(source, minlength=len(at))
    centres = _added(group[at], rows_of[:, None] * means[asked.cell[at], 0], groups)
    picture = (_added(group, image, groups) / GRID - centres) / rows[:, None]
    return _Heard(group, source, of_source, n_source, of_group, n_group, picture, same)


def _added(number: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """(n, D) sums of rows of equal numbers, in their order."""
    order = np.argsort(number, kind="stable")
    found, begin = np.zeros((n, rows.shape[1])), np.searchsorted(number[order], np.arange(n))
    there = np.bincount(number, minlength=n) > 0
    if len(rows):
        found[there] = np.add.reduceat(rows[order], begin[there], axis=0)
    return found


def _hear(
    asked: Asked, image: np.ndarray, text: np.ndarray, frames: Frames, wanted: np.ndarray
) -> tuple[np.ndarray, Sworn]:
    image, text = (np.rint(side.astype(np.float64) * GRID) for side in (image, text))
    heard = _sums(asked, image, text, frames.means)
    image, text = (side / GRID - frames.means[asked.cell, at] for at, side in enumerate((image, text)))
    once = heard.same[:, None]
    own = heard.of_source[heard.source] - np.where(once, text, 0)
    rest = heard.of_group[heard.group] - heard.of_source[heard.source] - np.where(once, 0, text)
    n_own = heard.n_source[heard.source] - heard.same
    n_rest = heard.n_group[heard.group] - heard.n_source[heard.source] - ~heard.same
    records = np.zeros(len(asked.cell), RECORD)
    records["n"] = n_own + n_rest
    witness = (own + rest) / (records["n"] + 1)[:, None]
    for cell in np.unique(asked.cell[wanted]):
        mine = np.flatnonzero(asked.cell == cell)
        sides = (image[mine], text[mine], witness[mine])
        records["features"][mine] = features_of(*sides, frames, int(cell))
        of_group, of_source = heard.group[mine], heard.source[mine]
        whole, part = heard.of_group[of_group], heard.of_source[of_source]
        beside = heard.n_group[of_group] - heard.n_source[of_source]
        shown = heard.picture[of_group]
        records["picture"][mine] = against_picture(shown, whole, frames, int(cell))
        records["source"][mine] = against_source(shown, part, whole - part, beside, frames, int(cell))
    records["flags"] = _flags(asked, heard)
    drawn = np.flatnonzero(asked.drawn & wanted)
    counts = np.column_stack([n_own, n_rest, heard.same])[drawn].astype(np.int32)
    sides = (own, rest, heard.picture[heard.group])
    own, rest, shown = (side[drawn].astype(np.float32) for side in sides)
    return records, Sworn(drawn, own, rest, shown, counts)


def _flags(asked: Asked, heard: _Heard) -> np.ndarray:
    """(N,) uint8. The first counted pair of a cell stands for its picture there, and of a source for it."""
    flags = np.zeros(len(asked.cell), np.uint8)
    many = heard.n_group[heard.group] > LEAST
    beside = heard.n_group[heard.group] - heard.n_source[heard.source]
    in_source = many & (heard.n_source[heard.source] > 1) & (beside > 0)
    flags[in_source] |= IN_SOURCE
    asks = ((PICTURE, many, (heard.group, asked.cell)), (SOURCE, in_source, (heard.source,)))
    for flag, among, keys in asks:
        rows = np.flatnonzero(among & asked.counted)
        if len(rows):
            _, first = _numbered(*(key[rows].astype(np.uint64) for key in keys))
            flags[rows[first]] |= flag
    return flags


def features_of(
    image: np.ndarray, text: np.ndarray, witness: np.ndarray, frames: Frames, cell: int
) -> np.ndarray:
    """(N, FEATURES) of centred images, captions and what witnesses say, each (N, D).

    pair, agree, others: the products of picture and caption, caption and witnesses, picture and witnesses, in
    units of their spread over all of the cell. The others: how widely each of the three scores, which is how
    much is known of it.
    """
    spreads = spreads_of(image, text, witness, frames, cell)
    return joined(image, text, witness, spreads, frames.units(cell))


def spreads_of(
    image: np.ndarray, text: np.ndarray, witness: np.ndarray, frames: Frames, cell: int
) -> np.ndarray:
    """(N, SPREADS) of image over captions, caption over images and captions, witnesses over both."""
    across, among = frames.units(cell)
    images, texts = frames.of_cell[cell].spreads
    asked = ((image, texts, across), (text, images, across), (text, texts, among))
    asked += ((witness, texts, among), (witness, images, across))
    return np.stack([unit**2 * quadratic(side, over) for side, over, unit in asked], 1)


def joined(
    image: np.ndarray, text: np.ndarray, witness: np.ndarray, spreads: np.ndarray, units: tuple[float, float]
) -> np.ndarray:
    """(N, FEATURES) where the spreads are known already."""
    across, among = units
    pair, agree, others = _dot(image, text), _dot(witness, text), _dot(image, witness)
    dots = (across * pair, among * agree, across * others)
    return np.column_stack([*dots, spreads])


def against_picture(picture: np.ndarray, whole: np.ndarray, frames: Frames, cell: int) -> np.ndarray:
    """(N,) how well a picture fits all its captions together, by how widely these score."""
    spread = quadratic(whole, frames.of_cell[cell].spreads[0])
    return _dot(picture, whole) / np.sqrt(np.maximum(spread, TINY))


def against_source(
    picture: np.ndarray, part: np.ndarray, rest: np.ndarray, n_rest: np.ndarray, frames: Frames, cell: int
) -> np.ndarray:
    """(N,) how well the captions of one source fit the picture and the other sources, of n_rest captions."""
    across, among = frames.units(cell)
    side = across * picture + 2 * among * rest / (n_rest + 1)[:, None]
    spread = quadratic(side, frames.of_cell[cell].spreads[1])
    return _dot(side, part) / np.sqrt(np.maximum(spread, TINY))


def _dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", one, other)


def quadratic(vectors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N,) v' M v of vectors (N, D): never below 0."""
    n = len(vectors)
    padded = np.zeros((-(-n // TILE) * TILE, vectors.shape[1]))
    padded[:n] = vectors
    return np.maximum(_dot((padded @ matrix)[:n], vectors), 0)
