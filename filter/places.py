"""Where each scored pair has its place among witnesses: its picture, its source, what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ..shards.files import readable
from ..shards.selection import uids_to_array
from .embedded import Embeddings, Source
from .testimony import Asked

RAW = ["uid", "url_hash", "url", "caption", "wave"]
HOST = r"^[a-zA-Z][a-zA-Z0-9+.-]*://(?P<host>[^/?#]*)"
Place = tuple[np.ndarray, np.ndarray, np.ndarray]


def places(out: Path, source: Source, near: pa.ChunkedArray) -> Place:
    """(N,) V16 the picture, or its group of near-copies; (N,) uint64 of caption and of host, of each pair.

    near: (N,) the group where one is known. Of a pair without a row in `raw` it is its own.
    """
    found = list(_by_shard(out, source, near))
    group, caption, host = (np.concatenate([each[at] for each in found]) for at in range(3))
    return group, caption, host


def _by_shard(out: Path, source: Source, near: pa.ChunkedArray) -> Iterator[Place]:
    for shard, part in source:
        uid = pq.read_table(readable(shard.path), columns=["uid"])["uid"].combine_chunks()
        raw = _raw(out, shard)
        at = pc.index_in(uid, raw["uid"].combine_chunks())
        known = near.slice(part.start, part.stop - part.start).combine_chunks()
        own = raw["url_hash"].combine_chunks().take(at)
        group = uids_to_array(pa.chunked_array([pc.coalesce(known, own, uid)]))
        said = raw["caption"].combine_chunks().take(at).to_pylist()
        caption = _hashes(
            one.hex() if text is None else text for one, text in zip(uid.to_pylist(), said, strict=True)
        )
        yield group, caption, _hosts(raw["url"].combine_chunks().take(at))


def _raw(out: Path, shard: Embeddings) -> pa.Table:
    """The rows of a raw shard, the first wave's first: what is read of a pair is the same in each."""
    path = out / "raw" / f"{shard.name}.parquet"
    return pq.read_table(readable(path), columns=RAW).sort_by("wave")


def _hosts(urls: pa.Array) -> np.ndarray:
    hosts = pc.struct_field(pc.extract_regex(urls, HOST), "host").fill_null("").dictionary_encode()
    if not len(hosts):
        return np.empty(0, np.uint64)
    return _hashes(hosts.dictionary.to_pylist())[hosts.indices.to_numpy(zero_copy_only=False)]


def _hashes(texts: Iterator[str] | list[str]) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(each.encode("utf-8", "surrogatepass")) for each in texts], "u8")


def asked_of(
    uid: pa.ChunkedArray, place: Place, cell: np.ndarray, counted: np.ndarray, drawn: np.ndarray
) -> Asked:
    """All pairs of a source. drawn: row numbers."""
    group, caption, host = place
    among = np.zeros(len(cell), bool)
    among[drawn] = True
    return Asked(group, uids_to_array(uid), caption, host, cell, counted, among)


def vectors_of(source: Source, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and text embeddings of rows of a source, in whatever order, (M, D) float32."""
    image, text = (np.empty((len(rows), source.dim), np.float32) for _ in range(2))
    shard_of = np.searchsorted(source.starts, rows, side="right") - 1
    for number in np.unique(shard_of):
        mine = np.flatnonzero(shard_of == number)
        image[mine], text[mine] = source.shards[number].rows(rows[mine] - source.starts[number])
    return image, text
