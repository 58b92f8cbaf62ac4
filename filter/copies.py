"""Stage `dedup`: exact copies of pairs, of URLs and of captions, counted over all parts at once.

The rule: it works on the three 16-byte hashes of a row and never sees a URL or a caption, and what it holds
in memory is bounded, however many rows bear one URL or one caption; the rest, at most 130 bytes a row, lies
on disk meanwhile. A uid's first row is the first by (part, row), so the answer does not depend on memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..recipe import Dedup
from ..runner import Stage, Tally, Task, Worker, beat
from ..settings import MEMORY_MB
from ..shards.commit import write_table
from ..shards.schema import COPIES
from .columns import part_names
from .ranks import ROW_BYTES, Spill, column, scratch

HASHES = ("uid", "url_hash", "caption_hash")
KEY = {"url": [3, 4, 2], "caption": [5, 6, 2]}  # of a row of _keys, as the key of another Spill
# the columns on disk, by row number: those of a uid's first row hold for its copies too
OF_FIRST = ("captions_per_image_v1", "caption_rank_v1", "images_per_caption_v1")
BATCH = 100_000


def dedup_tasks(out: Path) -> list[Task]:
    """One task over all parts; none where there are no pairs."""
    return [Task("dedup", "all")] if part_names(out) else []


def dedup_stage(out: Path, settings: Dedup, memory_mb: int = MEMORY_MB) -> Stage:
    """The stage `dedup`: scores/copies/<part>.parquet, row by row beside pairs/<part>.parquet."""
    return Stage("dedup", _start, (out, settings, memory_mb))


def _start(out: Path, settings: Dedup, memory_mb: int) -> Worker:
    return partial(_count_copies, out, settings, memory_mb)


def _count_copies(out: Path, settings: Dedup, memory_mb: int, task: Task) -> Tally:
    """Counts rows: 'first' of their uid and 'pair_copy'; facts: distinct URLs, captions and pairs."""
    sizes = {part: pq.read_metadata(out / "pairs" / f"{part}.parquet").num_rows for part in part_names(out)}
    n, chunk = sum(sizes.values()), memory_mb * 1_000_000 // ROW_BYTES
    with scratch(out, "dedup") as folder:
        names = ("first", "pair_rank_v1", "pair_copies_v1", *OF_FIRST)
        found = {name: column(folder / name, n, np.int64 if name == "first" else np.int32) for name in names}
        pairs = Spill(folder / "pairs", n, 7, chunk)
        for done, rows in _keys(out, sizes):
            beat(task, done / max(n, 1), 4, "reading")
            pairs.add(rows)
        keys = {key: Spill(folder / key, n, 3, chunk) for key in KEY}
        facts = {"pairs": _rank_pairs(pairs, keys, found, task)}
        facts["urls"] = _rank(keys["url"], found["captions_per_image_v1"], found["caption_rank_v1"])
        facts["captions"] = _rank(keys["caption"], found["images_per_caption_v1"], None)
        beat(task, 3, 4, "writing")
        _write_parts(out, sizes, found, task)
    return Tally({"first": facts["pairs"], "pair_copy": n - facts["pairs"]}, facts)


def _keys(out: Path, sizes: dict[str, int]) -> Iterator[tuple[int, np.ndarray]]:
    """How many rows came before, and rows (N, 7): halves of the uid, number, halves of URL and caption."""
    begin = 0
    for part, size in sizes.items():
        read = 0
        with pq.ParquetFile(out / "pairs" / f"{part}.parquet") as file:
            for batch in file.iter_batches(BATCH, columns=list(HASHES)):
                uid, url, caption = (_halves(batch.column(name)) for name in HASHES)
                number = np.arange(begin + read, begin + read + len(batch), dtype=np.uint64)
                yield begin + read, np.column_stack([uid, number, url, caption])
                read += len(batch)
        if read != size:
            raise DataError(f"pairs/{part}: {size} rows expected, {read} read: pairs/ changed meanwhile")
        begin += size


def _halves(hashes: pa.FixedSizeBinaryArray) -> np.ndarray:
    """(N, 2) uint64, which sort as the 16 bytes do."""
    whole = np.frombuffer(hashes.buffers()[1], ">u8").reshape(-1, 2)
    return whole[hashes.offset : hashes.offset + len(hashes)].astype(np.uint64)


def _rank_pairs(pairs: Spill, keys: dict[str, Spill], found: dict[str, np.ndarray], task: Task) -> int:
    """Rank the rows of each uid and hand each one's first to `keys`, by uid. Returns how many uids."""
    n = 0
    for done, group in enumerate(pairs.groups()):
        beat(task, 1 + done / pairs.n_files, 4, "counting pairs")
        for ranked in group.ranked():
            found["pair_rank_v1"][ranked.number] = ranked.rank
            found["first"][ranked.number] = ranked.first
        for number, copies in group.counted():
            found["pair_copies_v1"][number] = copies
        n += len(group.firsts)
        for key, spill in keys.items():
            spill.add(group.firsts[:, KEY[key]])
    return n


def _rank(keys: Spill, counts: np.ndarray, ranks: np.ndarray | None) -> int:
    """Count, and where asked for rank, the pairs of each key. A pair is a (URL, caption), so a URL meets each
    of its captions once, and a caption each of its URLs. Returns how many keys."""
    n = 0
    for group in keys.groups():
        for ranked in group.ranked():
            if ranks is not None:
                ranks[ranked.number] = ranked.rank
        for number, count in group.counted():
            counts[number] = count
        n += len(group.firsts)
    return n


def _write_parts(out: Path, sizes: dict[str, int], found: dict[str, np.ndarray], task: Task) -> None:
    begin = 0
    for done, (part, size) in enumerate(sizes.items()):
        rows = slice(begin, begin + size)
        first = found["first"][rows]
        columns = {name: found[name][rows] for name in ("pair_rank_v1", "pair_copies_v1")}
        columns |= {name: found[name][first] for name in OF_FIRST}
        uid = pq.read_table(out / "pairs" / f"{part}.parquet", columns=["uid"]).column("uid")
        table = pa.table({"uid": uid, **columns}).select(COPIES.names)
        write_table(table.cast(COPIES), out / "scores" / "copies" / f"{part}.parquet")
        begin += size
        beat(task, 3 + (done + 1) / len(sizes), 4, "writing")
