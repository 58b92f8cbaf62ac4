"""The stage `ingest`: lists in, pairs out, one task per input file.

Every row of a list becomes a row of `pairs/` or, with one reason, of `pairs/rejected/`. A list that breaks
off in the middle fails as a whole and leaves nothing behind: mended, it gives the bytes that it would have
given at once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from ..errors import ConfigError, DataError
from ..recipe import Ingest
from ..runner import Stage, Tally, Task, Worker, beat
from ..shards.commit import committed
from ..shards.job import finished_tasks, read_tally
from ..shards.schema import PAIRS, REJECTED
from .archive_rows import counted
from .caption import normal_captions
from .given import to_json
from .lists import ListFile, list_inputs, read_input
from .parts import Parts
from .rows import UNREADABLE, chosen_columns
from .url import bears_entity, canonical_urls

__all__ = ["ListFile", "ingest_stage", "ingest_tasks", "inputs_of", "iter_parts", "list_inputs"]

NOT_UTF8 = "text_not_utf8"
PAIR = "pair"  # the outcome of a row that is one
SHOWN_CHARS = 2_000  # of a rejected URL or caption
Share = tuple[pa.RecordBatch, float]  # a batch, and how much of the list is read
MAX_GIVEN_BYTES = 2**20  # of a row's further columns


def ingest_tasks(out: Path, settings: Ingest) -> list[Task]:
    """One task per input file, named by its number.

    Raises ConfigError as `list_inputs` does, and where a list that was read is not the same any more.
    """
    tasks = [
        Task("ingest", _task_name(i), {"path": file.path, "source": file.source, "size": file.size})
        for i, file in enumerate(list_inputs(settings))
    ]
    _refuse_other_lists(out, tasks)
    return tasks


def _task_name(i: int) -> str:
    """Names that sort as their numbers do, past 9,999 too."""
    return f"{i:04d}" if i < 10_000 else f"a{i:08d}"


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


def inputs_of(tasks: Sequence[Task]) -> dict[str, str]:
    """By task a digest of which list it reads and how long that is: other lists do not touch it."""
    said = {task.name: [task.data["source"], task.data["size"]] for task in tasks}
    return {name: xxhash.xxh3_64_hexdigest(json.dumps(what).encode()) for name, what in said.items()}


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
            Parts(folder, task.name, settings.rows_per_part, settings.mb_per_part * 10**6) as parts,
        ):
            counts: Counter[str] = Counter()
            columns: dict[str, Any] = {}
            beside: dict[str, int] = {}
            for batch, share in _ahead(read_input(task.data["path"], settings, source=source)):
                columns = columns or chosen_columns(batch)
                beside = counted(batch)
                pairs, rejected = _judge(batch, source, counts.total(), settings)
                parts.add(pairs)
                if len(rejected):
                    refusals.write_table(rejected)
                counts.update({PAIR: len(pairs), **_counts(rejected["reason"])})
                beat(task, share, 1.0, source)
            _refuse_unreadable(counts, source, settings.max_unreadable)
            parts.close()
    except BaseException:
        _clear(folder, task.name)
        raise
    facts = {"source": source, "size": task.data["size"], "parts": parts.n_parts, "rows": counts[PAIR]}
    facts |= {"columns": columns} if columns else {}
    facts |= {"archive": beside} if beside else {}
    return Tally({reason: n for reason, n in sorted(counts.items()) if n}, facts)


def _refuse_unreadable(counts: Counter[str], source: str, limit: float) -> None:
    """Raises DataError for a list of which hardly anything could be read: it is not what it was taken for."""
    n_bad = counts[UNREADABLE] + counts[NOT_UTF8]
    if n_bad > limit * counts.total():
        raise DataError(
            f"{source}: {n_bad:,} of {counts.total():,} rows cannot be read ({UNREADABLE}, {NOT_UTF8}):"
            f" over ingest.max_unreadable={limit:g}: mend the list, name its encoding (ingest.encoding), or"
            " raise that share"
        )


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
            "given": _with_listed_urls(batch, raw_url, url),
            **{name: batch[name] for name in ("tar_path", "tar_offset", "tar_size")},
        }
    )
    is_pair = reason.is_null()
    return _named(table.filter(is_pair)), _refused(batch, table, reason)


def _with_listed_urls(batch: pa.RecordBatch, raw_url: pa.Array, url: pa.Array) -> pa.Array:
    """`given`, with the URL as the list has it, under its column's name, where character references went."""
    changed = pc.fill_null(pc.not_equal(raw_url, url), False)
    bears = pc.replace_with_mask(changed, changed, bears_entity(raw_url.filter(changed)))
    given, urls = batch["given"].filter(bears).to_pylist(), raw_url.filter(bears).to_pylist()
    if not urls:
        return batch["given"]
    name = chosen_columns(batch).get("url", "url")
    made = [to_json({**json.loads(one or "{}"), name: url}) for one, url in zip(given, urls, strict=True)]
    return pc.replace_with_mask(batch["given"], bears, pa.array(made, pa.string()))


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
                reasons.append(NOT_UTF8)
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
