"""_log/attempts/: a row for every try at every URL of a raw shard. No data: it differs between runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from .answer import Answer
from .signal import describe
from .visit import Visit

ATTEMPTS = Path("_log") / "attempts"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # hex of url_hash
        ("attempt", pa.int16()),  # 1, 2, … of the URL in this task
        ("ended_at", pa.timestamp("ms", "UTC")),
        ("outcome", pa.string()),  # of this try; of the last one before the picture is decoded
        ("http_status", pa.int16()),  # of the last response
        ("bytes", pa.int64()),  # of the body
        ("waited_ms", pa.float32()),  # for the site's files, a turn at the host and a slot
        ("asked_ms", pa.float32()),  # on the network, redirects included
        ("redirects", pa.int16()),
        ("final_url", pa.string()),
        ("etag", pa.string()),
        ("last_modified", pa.string()),
        ("consent", pa.string()),  # what was said against its use
        ("detail", pa.string()),
    ]
)


class Attempts:
    """The tries of one task, as they end."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._columns: list[list[Any]] = [[] for _ in SCHEMA]

    def add(self, key: str, attempt: int, begun: float, visit: Visit, answer: Answer) -> None:
        """begun: `time.perf_counter` at which the try began."""
        asked_s = self._deadline_s - visit.left_s
        row = (
            *(key, attempt, round(time.time() * 1000), answer.outcome, answer.status, len(answer.body)),
            *(1000 * (time.perf_counter() - begun - asked_s), 1000 * asked_s, visit.redirects),
            *(answer.final_url, answer.etag, answer.last_modified),
            *(describe(visit.signals), answer.detail),
        )
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def table(self) -> pa.Table:
        """The rows by key and attempt."""
        arrays = [pa.array(column, kind.type) for column, kind in zip(self._columns, SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=SCHEMA)
        return table.sort_by([("key", "ascending"), ("attempt", "ascending")])
