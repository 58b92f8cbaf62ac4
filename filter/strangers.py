"""Pairs that do not belong together: a sample of every cell, its images against others' captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..recipe import Noise
from ..shards.files import readable
from ..shards.schema import text_hash
from .cells import Cells
from .embedded import Embeddings, Source, usable
from .evidence import Frame, Null, evidence_of, null_of

SAMPLE = 4_096  # pairs of a cell that are held against each other: a million scores with 256 negatives
SPARE = 8  # standard deviations: how many more are drawn, for all sources together, than are taken

SAMPLED = {
    "cell": pa.int32(),
    "key": pa.binary(),  # the hash by which it was drawn
    "picture": pa.binary(16),  # one for one picture, by its group of near-copies where that is known
    "caption": pa.binary(16),  # one for one caption
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


def describe(
    out: Path, source: Source, uids: pa.ChunkedArray, near: pa.ChunkedArray, drawn: Drawn
) -> pa.Table:
    """The drawn rows as SAMPLED, in their order."""
    return pa.concat_tables(_described(out, shard, part, uids, near, drawn) for shard, part in source)


def _described(
    out: Path, shard: Embeddings, part: slice, uids: pa.ChunkedArray, near: pa.ChunkedArray, drawn: Drawn
) -> pa.Table:
    first, last = np.searchsorted(drawn.row, [part.start, part.stop])
    rows = drawn.row[first:last]
    image, text = shard.rows(rows - part.start)
    uid, group = (column.take(pa.array(rows)).to_pylist() for column in (uids, near))
    hashes, captions = _said(out, shard, uid) if uid else ({}, {})
    said = (captions.get(one) for one in uid)
    caption = [one.hex().upper() if text is None else text for one, text in zip(uid, said, strict=True)]
    columns = [
        drawn.cell[first:last],
        drawn.key[first:last].tolist(),
        [own or hashes.get(one) or one for one, own in zip(uid, group, strict=True)],
        [text_hash(each) for each in caption],
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SAMPLED.values(), strict=True)]
    return pa.table([*arrays, _packed(image), _packed(text)], names=[*SAMPLED, "image", "text"])


def _packed(vectors: np.ndarray) -> pa.Array:
    """(N, D) float32 as a binary column."""
    kind, data = pa.binary(4 * vectors.shape[1]), pa.py_buffer(np.ascontiguousarray(vectors))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(vectors), [None, data])


def _unpacked(column: pa.ChunkedArray) -> np.ndarray:
    array = pa.concat_arrays(column.chunks)
    buffer, width = array.buffers()[1], array.type.byte_width // 4
    return np.frombuffer(buffer, np.float32, width * len(array), 4 * width * array.offset).reshape(-1, width)


def _said(out: Path, shard: Embeddings, uids: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, str]]:
    """The picture's and the caption's of some pairs of a shard, as the first wave has them."""
    raw = pq.read_table(
        readable(out / "raw" / f"{shard.name}.parquet"), columns=["uid", "url_hash", "caption", "wave"]
    )
    raw = raw.filter(pc.is_in(raw["uid"], pa.array(uids, raw["uid"].type))).sort_by([("wave", "descending")])
    uid = raw["uid"].to_pylist()
    hashes = dict(zip(uid, raw["url_hash"].to_pylist(), strict=True))
    return hashes, dict(zip(uid, raw["caption"].to_pylist(), strict=True))


def null_from(frame: Frame, sample: Sequence[pa.Table], cell: int, settings: Noise) -> Null:
    """Each sampled image against `negatives` captions. sample: of all sources, in their order.

    Partners lie at the same distances around a ring, so that each caption meets as many images. Pairs of one
    picture (or near-copy) or of one caption are left out: they belong together.
    """
    table = pa.concat_tables(sample).combine_chunks() if sample else None
    if table is None or not len(table):
        return _nothing()
    keys = np.array(table["key"].to_pylist(), "S32")
    table = table.take(pa.array(smallest(keys, np.ones(len(keys), bool))))
    image, text = _unpacked(table["image"]), _unpacked(table["text"])
    good = usable(image, text)
    n = int(good.sum())
    if n < 2:
        return _nothing()
    images, texts = frame.centred(image[good], text[good])
    picture, caption = (_numbers(table[column])[good] for column in ("picture", "caption"))
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


def _nothing() -> Null:
    return null_of(np.empty((0, 2)), np.empty((0, 2)), np.empty(0))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.combine_chunks().dictionary_encode().indices)
