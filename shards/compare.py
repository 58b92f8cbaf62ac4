"""A tar against the rows that describe it: the same members, in the same places, and nothing else.

One rule: a difference is one line that says where, what was found and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .files import open_file, readable
from .job import read_tally, tally_path
from .schema import RAW
from .tar import BLOCK, END, Member, members, read_at

NO_ROW = "not_fetched"  # counted by `reuse` of a URL whose own task failed: raw/ has no row of it
FACTS = ("txt", "json")  # members of a sample beside its picture


def sample_differences(tar: Path, rows: pa.Table) -> Iterator[str]:
    """The members of a tar against its sidecar, in order. Raises ShardError where the tar is broken."""
    said = rows.select(["uid", "key", "caption", "offset", "size"]).to_pylist()
    parts: dict[str, Member] = {}
    with open_file(tar, ahead=True) as file:
        groups = _grouped(members(tar))
        for row in said:
            key, parts = next(groups, ("the end", {}))
            yield from _sample(file, tar, row, key, parts)
            if key != row["key"]:
                return  # one line for a shift, not one for each sample after it
        for key, parts in groups:  # noqa: B007  the last ones are needed below
            yield f"{tar}: sample {key} is not in the sidecar"
    yield from _ending(tar, [*parts.values()])


def _grouped(walk: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Neighbouring members of one key, by suffix."""
    key, parts = "", dict[str, Member]()
    for member in walk:
        if member.stem != key and parts:
            yield key, parts
            parts = {}
        key = member.stem
        parts[member.suffix] = member
    if parts:
        yield key, parts


def _sample(
    file: BinaryIO, tar: Path, row: dict[str, Any], key: str, parts: dict[str, Member]
) -> Iterator[str]:
    if key != row["key"] or row["key"] != row["uid"].hex():
        yield f"{tar}: {key} where the sidecar has key {row['key']} of uid {row['uid'].hex()}"
        return
    picture = next((member for suffix, member in parts.items() if suffix not in FACTS), None)
    if len(parts) != 3 or picture is None or not parts.keys() >= {*FACTS}:
        yield f"{tar}: sample {key} has {sorted(parts)}, expected a picture, txt and json"
        return
    if (picture.offset, picture.size) != (row["offset"], row["size"]):
        yield (
            f"{tar}: picture of {key} is {picture.size:,} bytes at {picture.offset:,},"
            f" expected {row['size']} at {row['offset']}"
        )
    text, facts = (read_at(file, parts[kind].offset, parts[kind].size) for kind in FACTS)
    if text != row["caption"].encode():
        yield f"{tar}: {key}.txt is not the caption in the sidecar"
    if json.loads(facts).get("uid") != row["key"]:
        yield f"{tar}: {key}.json bears another uid"


def _ending(tar: Path, last: Sequence[Member]) -> Iterator[str]:
    """A tar that we wrote ends with its `last` members and two empty blocks."""
    end = max((member.offset + member.size + -member.size % BLOCK for member in last), default=0)
    if (size := tar.stat().st_size) != end + len(END):
        yield f"{tar}: {size:,} bytes, expected {end + len(END):,}: something follows, or the end was cut"


def raw_differences(out: Path, name: str) -> Iterator[str]:
    """One raw shard: its tally against the sidecar, the sidecar against the tars that it points into.

    Raises ShardError where the tar is broken, OSError or ArrowInvalid where a file cannot be read.
    """
    tar, sidecar = (out / "raw" / f"{name}.{kind}" for kind in ("tar", "parquet"))
    rows = pq.read_table(readable(sidecar), schema=RAW, columns=["key", "outcome", "offset", "size", "tar"])
    stage = "reuse" if tally_path(out, "reuse", name).exists() else "fetch"
    tally = read_tally(out, stage, name)
    counts = {row["values"]: row["counts"] for row in rows["outcome"].value_counts().to_pylist()}
    if tally is None:
        yield f"{tally_path(out, stage, name)}: not a tally, expected the counts of raw/{name}"
    elif {word: n for word, n in tally.counts.items() if n and word != NO_ROW} != counts:
        yield f"{sidecar}: outcomes {counts}, expected {dict(tally.counts)} by its tally"
    if stage == "reuse":
        yield from _pointers(out, sidecar, rows)
        return
    said = _places(rows)
    found = list(members(tar))
    pictures = {member.stem: (member.offset, member.size) for member in found if member.suffix not in FACTS}
    for key in sorted(said.keys() | pictures.keys()):
        if said.get(key) != pictures.get(key):
            yield f"{tar}: picture {key} is at {_place(pictures.get(key))}, expected {_place(said.get(key))}"
    yield from _ending(tar, found[-1:])


def _pointers(out: Path, sidecar: Path, rows: pa.Table) -> Iterator[str]:
    """Rows of pictures that lie in other raw shards against the sidecars of these."""
    rows = rows.filter(pc.field("outcome") == "ok")
    for name in pc.unique(rows["tar"]).to_pylist():
        said = _places(rows.filter(pc.equal(rows["tar"], name)))
        owner = out / "raw" / f"{name}.parquet"
        there = _places(
            pq.read_table(readable(owner), schema=RAW, columns=["key", "outcome", "offset", "size"])
        )
        for key, place in sorted(said.items()):
            if there.get(key) != place:
                found = _place(there.get(key))
                yield f"{sidecar}: picture {key} at {_place(place)} of raw/{name}.tar, expected {found}"


def _places(rows: pa.Table) -> dict[str, tuple[int, int]]:
    stored = rows.filter(pc.field("outcome") == "ok")
    columns = [stored[name].to_pylist() for name in ("key", "offset", "size")]
    return {key: (offset, size) for key, offset, size in zip(*columns, strict=True)}


def _place(place: tuple[int, int] | None) -> str:
    return "no place" if place is None else f"byte {place[0]:,}, {place[1]:,} long"
