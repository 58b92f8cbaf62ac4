"""Pairs, scores and selections against the tallies that counted them: whole files with the rows expected.

One rule: only the files' footers are read, so that it costs next to nothing; there are no hashes of columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..runner import Tally
from .files import readable
from .job import finished_tasks, read_tally

# stage -> its folder, where the file of a part lies row by row beside the part
BESIDE = {
    "dedup": "scores/copies",
    "language": "scores/language",
    "frequency": "scores/frequency",
    "entries": "scores/entries",
    "screen": "selection/screen",
}


def count_differences(out: Path) -> Iterator[str]:
    """A line for each file, or group of files, of finished tasks that has not the rows that were counted."""
    yield from _pairs(out)
    parts = sorted((out / "pairs").glob("*.parquet"))
    for stage, folder in BESIDE.items():
        if finished_tasks(out, stage):
            for part in parts:
                yield from _rows_of([out / folder / part.name], _count(part))
    yield from _embedded(out)
    for name, tally in _tallies(out, "near"):
        yield from _rows_of([out / "scores" / "near" / f"{name}.parquet"], tally.seen)
    for _, tally in _tallies(out, "noise"):
        shards = tally.facts.get("shards") or finished_tasks(out, "embed")
        yield from _rows_of([out / "scores" / "noise" / f"{name}.parquet" for name in shards], tally.seen)
    for stage in ("choose", "decide"):
        for name, tally in _tallies(out, stage):
            kept, path = tally.counts.get("kept", 0), out / "selection" / f"{name}.parquet"
            yield from _rows_of([path], kept)
            yield from _rows_of([path.with_suffix(".reasons.parquet")], tally.seen - kept)


def _tallies(out: Path, stage: str) -> Iterator[tuple[str, Tally]]:
    for name in finished_tasks(out, stage):
        if (tally := read_tally(out, stage, name)) is not None:
            yield name, tally


def _pairs(out: Path) -> Iterator[str]:
    """The parts and the rejected rows of each list."""
    for name, tally in _tallies(out, "ingest"):
        parts, rows = tally.facts["parts"], tally.facts["rows"]
        yield from _rows_of([out / "pairs" / f"{name}-{i:05d}.parquet" for i in range(parts)], rows)
        yield from _rows_of([out / "pairs" / "rejected" / f"{name}.parquet"], tally.seen - rows)


def _embedded(out: Path) -> Iterator[str]:
    folder = out / "scores" / "embedding"
    for name, tally in _tallies(out, "embed"):
        yield from _rows_of([folder / f"{name}.parquet"], tally.counts.get("scored", 0))
        for kind in ("image", "text"):
            if not (path := folder / f"{name}.{kind}.npy").is_file():
                yield f"{path}: missing"


def _rows_of(files: Sequence[Path], expected: int | None) -> Iterator[str]:
    """What is wrong with files that hold `expected` rows together; None where that is not known."""
    counts = {path: _count(path) for path in files}
    for path, count in counts.items():
        if count is None:
            yield f"{path}: {'not a whole Parquet file' if path.is_file() else 'missing'}"
    found = sum(count or 0 for count in counts.values())
    if None not in counts.values() and expected is not None and found != expected:
        where = ", ".join(map(str, files[:1])) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        yield f"{where}: {found:,} rows, expected {expected:,} by the tally"


def _count(path: Path) -> int | None:
    """The rows of a Parquet file by its footer, or None where it has none."""
    try:
        return pq.read_metadata(readable(path)).num_rows
    except (OSError, pa.ArrowException):
        return None
