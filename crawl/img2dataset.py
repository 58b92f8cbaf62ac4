"""Tars that hold pictures already: img2dataset shards (and pairmill's own), and plain WebDataset tars.

A tar with a Parquet file of the same name beside it is a shard: the Parquet's rows are the list, and a row
that succeeded points at its picture in the tar; the others are ordinary rows, to be fetched. In a plain tar
each sample is a row: URL and caption from its `.json`, the caption rather from its `.txt`. A sample without a
URL gets one from its picture's bytes, `https://tar.invalid/<xxh3-128>`: the same on every machine, and no two
pictures share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ..errors import ConfigError, RowError, ShardError
from ..recipe import Ingest
from ..shards.tar import Member, members, read_at
from .columns import CAPTION_NAMES, URL_NAMES, EmptyListError, usual_name
from .given import to_json
from .readers import describe, read_list
from .rows import BATCH_ROWS, UNREADABLE, as_binary, rows_batch

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"}
MAX_TEXT = 2 * 2**20  # bytes of a .txt or .json member
CHUNK = 2**20
NO_HOST = "https://tar.invalid"  # RFC 6761: a name that never resolves


def describe_tar(path: Path, settings: Ingest) -> None:
    """Raises EmptyListError, or ConfigError for a tar (or its Parquet) that cannot be read."""
    try:
        first = next(members(path), None)
    except ShardError as error:
        raise ConfigError(f"{error}: expected an uncompressed tar") from error
    if (listed := _parquet_beside(path)) is not None:
        with open(listed, "rb") as file:
            if "key" not in describe(file, str(listed), settings).names:
                raise ConfigError(f"{listed}: no column 'key', so its rows cannot be found in {path.name}")
    elif first is None:
        raise EmptyListError(f"{path}: the tar holds no files")


def read_tar(path: Path, settings: Ingest) -> Iterator[pa.RecordBatch]:
    """The rows of a shard or of a plain tar, as ROWS batches. Raises ShardError for a broken tar."""
    listed = _parquet_beside(path)
    return _read_samples(path, settings) if listed is None else _read_shard(path, listed, settings)


def _parquet_beside(path: Path) -> Path | None:
    listed = path.with_suffix(".parquet")
    return listed if listed.is_file() else None


def _read_shard(path: Path, listed: Path, settings: Ingest) -> Iterator[pa.RecordBatch]:
    index = {member.stem: member for member in members(path) if member.suffix in PICTURES}
    with open(listed, "rb") as file:
        names = [name for name in ("key", "status") if name in pq.read_schema(file).names]
        marks = pq.read_table(file, columns=names)
        keys = marks["key"].to_pylist()
        status = marks["status"].to_pylist() if "status" in names else ["success"] * len(keys)
        at = 0
        for batch in read_list(file, str(listed), settings):
            end = at + len(batch)
            held = [
                index.get(str(key)) if said == "success" else None
                for key, said in zip(keys[at:end], status[at:end], strict=True)
            ]
            yield _placed(batch, held, path)
            at = end


def _placed(batch: pa.RecordBatch, held: list[Member | None], path: Path) -> pa.RecordBatch:
    columns = {name: batch.column(name) for name in ("url", "caption", "given", "unreadable")}
    placed = rows_batch(
        len(batch),
        **columns,
        tar_path=pa.array([None if member is None else str(path) for member in held], pa.string()),
        tar_offset=pa.array([None if member is None else member.offset for member in held], pa.int64()),
        tar_size=pa.array([None if member is None else member.size for member in held], pa.int64()),
    )
    return placed.replace_schema_metadata(batch.schema.metadata)


def _read_samples(path: Path, settings: Ingest) -> Iterator[pa.RecordBatch]:
    samples = groupby(members(path), key=attrgetter("stem"))
    with open(path, "rb") as file:
        rows = (_sample(file, {member.suffix: member for member in group}, settings) for _, group in samples)
        while chunk := list(islice(rows, BATCH_ROWS)):
            url, caption, given, unreadable, held = zip(*chunk, strict=True)
            batch = rows_batch(
                len(chunk),
                url=as_binary(url),
                caption=pa.array(caption, pa.binary()),
                given=pa.array(given, pa.string()),
                unreadable=pa.array(unreadable, pa.string()),
            )
            yield _placed(batch, list(held), path)


def _sample(file: BinaryIO, parts: dict[str, Member], settings: Ingest) -> tuple[Any, ...]:
    """URL, caption, given, reason and picture of one sample."""
    picture = next((member for suffix, member in parts.items() if suffix in PICTURES), None)
    try:
        if picture is None:
            raise RowError("picture_missing")
        said = _object(_bytes(file, parts.get("json")))
        url = _take(said, settings.url_column, URL_NAMES)
        caption = (_take(said, settings.caption_column, CAPTION_NAMES) or "").encode()
        caption = _bytes(file, parts.get("txt")) or caption
        kept = said if settings.carry is None else {key: said[key] for key in settings.carry if key in said}
        given = to_json(kept) if kept else None
    except RowError as error:
        return None, None, None, error.reason, picture
    except (TypeError, UnicodeEncodeError):
        return None, None, None, UNREADABLE, picture
    return url or f"{NO_HOST}/{_content_hash(file, picture)}", caption, given, None, picture


def _bytes(file: BinaryIO, member: Member | None) -> bytes:
    if member is None:
        return b""
    if member.size > MAX_TEXT:
        raise RowError(UNREADABLE, member.name)
    return read_at(file, member.offset, member.size)


def _object(text: bytes) -> dict[str, Any]:
    said = None
    with suppress(ValueError):
        said = orjson.loads(text) if text else {}
    if not isinstance(said, dict):
        raise RowError(UNREADABLE)
    return said


def _take(said: dict[str, Any], asked: str | None, usual: tuple[str, ...]) -> str | None:
    """The text under the asked or usual name, taken out of `said`."""
    name = asked or usual_name(list(said), usual)
    value = said.pop(name, None) if name is not None else None
    return value if isinstance(value, str) else None


def _content_hash(file: BinaryIO, member: Member) -> str:
    digest = xxhash.xxh3_128()
    for at in range(0, member.size, CHUNK):
        digest.update(read_at(file, member.offset + at, min(CHUNK, member.size - at)))
    return digest.hexdigest()
