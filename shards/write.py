"""The dataset: planned pairs as WebDataset tars with Parquet sidecars.

Bytes are copied and nothing is decided here. A folder of shards also looks like img2dataset's: the same
names of files, members and JSON fields.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ShardError
from ..runner import Stage, Tally, Task, Worker, beat
from .commit import committed, write_json, write_table
from .files import open_file, read_spans, readable, sha256_of
from .plan import OWN, PLAN, PLAN_SCHEMA
from .schema import IMG2DATASET, SIDECAR, bytes_hash
from .tar import TarWriter

ROWS_AT_ONCE = 512  # pictures held in memory by one task
OPEN_FILES = 64  # raw tars held open by one task
DAMAGED = "picture_damaged"  # the reason of a sample whose picture in raw/ is not what was stored there
MOST_DAMAGED = 0.5  # of a task: above it, it is raw/ that is damaged and not some pictures …
FEW_DAMAGED = 100  # … unless they are as few as this
MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}


def write_tasks(out: Path) -> list[Task]:
    """One task for each planned shard."""
    return [Task("write", path.stem) for path in sorted((out / PLAN).glob("*.parquet"))]


def write_stage(out: Path) -> Stage:
    """Write `shards/<shard>.tar`, `.parquet` and `_stats.json` for each plan."""
    return Stage("write", start_write, (out,))


def start_write(out: Path) -> Worker:
    """The worker of `write`."""

    def write(task: Task) -> Tally:
        return write_shard(task, out)

    return write


def write_shard(task: Task, out: Path) -> Tally:
    """Write one shard of the dataset.

    Counts `written`, and `picture_damaged` where the bytes in raw/ are no longer those that were stored; the
    facts hold the files' sizes and sha256, and by language the pairs and their worst `mismatch_q_v1`.
    Raises ShardError where more than half of the pictures (and more than a hundred) are damaged.
    """
    plan = pq.read_table(readable(out / PLAN / f"{task.name}.parquet"), schema=PLAN_SCHEMA)
    tar, sidecar = (out / "shards" / f"{task.name}.{suffix}" for suffix in ("tar", "parquet"))
    sidecar.unlink(missing_ok=True)  # of an earlier plan: never beside the new tar
    places: list[tuple[int, int] | None] = []
    with committed(tar) as temporary:
        with TarWriter(temporary) as writer, _Raw(out / "raw") as raw:
            for start in range(0, plan.num_rows, ROWS_AT_ONCE):
                places += _append(writer, raw, plan.slice(start, ROWS_AT_ONCE))
                beat(task, len(places), plan.num_rows)
        tar_facts = _file_facts(temporary)
        n = _count_whole(places, plan)
    plan = plan.filter(pa.array([place is not None for place in places]))
    columns = {name: plan[name] for name in (field.name for field in OWN)}
    for at, name in enumerate(("offset", "size")):
        columns[name] = [place[at] for place in places if place is not None]
    columns |= {name: [value] * n for name, value in IMG2DATASET.items()}
    write_table(pa.table(columns, schema=SIDECAR), sidecar)
    stats = {"count": n, "successes": n, "failed_to_download": 0, "failed_to_resize": 0}
    write_json(stats | {"status_dict": {"success": n}}, out / "shards" / f"{task.name}_stats.json")
    facts = {"tar": tar_facts, "parquet": _file_facts(sidecar), "languages": _languages(plan)}
    counts = {"written": n, DAMAGED: len(places) - n}
    return Tally({word: count for word, count in counts.items() if count}, facts)


def _append(writer: TarWriter, raw: _Raw, rows: pa.Table) -> list[tuple[int, int] | None]:
    """Append the samples of `rows`; returns for each where its picture lies (byte offset, size).

    None for a sample that is left out because its picture is damaged.
    """
    samples = rows.to_pylist()
    pictures = raw.read([(row["raw_shard"], row["raw_offset"], row["raw_size"]) for row in samples])
    places: list[tuple[int, int] | None] = []
    for row, picture in zip(samples, pictures, strict=True):
        key, suffix = row["key"], _suffix(picture, row["raw_xxh3"])
        if suffix is None:
            places.append(None)
            continue
        places.append((writer.add(f"{key}.{suffix}", picture), len(picture)))
        writer.add(f"{key}.json", _describe(row))
        writer.add(f"{key}.txt", row["caption"].encode())
    return places


def _suffix(picture: bytes, stored_xxh3: int | None) -> str | None:
    """By the picture's first bytes; None where they are none, or not those that were stored."""
    if stored_xxh3 is not None and bytes_hash(picture) != stored_xxh3:
        return None
    return next((suffix for magic, suffix in MAGIC.items() if picture.startswith(magic)), None)


