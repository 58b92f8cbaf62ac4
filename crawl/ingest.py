"""The stage `ingest`: lists in, pairs out, one task per input file.

Every row of a list becomes a row of `pairs/` or, with one reason, of `pairs/rejected/`. A list that breaks
off in the middle fails as a whole and leaves nothing behind: mended, it gives the bytes that it would have
given at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ..errors import ConfigError
from ..recipe import Ingest
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import committed
from ..shards.job import finished_tasks, read_tally
from ..shards.schema import PAIRS, REJECTED
from .caption import normal_captions
from .lists import ListFile, list_inputs, read_input
from .url import canonical_urls

__all__ = ["ListFile", "ingest_stage", "ingest_tasks", "inputs_of", "iter_parts", "list_inputs"]

PAIR = "pair"  # the outcome of a row that is one
FEW_VALUES = ["source", "tar_path"]  # dictionaries of the others cost a third of the writing time
SHOWN_CHARS = 2_000  # of a rejected URL or caption
Share = tuple[pa.RecordBatch, float]  # a batch, and how much of the list is read
MAX_GIVEN_BYTES = 2**20  # of a row's further columns: a part holds rows_per_part of them in memory


def ingest_tasks(out: Path, settings: Ingest) -> list[Task]:
    """One task per input file, named by its number.

    Raises ConfigError as `list_inputs` does, and where a list that was read is not the same any more.
    """
    tasks = [
        Task("ingest", f"{i:04d}", {"path": file.path, "source": file.source, "size": file.size})
        for i, file in enumerate(list_inputs(settings))
    ]
    _refuse_other_lists(out, tasks)
    return tasks


def _refuse_other_lists(out: Path, tasks: Sequence[Task]) -> None:
    """What was made from a list is not thrown away because the list went, grew or shrank."""
    now = {task.name: (task.data["source"], task.data["size"]) for task in tasks}
    for name in finished_tasks(out, "ingest"):
        tally = read_tally(out, "ingest", name)
        facts = tally.facts if tally else {}
        if "size" in facts and now.get(name) != (facts["source"], facts["size"]):
            source, size = now.get(name, ("missing", 0))
            raise ConfigError(
                f"{out}: was made from other lists: number {name} was {facts['source']} of {facts['size']:,}"
                f" bytes and is {source} of {size:,} bytes: put it back, or give another folder as --out"
            )


def ingest_stage(out: Path, settings: Ingest) -> Stage:
    """The stage that turns each input file into parts of pairs."""
    return Stage("ingest", start_ingest, (out, settings), unit="rows")


def inputs_of(tasks: Sequence[Task]) -> str:
    """A digest of which lists there are and how long: where it changes, finished tasks are stale."""
    said = [[task.name, task.data["source"], task.data["size"]] for task in tasks]
    return xxhash.xxh3_64_hexdigest(json.dumps(said).encode())


def iter_parts(out: Path) -> list[Path]:
    """The parts of pairs in an output folder, sorted."""
    return sorted((out / "pairs").glob("*.parquet"))


def start_ingest(out: Path, settings: Ingest) -> Worker:
    """The worker of the stage."""
    return partial(ingest_file, out=out, settings=settings)


def ingest_file(task: Task, *, out: Path, settings: Ingest) -> Tally:
    """Write the parts and the rejected rows of one input file.

    Raises DataError, with nothing left in `out`, for a file that cannot be read to its end.
    """
    folder, source = out / "pairs", task.data["source"]
    _clear(folder, task.name)
    try:
        with (
            committed(folder / "rejected" / f"{task.name}.parquet") as temporary,
            pq.ParquetWriter(temporary, REJECTED, compression="zstd") as refusals,
            _Parts(folder, task.name, settings.rows_per_part) as parts,
        ):
            counts: Counter[str] = Counter()
            for batch, share in _ahead(read_input(task.data["path"], settings, source=source)):
                pairs, rejected = _judge(batch, source, counts.total(), settings)
                parts.add(pairs)
                if len(rejected):
                    refusals.write_table(rejected)
                counts.update({PAIR: len(pairs), **_counts(rejected["reason"])})
                beat(task, share, 1.0, source)
            parts.close()
    except BaseException:
        _clear(folder, task.name)
        raise
    facts = {"source": source, "size": task.data["size"], "parts": parts.n_parts, "rows": counts[PAIR]}
    return Tally({reason: n for reason, n in sorted(counts.items()) if n}, facts)


def _ahead(items: Iterator[Share]) -> Iterator[Share]:
    """The same items, each read while the one before is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reader.submit(next, items, None)
            yield item


def _clear(folder: Path, name: str) -> None:
    """Remove what an earlier, stopped try of the task left."""
    for path in (*folder.glob(f"{name}-*.parquet"), folder / "rejected" / f"{name}.parquet"):
        path.unlink(missing_ok=True)


