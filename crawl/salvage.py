"""A raw shard that is fetched again keeps what is whole of it: links die, and a picture at hand asks nobody.

One rule: only what the shard's own sidecar says of the same plan, and bytes that are those that were stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ShardError
from ..shards.files import open_file, readable
from ..shards.schema import RAW, bytes_hash
from ..shards.tar import read_at
from .decode import Picture
from .rawshard import Result, ShardPlan

OK = "ok"
SAME = ("width", "height", "original_width", "original_height", "format")  # in a Picture and in the sidecar


def salvaged(raw: Path, name: str, plan: ShardPlan, spill: BinaryIO) -> dict[int, Result]:
    """The results of an earlier try, by the URL's number in the plan; their pictures are copied to `spill`.

    Empty where the shard has no sidecar of this plan. A picture that is damaged is not among them.
    """
    sidecar, tar = (raw / f"{name}.{kind}" for kind in ("parquet", "tar"))
    if not sidecar.is_file() or not tar.is_file():
        return {}
    try:
        rows = pq.read_table(readable(sidecar), schema=RAW)
    except (OSError, pa.ArrowException):
        return {}
    if not rows["uid"].equals(plan.table["uid"]) or not rows["url_hash"].equals(plan.table["url_hash"]):
        return {}
    found = {}
    with open_file(tar, ahead=True) as file:
        for number, row in enumerate(rows.take(pa.array(plan.first)).to_pylist()):
            if (result := _result(row, file, spill)) is not None:
                found[number] = result
    return found


def _result(row: dict[str, Any], file: BinaryIO, spill: BinaryIO) -> Result | None:
    """What the row says; None where its picture is not to be had."""
    result = Result(
        row["outcome"], row["http_status"], row["final_url"], row["original_bytes"], row["sha256"]
    )
    if result.outcome != OK:
        return result
    try:
        data = read_at(file, row["offset"], row["size"])
    except ShardError:
        return None
    if bytes_hash(data) != row["stored_xxh3"]:
        return None
    known = {name: row[name] for name in SAME}
    hashes = {"pdq": row["pdq_v1"], "pdq_quality": row["pdq_quality_v1"], "chroma": row["chroma_v1"]}
    result.picture = Picture(data=b"", **known, **hashes)
    result.spilled = (spill.tell(), len(data))
    spill.write(data)
    return result
