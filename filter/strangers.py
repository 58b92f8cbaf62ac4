"""Pairs that do not belong together: a sample of every cell, its images against others' captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import duckdb
import numpy as np
import pyarrow as pa

from ..recipe import Noise
from .cells import Cells
from .embedded import Source, usable
from .evidence import Frame, Null, evidence_of, null_of
from .places import Place, vectors_of
from .testimony import Frames, Sworn
from .witness_null import Sample, Witnesses, witness_null

SAMPLE = 4_096  # pairs of a cell that are held against each other: a million scores with 256 negatives
COUNTS = ("n_own", "n_rest", "same")
SPARE = 8  # standard deviations: how many more are drawn, for all sources together, than are taken

SAMPLED = {
    "cell": pa.int32(),
    "key": pa.binary(),  # the hash by which it was drawn
    "picture": pa.binary(16),  # one for one picture, by its group of near-copies where that is known
    "caption": pa.uint64(),  # one for one caption
}  # and `image` and `text`: the embeddings, float32
DRAWN = """
SELECT place, key FROM (SELECT place, cell, md5(hex(uid) || $1) AS key FROM pairs) JOIN limits USING (cell)
WHERE key < below ORDER BY place
"""


@dataclass(frozen=True)
class Drawn:
    """Rows of a source that are in the samples of their cells, in its order, and the hashes that say so."""

    row: np.ndarray  # (N,) of the source
    cell: np.ndarray
    key: np.ndarray  # (N,) S32

    def of(self, cells: range) -> Drawn:
        """Those of some cells."""
        mine = (self.cell >= cells.start) & (self.cell < cells.stop)
        return Drawn(self.row[mine], self.cell[mine], self.key[mine])


def draw(
    connection: duckdb.DuckDBPyConnection, uids: pa.ChunkedArray, of_row: np.ndarray, cells: Cells, seed: int
) -> Drawn:
    """The pairs of a source that may be among the SAMPLE of their cell with the smallest hashes.

    Of a large cell only hashes below a limit are looked at: with one chance in 10**14, fewer than SAMPLE.
    """
    rows = {"uid": uids, "cell": pa.array(of_row), "place": pa.array(np.arange(len(of_row), dtype=np.int32))}
    connection.register("pairs", pa.table(rows))
    limits = [_limit(n) for n in cells.sizes]
    connection.register("limits", pa.table({"cell": pa.array(range(cells.n), pa.int32()), "below": limits}))
    found = connection.sql(DRAWN, params=[f"{seed}"]).to_arrow_table()
    connection.unregister("pairs")
    connection.unregister("limits")
    row, key = found["place"].to_numpy(), np.array(found["key"].to_pylist(), "S32")
    kept = np.concatenate([smallest(key, of_row[row] == cell) for cell in np.unique(of_row[row])] or [row])
    kept = np.sort(kept)
    return Drawn(row[kept], of_row[row[kept]], key[kept])


def _limit(n: int) -> str:
    """A text above the hashes that are looked at, in a cell of n pairs."""
    share = (SAMPLE + SPARE * sqrt(SAMPLE)) / max(n, 1)
    return "g" if share >= 1 else f"{int(share * 2**64):016x}"


def smallest(key: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where the SAMPLE smallest keys lie, in order of place; of equal ones the first."""
    places = np.flatnonzero(among)
    return np.sort(places[np.argsort(key[places], kind="stable")[:SAMPLE]])


def describe(source: Source, place: Place, drawn: Drawn) -> pa.Table:
    """The drawn rows as SAMPLED, in their order, with their embeddings."""
    group, caption, _ = place
    image, text = vectors_of(source, drawn.row)
    columns = [
        pa.array(drawn.cell, pa.int32()),
        pa.array(drawn.key.tolist(), pa.binary()),
        pa.array([one.tobytes() for one in group[drawn.row]], pa.binary(16)),
        pa.array(caption[drawn.row], pa.uint64()),
    ]
    return pa.table([*columns, _packed(image), _packed(text)], names=[*SAMPLED, "image", "text"])


