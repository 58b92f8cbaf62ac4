"""What the tasks of `noise` do where its pairs are several sources; `noise_phases.py` has their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..runner import Tally, Task, beat
from ..shards import schema
from ..shards.commit import write_json
from ..shards.exchange import answers, gather, partition_of, reply, scatter
from ..shards.files import readable
from ..shards.selection import uids_to_array
from ..shards.tables import read_json
from ..shards.tables import write_json as put_json
from .cells import Cells, Tables, by_language, candidates_files, count, known, near_files
from .embedded import Source
from .evidence import Space
from .histogram import BINS, Histogram
from .noise_plan import Way
from .passes import Scored, Scorer, batches, calibrate, summary, write_scores
from .passes import measure as measure_batch
from .passes import score as score_batch
from .sql import database
from .strangers import describe, draw, null_from

LANGUAGE = pa.schema([("uid", schema.UID), ("lang_v1", pa.string())])
NEAR = pa.schema([("uid", schema.UID), ("near_group_v1", schema.UID)])
RECORD = pa.schema([("data", pa.large_binary())])


def send(way: Way, task: Task) -> Tally:
    """Rows of a source, or languages of some parts, to the partitions of their uids."""
    name, out = f"{task.data['number']:06d}", way.plan.out
    if "shards" in task.data:
        rows, folder = Source(out, task.data["shards"]).pairs(), "pairs"
    else:
        paths = [out / "scores/language" / f"{part}.parquet" for part in task.data["parts"]]
        rows = pa.concat_tables(
            pq.read_table(readable(path), columns=LANGUAGE.names).cast(LANGUAGE) for path in paths
        )
        folder = "languages"
    part = partition_of(uids_to_array(rows["uid"]), way.parts)
    scatter(way.store, way.name(folder), name, rows, part, way.parts)
    return Tally({"sent": len(rows)})


def join(way: Way, task: Task) -> Tally:
    """What is known of each pair of a partition, back to its source. Facts: pairs by language and fold."""
    plan, part = way.plan, task.data["number"]
    came = [table for _, table in gather(way.store, way.name("pairs"), part)]
    pairs = pa.concat_tables(came)
    near, candidates = near_files(plan.out), candidates_files(plan.out)
    languages = by_language(plan.out, plan.settings)
    with database(plan.out, f"{task.stage}-{part}", memory_mb=plan.memory_mb) as connection:
        if languages:
            sent = (table for _, table in gather(way.store, way.name("languages"), part))
            connection.register("languages", _reader(sent, LANGUAGE))
        connection.register("near", _reader(_range(near, NEAR, way.parts, part), NEAR))
        connection.register(
            "candidates", _reader(_range(candidates, schema.SELECTION, way.parts, part), schema.SELECTION)
        )
        tables = Tables(
            "languages" if languages else None, "near" if near else None, "candidates" if candidates else None
        )
        told = known(connection, pairs["uid"], tables)
    reply(way.store, way.name("pairs"), part, told, [len(table) for table in came])
    found = count(told["lang"], pairs["fold"].to_numpy())
    return Tally({"joined": len(pairs)}, {"pairs": [[*key, n] for key, n in sorted(found.items())]})


def _reader(tables: Iterator[pa.Table], fields: pa.Schema) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(
        fields, (batch for table in tables for batch in table.select(fields.names).cast(fields).to_batches())
    )


def _range(paths: Sequence[Path], fields: pa.Schema, parts: int, part: int) -> Iterator[pa.Table]:
    """Rows of a partition, from files sorted by uid: of each only the row groups that reach into it."""
    for path in paths:
        with pq.ParquetFile(readable(path)) as file:
            column = file.schema_arrow.get_field_index("uid")
            for number in range(file.num_row_groups):
                said = file.metadata.row_group(number).column(column).statistics
                if said is not None and said.has_min_max:
                    ends = np.frombuffer(bytes(said.min) + bytes(said.max), "V16")
                    first, last = partition_of(ends, parts)
                    if not first <= part <= last:
                        continue
                table = file.read_row_group(number, columns=fields.names)
                yield table.filter(pa.array(partition_of(uids_to_array(table["uid"]), parts) == part))


def measure(way: Way, cells: Cells, task: Task) -> Tally:
    """Moments and a share of the sample of every cell. Facts: how many dimensions."""
    plan, name = way.plan, f"{task.data['number']:06d}"
    source = Source(plan.out, task.data["shards"])
    pairs = source.pairs()
    part = partition_of(uids_to_array(pairs["uid"]), way.parts)
    told = answers(way.store, way.name("pairs"), name, part, way.parts)
    of_row = cells.of(told["lang"], pairs["fold"].to_numpy())
    counted = told["counted"].to_numpy()
    way.store.put(way.name(f"rows/{name}"), of_row.tobytes() + counted.astype(np.uint8).tobytes())
    with database(plan.out, f"{task.stage}-{name}", memory_mb=plan.memory_mb) as connection:
        drawn = draw(connection, pairs["uid"], of_row, cells, plan.settings.seed)
    several = batches(cells.n, source.dim, plan.settings, plan.memory_mb)
    for number, batch in enumerate(several):
        before, total = number * len(source.shards), len(several) * len(source.shards)
        spaces = measure_batch(
            source, of_row, batch, lambda done, at=before, of=total: beat(task, at + done, of)
        )
        moments = pa.table([[space.to_bytes() for space in spaces.values()]], schema=RECORD)
        to = np.array([cell - batch.start for cell in spaces], np.int64)
        scatter(way.store, way.name(f"moments-{batch.start}"), name, moments, to, len(batch))
        sample = describe(plan.out, source, pairs["uid"], told["near"], drawn.of(batch))
        to = sample["cell"].to_numpy() - batch.start
        scatter(way.store, way.name(f"sample-{batch.start}"), name, sample, to, len(batch))
    return Tally({"measured": source.n}, {"dim": source.dim})


def null(way: Way, cells: Cells, dim: int, task: Task) -> Tally:
    """What scores the pairs of one cell; nothing where none can be scored."""
    plan, cell = way.plan, task.data["number"]
    batch = next(batch for batch in batches(cells.n, dim, plan.settings, plan.memory_mb) if cell in batch)
    space = Space(dim)
    for _, table in gather(way.store, way.name(f"moments-{batch.start}"), cell - batch.start):
        for data in table["data"].to_pylist():
            space += Space.from_bytes(data)
    if space.n:
        sample = [
            table for _, table in gather(way.store, way.name(f"sample-{batch.start}"), cell - batch.start)
        ]
        frame = space.frame()
        scorer = Scorer(frame, null_from(frame, sample, cell, plan.settings))
        way.store.put(way.name(f"scorers/{cell:06d}"), scorer.to_bytes())
    return Tally({"measured": space.n})


def _rows(way: Way, name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the cell of each pair of a source, and (n,) whether noise is a share of it."""
    data = way.store.read(way.name(f"rows/{name}"))
    if len(data) != 5 * n:
        raise DataError(f"{way.store.place(way.name(f'rows/{name}'))}: {len(data)} bytes, expected {5 * n}")
    return np.frombuffer(data, np.int32, n), np.frombuffer(data, np.uint8, n, 4 * n).astype(bool)