def _count_whole(places: list[tuple[int, int] | None], plan: pa.Table) -> int:
    """How many samples have a place. Raises ShardError where too few have one."""
    lost = [number for number, place in enumerate(places) if place is None]
    if len(lost) > max(FEW_DAMAGED, MOST_DAMAGED * len(places)):
        first = plan.slice(lost[0], 1).to_pylist()[0]
        raise ShardError(
            f"raw/{first['raw_shard']}.tar",
            first["raw_offset"],
            f"not the picture that was stored there for {first['key']}, and so {len(lost):,} of"
            f" {len(places):,} in this shard: `pairmill verify` says what is damaged",
        )
    return len(places) - len(lost)


def _describe(row: dict[str, Any]) -> bytes:
    """The sample's JSON: img2dataset's fields, then ours. Floats have 7 digits, as many as float32 holds."""
    said: dict[str, Any] = {name: row[name] for name in ("caption", "url", "picture_url", "key")}
    said |= IMG2DATASET
    said |= {name: row[name] for name in ("width", "height", "original_width", "original_height")}
    said |= {"sha256": row["sha256"] and row["sha256"].hex(), "uid": row["key"], "lang_v1": row["lang_v1"]}
    for name in ("cosine_v1", "mismatch_p_v1", "mismatch_q_v1"):
        said[name] = None if row[name] is None else float(f"{row[name]:.7g}")
    return json.dumps(said, ensure_ascii=False).encode()


def _languages(plan: pa.Table) -> dict[str, dict[str, float | None]]:
    """Pairs, scored pairs and worst q of each language; '' where the language is not known."""
    grouped = plan.select(["lang_v1", "mismatch_q_v1"]).group_by("lang_v1", use_threads=False)
    q = "mismatch_q_v1"
    rows = grouped.aggregate([([], "count_all"), (q, "count"), (q, "max")]).to_pylist()
    rows.sort(key=lambda row: row["lang_v1"] or "")
    return {
        row["lang_v1"] or "": {
            "pairs": row["count_all"],
            "scored": row[f"{q}_count"],
            "worst_q": row[f"{q}_max"],
        }
        for row in rows
    }


def _file_facts(path: Path) -> dict[str, Any]:
    return dict(zip(("sha256", "bytes"), sha256_of(path), strict=True))


class _Raw:
    """Pictures from raw shards by place; at most OPEN_FILES of them are open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def read(self, places: list[tuple[str, int, int]]) -> list[bytes]:
        """The bytes at each (shard, offset, size), in the order asked for; read in the order on disk.

        Empty where the tar is too short for them.
        """
        pictures: list[bytes] = [b""] * len(places)
        order = sorted(range(len(places)), key=places.__getitem__)
        for shard, group in groupby(order, key=lambda index: places[index][0]):
            mine = [index for index in group if min(places[index][1:]) >= 0]
            found = read_spans(self._file(shard), [places[index][1:] for index in mine])
            for index, picture in zip(mine, found, strict=True):
                pictures[index] = picture if len(picture) == places[index][2] else b""
        return pictures

    def _file(self, shard: str) -> BinaryIO:
        if shard not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = open_file(self._folder / f"{shard}.tar")
        self._open.move_to_end(shard)
        return self._open[shard]

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
