"""Every picture of a source embedded once, for runs whose picture tower is locked: a step then reads rows.

One pair of files for each shard, written when the shard is through, so that a stopped run goes on; they are
read through a memory map, and removed with the run's checkpoint.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..shards.commit import committed, write_bytes
from ..shards.files import map_array, open_file, readable, remove_folder
from ..shards.tar import read_at
from .batch import Batch
from .checkpoint import digest
from .decoding import Tars
from .feeder import text_fields
from .pictures import decode_square
from .samples import Rows, Source
from .share import AnyOrder
from .two_towers import TwoTowers

FOLDER = "pictures"
AT_ONCE = 256  # pictures in one pass through the tower
OPEN_SHARDS = 64


def cache_pictures(folder: Path, source: Source, towers: TwoTowers, *, threads: int) -> Path:
    """Embed what is not embedded yet. Returns the folder, which holds rows by exactly these weights."""
    place = folder / FOLDER
    made_by = digest({name: value.cpu() for name, value in towers.clip.visual.state_dict().items()})
    mark = place / "weights"
    if not mark.exists() or mark.read_text() != made_by:
        remove_folder(place)
        write_bytes(made_by.encode(), mark)
    with ThreadPoolExecutor(threads) as pool:
        for shard in range(len(source.tables)):
            offsets, sizes = _pictures(source, shard)
            done = place / f"{shard}.rows.npy"
            if done.exists() and np.array_equal(np.load(readable(place / f"{shard}.offsets.npy")), offsets):
                continue
            _save(place / f"{shard}.offsets.npy", offsets)
            _save(done, _embedded(source, shard, offsets, sizes, towers, pool))
    return place


def _pictures(source: Source, shard: int) -> tuple[np.ndarray, np.ndarray]:
    offset, size = source.places(shard)
    distinct, first = np.unique(offset, return_index=True)
    return distinct, size[first]


def _embedded(
    source: Source,
    shard: int,
    offsets: np.ndarray,
    sizes: np.ndarray,
    towers: TwoTowers,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """(P, D) float32 unit rows; NaN where a picture cannot be decoded."""
    side = towers.image_size
    found = np.full((len(offsets), towers.dimension), np.nan, np.float32)
    if not len(offsets):  # no sample, or no tar: a raw shard of pairs whose pictures lie in others
        return found
    was = towers.training
    towers.eval()
    with open_file(source.tar(shard), ahead=True) as file, torch.no_grad():

        def decode(place: tuple[int, int], out: np.ndarray) -> bool:
            return decode_square(read_at(file, *place), out)

        for start in range(0, len(offsets), AT_ONCE):
            span = slice(start, start + AT_ONCE)
            places = list(zip(offsets[span].tolist(), sizes[span].tolist(), strict=True))
            block = np.zeros((len(places), side, side, 3), np.uint8)
            good = np.array(list(pool.map(decode, places, block)))
            rows = towers.encode_pictures(torch.from_numpy(block).to(towers.device)).float().cpu().numpy()
            found[span][good] = rows[good]
    towers.train(was)
    return found


def shard_pixels(
    source: Source, shard: int, table: pa.Table, towers: TwoTowers, at_once: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n,) row numbers of a shard's `table` and their (n, S, S, 3) pixels, as far as they can be decoded."""
    side = towers.image_size
    columns = (source.tars(table, shard).tolist(), table["offset"].to_pylist(), table["size"].to_pylist())
    places = list(zip(*columns, strict=True))
    paths = {number: source.tar(number) for number in range(len(source.tables))}
    with closing(Tars(paths)) as tars:
        for start in range(0, len(places), at_once):
            some = places[start : start + at_once]
            block = np.zeros((len(some), side, side, 3), np.uint8)
            good = np.array(
                [decode_square(data, out) for data, out in zip(tars.read(some), block, strict=True)]
            )
            if good.any():
                yield start + np.flatnonzero(good), block[good]


def _save(path: Path, rows: np.ndarray) -> None:
    with committed(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)


class CachedLoader:
    """Batches of embedded pictures and captions; stands in for `Loader`."""

    def __init__(self, order: AnyOrder, place: Path, *, context: int) -> None:
        self.order, self.place, self.context = order, place, context
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.wait_s = 0.0
        self.undecodable: set[int] = set()

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches `start` to `stop` (exclusive), each the same whenever and wherever it is asked for."""
        for number in range(start, stop):
            begun = time.perf_counter()
            rows = self.order[number]
            pictures = self._rows(rows)
            valid = np.isfinite(pictures[:, 0])
            self.undecodable.update(rows.uid[~valid].tolist())
            fields = text_fields(rows, self.context) | {"valid": valid}
            fields["image_pooled"] = np.nan_to_num(pictures)
            batch = Batch({name: torch.from_numpy(value) for name, value in fields.items()})
            self.wait_s += time.perf_counter() - begun
            yield batch

    def _rows(self, rows: Rows) -> np.ndarray:
        """(B, D) float32."""
        found: np.ndarray | None = None
        for shard in np.unique(rows.tar):
            offsets, embedded = self._shard(int(shard))
            mine = rows.tar == shard
            part = embedded[np.searchsorted(offsets, rows.offset[mine])]
            if found is None:
                found = np.empty((len(rows), part.shape[1]), np.float32)
            found[mine] = part
        assert found is not None  # a batch holds a pair at least
        return found

    def _shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._open:
            while len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)
            names = (self.place / f"{shard}.{kind}.npy" for kind in ("offsets", "rows"))
            offsets, rows = (map_array(path) for path in names)
            self._open[shard] = offsets, rows
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        """Let go of all files."""
        self._open.clear()
        self.order.close()
