"""The Parquet files of an output folder as DuckDB views: only those that exist, with bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from ..errors import DataError
from ..shards.duck_files import reading

VIEWS = {
    "pairs": "pairs/*.parquet",
    "rejected": "pairs/rejected/*.parquet",
    "copies": "scores/copies/*.parquet",
    "language": "scores/language/*.parquet",
    "screen": "selection/screen/*.parquet",
    "attempts": "raw/*.parquet",
    "near": "scores/near/*.parquet",
    "leaks": "scores/leaks/*.parquet",
    "evaluation": "scores/evaluation/*.parquet",
    "embedding": "scores/embedding/*.parquet",
    "noise": "scores/noise/*.parquet",
    "samples": "shards/*.parquet",
    "fetch_plan": "_plan/fetch/*.parquet",
    "reuse_plan": "_plan/reuse/*.parquet",
    "write_plan": "_plan/write/*.parquet",
}


class Tables:
    """Queries over an output folder: `have` names its views; `raw` is the valid attempt of each pair."""

    def __init__(self, out: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self.out, self._connection = out, connection
        self.have: set[str] = set()
        for name, pattern in VIEWS.items():
            self.view(name, pattern)
        self.view("near", "scores/near-embedding/*.parquet")  # says more than the one by hash
        if "attempts" in self.have:
            self._connection.execute(f"CREATE VIEW raw AS {self._valid_attempts()}")
            self.have.add("raw")

    def view(self, name: str, pattern: str) -> None:
        """Name the files that match `pattern` below the folder, if there are any."""
        if not any(self.out.glob(pattern)):
            return
        # a folder may be called `a[1]` or `it's`: neither is part of the pattern
        where = (re.sub(r"([\[\]*?])", r"[\1]", str(self.out)) + "/" + pattern).replace("'", "''")
        self.rows(f"CREATE OR REPLACE VIEW {name} AS FROM read_parquet('{where}', filename = true)")
        self.have.add(name)

    def select(self, selection: str) -> None:
        """Make the views `kept` and `dropped` of one decision."""
        self.view("kept", f"selection/{selection}.parquet")
        self.view("dropped", f"selection/{selection}.reasons.parquet")

    def _valid_attempts(self) -> str:
        # the window costs a sort of the whole table, and only a repeated fetch needs it
        if not any((self.out / "raw").glob("w*.parquet")):
            return "FROM attempts"
        return "FROM attempts QUALIFY row_number() OVER (PARTITION BY uid ORDER BY wave DESC) = 1"

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer as a list: for aggregates and LIMITs only. Raises DataError for an unreadable file."""
        try:
            return self._connection.execute(query, values).fetchall()
        except duckdb.Error as error:
            raise DataError(f"{self.out}: a Parquet file cannot be read: {error}") from error

    def records(self, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The same, with column names."""
        found = self.rows(query, values)
        names = [column[0] for column in self._connection.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]


@contextmanager
def opened(out: Path, *, memory_mb: int = 1_000) -> Iterator[Tables]:
    """The tables of `out`; what does not fit into `memory_mb` is spilled to a temporary folder."""
    with TemporaryDirectory(prefix="pairmill-") as spill:
        config: dict[str, Any] = {
            "memory_limit": f"{memory_mb}MB",
            "temp_directory": spill,
            "preserve_insertion_order": "false",
        }
        with duckdb.connect(config=config) as connection, reading(connection, out):
            yield Tables(out, connection)