def sworn_table(key: np.ndarray, sworn: Sworn) -> pa.Table:
    """What is sworn of some drawn pairs, by their keys (M,) S32."""
    sides = {name: _packed(getattr(sworn, name)) for name in ("own", "rest", "picture")}
    counts = {name: pa.array(sworn.counts[:, at]) for at, name in enumerate(COUNTS)}
    return pa.table({"key": pa.array(key.tolist(), pa.binary()), **sides, **counts})


def _packed(vectors: np.ndarray) -> pa.Array:
    """(N, D) float32 as a binary column."""
    kind, data = pa.binary(4 * vectors.shape[1]), pa.py_buffer(np.ascontiguousarray(vectors))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(vectors), [None, data])


def _unpacked(column: pa.ChunkedArray) -> np.ndarray:
    array = pa.concat_arrays(column.chunks)
    buffer, width = array.buffers()[1], array.type.byte_width // 4
    return np.frombuffer(buffer, np.float32, width * len(array), 4 * width * array.offset).reshape(-1, width)


@dataclass(frozen=True)
class Sampled:
    """The sampled pairs of a cell whose embeddings are finite: (N, D) each, and who is who."""

    image: np.ndarray
    text: np.ndarray
    key: np.ndarray  # (N,) S32
    picture: np.ndarray  # (N,) equal for one picture
    caption: np.ndarray  # (N,)


def sampled(tables: Sequence[pa.Table]) -> Sampled | None:
    """The pairs with the smallest keys. tables: of all sources, in their order. None for fewer than two."""
    table = pa.concat_tables(tables).combine_chunks() if tables else None
    if table is None or not len(table):
        return None
    keys = np.array(table["key"].to_pylist(), "S32")
    rows = smallest(keys, np.ones(len(keys), bool))
    table, keys = table.take(pa.array(rows)), keys[rows]
    image, text = _unpacked(table["image"]), _unpacked(table["text"])
    good = usable(image, text)
    if good.sum() < 2:
        return None
    picture, caption = (_numbers(table[column])[good] for column in ("picture", "caption"))
    return Sampled(image[good], text[good], keys[good], picture, caption)


def null_from(frame: Frame, sample: Sampled | None, cell: int, settings: Noise) -> Null:
    """Each sampled image against `negatives` captions.

    Partners lie at the same distances around a ring, so that each caption meets as many images. Pairs of one
    picture (or near-copy) or of one caption are left out: they belong together.
    """
    if sample is None:
        return _nothing()
    n, picture, caption = len(sample.key), sample.picture, sample.caption
    images, texts = frame.centred(sample.image, sample.text)
    dice = np.random.default_rng([settings.seed, cell])
    steps = 1 + dice.permutation(n - 1)[: settings.negatives]
    found = []
    for step in np.sort(steps):
        turned = np.r_[step:n, 0:step]
        strangers = np.flatnonzero((picture != picture[turned]) & (caption != caption[turned]))
        found.append(evidence_of(images[strangers], texts[turned[strangers]]))
    evidence, heard = (np.concatenate(part) for part in zip(*found, strict=True))
    own, _ = evidence_of(images, texts)
    return null_of(own, evidence, heard)


def witnesses_from(
    frames: Frames, sample: Sampled | None, sworn: Sequence[pa.Table], cell: int, settings: Noise
) -> Witnesses | None:
    """The nulls of pairs that have witnesses. sworn: as `sworn_table` gives them, of all sampled pairs."""
    if sample is None or not sworn:
        return None
    table = pa.concat_tables(sworn).combine_chunks()
    keys = np.array(table["key"].to_pylist(), "S32")
    order = np.argsort(keys, kind="stable")
    table = table.take(pa.array(order[np.searchsorted(keys[order], sample.key)]))
    own, rest, shown = (_unpacked(table[name]).astype(np.float64) for name in ("own", "rest", "picture"))
    counts = np.column_stack([table[name].to_numpy() for name in COUNTS])
    image, text = (side - frames.means[cell, at] for at, side in enumerate((sample.image, sample.text)))
    whole = Sample(image, text, own, rest, shown, counts, sample.picture, sample.caption)
    return witness_null(whole, frames, cell, settings)


def _nothing() -> Null:
    return null_of(np.empty((0, 2)), np.empty((0, 2)), np.empty(0))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.combine_chunks().dictionary_encode().indices)