class _Parts:
    """Cuts the pairs of one task into parts of equal length, the last one shorter.

    A part is written while the next one is read: one at a time, so that at most two are in memory.
    """

    def __init__(self, folder: Path, name: str, rows_per_part: int) -> None:
        self._folder, self._name, self._rows_per_part = folder, name, rows_per_part
        self._waiting = PAIRS.empty_table()
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        self.n_parts = 0

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    def add(self, pairs: pa.Table) -> None:
        """Take the next rows, and write the parts that are full."""
        self._waiting = pa.concat_tables([self._waiting, pairs])
        while len(self._waiting) >= self._rows_per_part:
            self._write(self._waiting.slice(0, self._rows_per_part))
            self._waiting = self._waiting.slice(self._rows_per_part)

    def close(self) -> None:
        """Write the last part, if a row is left for it."""
        if len(self._waiting):
            self._write(self._waiting)
        self._wait()

    def _write(self, part: pa.Table) -> None:
        self._wait()
        path = self._folder / f"{self._name}-{self.n_parts:05d}.parquet"
        self._written = self._writer.submit(_write_part, part, path)
        self.n_parts += 1

    def _wait(self) -> None:
        """Until the part before is written. Raises what its writing raised."""
        if self._written is not None:
            self._written.result()


def _write_part(part: pa.Table, path: Path) -> None:
    whole = part.combine_chunks()  # Arrow ends a page where a chunk ends
    with committed(path) as temporary:
        pq.write_table(whole, temporary, compression="zstd", use_dictionary=FEW_VALUES)  # type: ignore[arg-type]


def _judge(batch: pa.RecordBatch, source: str, first_row: int, settings: Ingest) -> tuple[pa.Table, pa.Table]:
    """The PAIRS and the REJECTED rows of one batch, whose first row is `first_row` of its list."""
    raw_url, bad_url = _decoded(batch["url"])
    raw_caption, bad_caption = _decoded(batch["caption"])
    url, url_reason = canonical_urls(raw_url, ports=settings.ports, max_bytes=settings.max_url_bytes)
    caption, caption_reason = normal_captions(raw_caption, max_bytes=settings.max_caption_bytes)
    if batch["caption"].null_count:  # a list that has no captions: pictures alone
        without = batch["caption"].is_null()
        caption = pc.if_else(without, "", caption)
        caption_reason = pc.if_else(without, pa.scalar(None, pa.string()), caption_reason)
    too_long = pc.greater(pc.binary_length(batch["given"]), MAX_GIVEN_BYTES)
    given_reason = pc.if_else(too_long, "given_too_long", pa.scalar(None, pa.string()))
    reason = pc.coalesce(batch["unreadable"], bad_url, url_reason, bad_caption, caption_reason, given_reason)
    table = pa.table(
        {
            "url": url,
            "caption": caption,
            "source": pa.repeat(source, len(batch)),
            "source_row": pa.array(np.arange(first_row, first_row + len(batch))),
            **{name: batch[name] for name in ("given", "tar_path", "tar_offset", "tar_size")},
        }
    )
    is_pair = reason.is_null()
    return _named(table.filter(is_pair)), _refused(batch, table, reason)


def _decoded(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Bytes (N,) as strings, NULL where they are not UTF-8, and the reasons of those."""
    try:
        return column.cast(pa.string()), pa.nulls(len(column), pa.string())
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        reasons: list[str | None] = []
        for value in column.to_pylist():
            try:
                texts.append(None if value is None else value.decode())
                reasons.append(None)
            except UnicodeDecodeError:
                texts.append(None)
                reasons.append("text_not_utf8")
        return pa.array(texts, pa.string()), pa.array(reasons, pa.string())


def _named(rows: pa.Table) -> pa.Table:
    """PAIRS: the same rows with their hashes. A uid is the hash of URL, NUL and caption, as in `make_uid`."""
    rows = rows.combine_chunks()
    url, caption = rows["url"], rows["caption"]
    hashes = {
        "uid": _hashes(pc.binary_join_element_wise(url, caption, "\0")),
        "url_hash": _hashes(url),
        "caption_hash": _hashes(caption),
    }
    columns = {**hashes, **{name: rows[name] for name in rows.column_names}}
    return pa.table([columns[name] for name in PAIRS.names], schema=PAIRS)


def _hashes(texts: pa.ChunkedArray) -> pa.Array:
    """xxh3-128 of (N,) strings, none NULL."""
    raw = texts.cast(pa.binary()).to_numpy(zero_copy_only=False)
    digests = b"".join(map(xxhash.xxh3_128_digest, raw))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(texts), [None, pa.py_buffer(digests)])


def _refused(batch: pa.RecordBatch, table: pa.Table, reason: pa.Array) -> pa.Table:
    is_refused = reason.is_valid()
    shown = {name: _shown(batch[name].filter(is_refused)) for name in ("url", "caption")}
    rows = table.select(["source", "source_row"]).filter(is_refused)
    return pa.table(
        [rows["source"], rows["source_row"], reason.filter(is_refused), shown["url"], shown["caption"]],
        schema=REJECTED,
    )


def _shown(values: pa.Array) -> pa.Array:
    texts = [
        None if value is None else value.decode("utf-8", "replace")[:SHOWN_CHARS]
        for value in values.to_pylist()
    ]
    return pa.array(texts, pa.string())


def _counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(reasons).to_pylist()}