def score(way: Way, cells: Cells, task: Task) -> Tally:
    """The p-value of every pair of a source, and the histogram of each group."""
    plan, name = way.plan, f"{task.data['number']:06d}"
    source = Source(plan.out, task.data["shards"])
    of_row, counted = _rows(way, name, source.n)
    present, scored = set(np.unique(of_row).tolist()), Scored(source.n, len(cells.groups))
    several = batches(cells.n, source.dim, plan.settings, plan.memory_mb)
    there = {int(cell) for cell in way.store.names(way.name("scorers"))}
    for number, batch in enumerate(several):
        before, total = number * len(source.shards), len(several) * len(source.shards)
        scorers = {
            cell: Scorer.from_bytes(way.store.read(way.name(f"scorers/{cell:06d}")))
            for cell in sorted(present & there & set(batch))
        }
        score_batch(
            source,
            of_row,
            counted,
            scorers,
            cells.group_of_cell,
            batch=batch,
            scored=scored,
            said=lambda done, at=before, of=total: beat(task, at + done, of),
        )
    way.store.put(way.name(f"p/{name}"), scored.p.tobytes())
    groups = len(cells.groups)
    held = pa.table([[histogram.to_bytes() for histogram in scored.histograms]], schema=RECORD)
    scatter(way.store, way.name("histograms"), name, held, np.arange(groups), groups)
    return Tally(scored.counts)


def merge(way: Way, task: Task) -> Tally:
    """The q-values of one group's bins, and what is said of it."""
    group, total = task.data["number"], Histogram()
    for _, table in gather(way.store, way.name("histograms"), group):
        for data in table["data"].to_pylist():
            total += Histogram.from_bytes(data)
    q, said = calibrate(total)
    way.store.put(way.name(f"q/{group:06d}"), q.tobytes())
    put_json(way.store, way.name(f"said/{group:06d}"), said)
    return Tally({"counted": total.n})


def finish(way: Way, task: Task) -> Tally:
    """Write the scores of a source's shards. Facts: its shards; the first task's have the calibration too.

    Counts pairs: 'ok', and 'not_scored' where the embedding is broken.
    """
    out, name, store = way.plan.out, f"{task.data['number']:06d}", way.store
    source = Source(out, task.data["shards"])
    cells = Cells(**read_json(store, way.name("cells.json")))
    of_row, _ = _rows(way, name, source.n)
    p = np.frombuffer(store.read(way.name(f"p/{name}")), np.float32)
    q = np.stack(
        [np.frombuffer(store.read(way.name(f"q/{group:06d}"))) for group in range(len(cells.groups))]
    ).reshape(-1, BINS)
    for done, _ in enumerate(write_scores(out, source, cells.group_of_cell[of_row], p, q)):
        beat(task, done, len(source.shards), "writing")
    ok = int(np.isfinite(p).sum())
    facts = {"shards": task.data["shards"]}
    if task.data["number"] == 0:
        said = [read_json(store, way.name(f"said/{group:06d}")) for group in range(len(cells.groups))]
        calibration = summary(cells, said)
        write_json(calibration, out / "scores/noise/calibration.json")
        facts |= calibration
    return Tally({"ok": ok, "not_scored": len(p) - ok}, facts)
