"""The tasks of `noise` that bring all captions of a picture together, wherever its shards lie.

Each source sends its pairs, with their embeddings, to the partitions of their pictures; each of these answers
with a record of every pair, and swears to the vectors of those that are in the sample of their cell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..runner import Tally, Task, beat
from ..shards.exchange import answers, gather, partition_of, partitions, reply, scatter
from ..shards.selection import uids_to_array
from .cells import Cells
from .embedded import Source
from .evidence import Frame
from .noise_plan import Way
from .passes import batches, frames_of
from .places import vectors_of
from .strangers import COUNTS, Drawn, sworn_table
from .testimony import RECORD, Asked, Frames, hear_witnesses, no_sworn

BLOCK = 16_384  # rows whose embeddings are gathered at once
UNSAID = pa.binary(RECORD.itemsize)
KEY = 32  # characters of the hash by which a pair was drawn


def hearing_parts(rows: int, dim: int, memory_mb: int) -> int:
    """How many partitions pictures are cut into: the embeddings of one fill an eighth of the memory."""
    return partitions(rows, max(1, memory_mb * 2**17 // (4 * dim)))


def send_asked(
    way: Way, name: str, source: Source, asked: Asked, good: np.ndarray, drawn: Drawn
) -> np.ndarray:
    """Send the pairs that can be scored to the partitions of their pictures. Returns these, (N,), of all."""
    part = partition_of(asked.group, way.hearers)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(part[rows], kind="stable")]
    key = np.zeros(source.n, f"S{KEY}")
    key[drawn.row] = drawn.key
    table = pa.concat_tables(_packets(source, asked, key, rows))
    scatter(way.store, way.name("hearing"), name, table, part[rows], way.hearers)
    return part


def _packets(source: Source, asked: Asked, key: np.ndarray, rows: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, max(len(rows), 1), BLOCK):
        some = rows[start : start + BLOCK]
        whole = asked.take(some)
        image, text = (side.astype(np.float16) for side in vectors_of(source, some))
        yield pa.table(
            {
                "group": _fixed(whole.group),
                "uid": _fixed(whole.uid),
                "caption": pa.array(whole.caption, pa.uint64()),
                "host": pa.array(whole.host, pa.uint64()),
                "cell": pa.array(whole.cell, pa.int32()),
                "counted": pa.array(whole.counted),
                "key": _fixed(key[some]),
                "image": _fixed(image),
                "text": _fixed(text),
            }
        )


def _fixed(rows: np.ndarray) -> pa.Array:
    """Rows of one width as a fixed-size binary column."""
    width = rows.dtype.itemsize * (rows.shape[1] if rows.ndim > 1 else 1)
    data = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, data])


def _plain(column: pa.ChunkedArray, kind: np.dtype | str) -> np.ndarray:
    """(N,) or (N, width) of a fixed-size binary column."""
    array = column.combine_chunks()
    width, kind = array.type.byte_width, np.dtype(kind)
    flat = np.frombuffer(array.buffers()[1] or b"", "u1", width * len(array), width * array.offset)
    found = flat.view(kind)
    return found if kind.itemsize == width else found.reshape(len(array), -1)


def save_frame(way: Way, cell: int, frame: Frame) -> None:
    """Leave a cell's frame: its means and its covariances."""
    way.store.put(way.name(f"means/{cell:06d}"), frame.means.tobytes())
    way.store.put(way.name(f"spreads/{cell:06d}"), frame.spreads.tobytes())


def load_frames(way: Way, cells: int, dim: int, batch: range) -> Frames:
    """The means of all cells, the frames of a batch."""
    means = [np.frombuffer(way.store.read(way.name(f"means/{cell:06d}"))) for cell in range(cells)]
    spreads = {
        cell: np.frombuffer(way.store.read(way.name(f"spreads/{cell:06d}"))).reshape(2, dim, dim)
        for cell in batch
    }
    return frames_of(np.stack(means).reshape(-1, 2, dim), spreads, batch)


def hear(way: Way, cells: Cells, dim: int, task: Task) -> Tally:
    """What witnesses say of the pairs of a partition of pictures."""
    part = task.data["number"]
    came = [table for _, table in gather(way.store, way.name("hearing"), part)]
    table = pa.concat_tables(came).combine_chunks()
    key = _plain(table["key"], f"S{KEY}")
    asked = Asked(
        *(uids_to_array(table[name]) for name in ("group", "uid")),
        *(table[name].to_numpy() for name in ("caption", "host", "cell", "counted")),
        drawn=key != b"",
    )
    image, text = (_plain(table[name], "f2").reshape(len(table), dim) for name in ("image", "text"))
    records = np.zeros(len(table), RECORD)

    def vectors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image[rows].astype(np.float32), text[rows].astype(np.float32)

    several = batches(cells.n, dim, way.plan.settings, way.plan.memory_mb)
    for number, batch in enumerate(several):
        frames = load_frames(way, cells.n, dim, batch)
        tables, to = [sworn_table(np.empty(0, f"S{KEY}"), no_sworn(frames))], [np.empty(0, np.int64)]
        for rows, found, sworn in hear_witnesses(asked, vectors, frames, batch):
            records[rows] = found
            tables.append(sworn_table(key[sworn.rows], sworn))
            to.append(asked.cell[sworn.rows].astype(np.int64) - batch.start)
            beat(task, number, len(several), "witnesses")
        folder = way.name(f"sworn-{batch.start}")
        scatter(way.store, folder, f"{part:06d}", pa.concat_tables(tables), np.concatenate(to), len(batch))
    said = pa.table({"record": _fixed(records)})
    reply(way.store, way.name("hearing"), part, said, [len(one) for one in came])
    return Tally({"heard": len(table)})


def read_records(way: Way, name: str, part: np.ndarray, good: np.ndarray) -> np.ndarray:
    """(N,) RECORDs of a source's pairs; zeros for those that cannot be scored."""
    records = np.zeros(len(part), RECORD)
    table = answers(way.store, way.name("hearing"), name)
    rows = np.flatnonzero(good)
    rows = rows[np.argsort(part[rows], kind="stable")]
    if len(rows):
        records[rows] = _plain(table["record"], RECORD)
    return records


assert len(COUNTS) == 3
