"""Tars that hold pictures already: img2dataset shards (and pairmill's own), and plain WebDataset tars.

A tar with a Parquet file of the same name beside it is a shard: the Parquet's rows are the list, and a row
that succeeded points at its picture in the tar; the others are ordinary rows, to be fetched. In a plain tar
each sample is a row: URL and caption from its `.json`, the caption rather from its `.txt`. A sample without a
URL gets one from its picture's bytes, `https://tar.invalid/<xxh3-128>`: the same on every machine, and no two
pictures share it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ConfigError, RowError, ShardError
from ..recipe import Ingest
from ..shards.samples import PICTURES, Sample, content_hash, read_samples, visible
from ..shards.tar import Member, read_at
from .columns import CAPTION_NAMES, URL_NAMES, EmptyListError, usual_name
from .given import to_json
from .readers import describe, read_list
from .rows import BATCH_ROWS, UNREADABLE, as_binary, rows_batch

MAX_TEXT = 2 * 2**20  # bytes of a .txt or .json member
BOM = b"\xef\xbb\xbf"
NO_HOST = "https://tar.invalid"  # RFC 6761: a name that never resolves


def describe_tar(path: Path, settings: Ingest) -> None:
    """Raises EmptyListError, or ConfigError for a tar (or its Parquet) that cannot be read."""
    try:
        first = next(visible(path), None)
    except ShardError as error:
        raise ConfigError(f"{error} (expected an uncompressed tar)") from error
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
    index = _pictures(path)
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


def _pictures(path: Path) -> dict[str, Member]:
    """The pictures of a shard by key, and by the key's last part: a shard may be packed anew in a folder."""
    found = {
        member.stem: member
        for member in visible(path)
        if member.suffix.rpartition(".")[2] in PICTURES and not member.problem
    }
    bare = Counter(key.rpartition("/")[2] for key in found)
    short = {key.rpartition("/")[2]: member for key, member in found.items()}
    return {key: member for key, member in short.items() if bare[key] == 1} | found


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
    samples = read_samples(path)
    with open(path, "rb") as file:
        rows = ((*_row(file, sample, settings), sample.picture) for sample in samples)
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


def _row(
    file: BinaryIO, sample: Sample, settings: Ingest
) -> tuple[str, bytes | None, str | None, str | None]:
    """URL, caption, given and reason of one sample; its members' names stand in for a URL that it lacks."""
    try:
        if sample.reason is not None or sample.picture is None:
            raise RowError(sample.reason or "picture_missing")
        said = _object(_bytes(file, sample.json))
        url = _take(said, settings.url_column, URL_NAMES)
        caption = (_take(said, settings.caption_column, CAPTION_NAMES) or "").encode()
        caption = _bytes(file, sample.txt).removeprefix(BOM) or caption
        kept = said if settings.carry is None else {key: said[key] for key in settings.carry if key in said}
        given = to_json(kept) if kept else None
    except RowError as error:
        return sample.named, None, None, error.reason
    except (TypeError, UnicodeEncodeError):
        return sample.named, None, None, UNREADABLE
    # the name behind the mark is cut off where the URL is made canonical, and shown where the row is rejected
    return (
        url or f"{NO_HOST}/{content_hash(file, sample.picture)}#{sample.picture.name}",
        caption,
        given,
        None,
    )


def _bytes(file: BinaryIO, member: Member | None) -> bytes:
    if member is None:
        return b""
    if member.size > MAX_TEXT or member.problem:
        raise RowError(UNREADABLE, member.name)
    return read_at(file, member.offset, member.size)


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object of a member. NaN and infinities, which orjson refuses, are read too."""
    said = None
    try:
        said = orjson.loads(text) if text.strip() else {}
    except ValueError:
        with suppress(ValueError, RecursionError):
            said = json.loads(text)
    if not isinstance(said, dict):
        raise RowError(UNREADABLE)
    return said


def _take(said: dict[str, Any], asked: str | None, usual: tuple[str, ...]) -> str | None:
    """The text under the asked or usual name, taken out of `said`."""
    name = asked or usual_name(list(said), usual)
    value = said.pop(name, None) if name is not None else None
    return value if isinstance(value, str) else None
