"""The tasks of `noise` on sources and cells, once it is known what is known of each pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..errors import DataError
from ..runner import Tally, Task, beat
from ..shards.commit import write_json
from ..shards.exchange import answers, gather, partition_of, scatter
from ..shards.selection import uids_to_array
from ..shards.tables import read_json
from ..shards.tables import write_json as put_json
from .cells import Cells
from .embedded import Source
from .evidence import Space
from .histogram import BINS
from .noise_files import calibrate, summary, write_scores
from .noise_hearing import load_frames, read_records, save_frame, send_asked
from .noise_plan import Way
from .passes import Counts, Scored, Scorer, batches
from .passes import measure as measure_batch
from .passes import score as score_batch
from .places import asked_of, places
from .sql import database
from .strangers import describe, draw, null_from, sampled, witnesses_from

DATA = pa.schema([("data", pa.large_binary())])
ROW = np.dtype([("cell", "<i4"), ("part", "<i4"), ("counted", "u1"), ("good", "u1")])


def measure(way: Way, cells: Cells, task: Task) -> Tally:
    """Moments and a share of the sample of every cell; each pair to its picture's partition. Facts: the
    dimensions."""
    plan, name = way.plan, f"{task.data['number']:06d}"
    source = Source(plan.out, task.data["shards"])
    pairs = source.pairs()
    part = partition_of(uids_to_array(pairs["uid"]), way.parts)
    told = answers(way.store, way.name("pairs"), name, part, way.parts)
    of_row = cells.of(told["lang"], pairs["fold"].to_numpy())
    with database(plan.out, f"{task.stage}-{name}", memory_mb=plan.memory_mb) as connection:
        drawn = draw(connection, pairs["uid"], of_row, cells, plan.settings.seed)
    rows, place = np.zeros(source.n, ROW), places(plan.out, source, told["near"])
    several, good = batches(cells.n, source.dim, plan.settings, plan.memory_mb), np.zeros(source.n, bool)
    for number, batch in enumerate(several):
        before, total = number * len(source.shards), len(several) * len(source.shards)
        spaces = measure_batch(
            source, of_row, batch, lambda done, at=before, of=total: beat(task, at + done, of), good
        )
        moments = pa.table([[space.to_bytes() for space in spaces.values()]], schema=DATA)
        to = np.array([cell - batch.start for cell in spaces], np.int64)
        scatter(way.store, way.name(f"moments-{batch.start}"), name, moments, to, len(batch))
        sample = describe(source, place, drawn.of(batch))
        to = sample["cell"].to_numpy() - batch.start
        scatter(way.store, way.name(f"sample-{batch.start}"), name, sample, to, len(batch))
    counted = told["counted"].to_numpy()
    asked = asked_of(pairs["uid"], place, of_row, counted, drawn.row)
    rows["cell"], rows["counted"], rows["good"] = of_row, counted, good
    rows["part"] = send_asked(way, name, source, asked, good, drawn)
    way.store.put(way.name(f"rows/{name}"), rows.tobytes())
    return Tally({"measured": source.n}, {"dim": source.dim})


def frame(way: Way, cells: Cells, dim: int, task: Task) -> Tally:
    """Means and covariances of one cell."""
    plan, cell = way.plan, task.data["number"]
    batch = _batch_of(way, cells, dim, cell)
    space = Space(dim)
    for _, table in gather(way.store, way.name(f"moments-{batch.start}"), cell - batch.start):
        for data in table["data"].to_pylist():
            space += Space.from_bytes(data)
    save_frame(way, cell, space.frame())
    return Tally({"measured": space.n}, {"memory_mb": plan.memory_mb})


def _batch_of(way: Way, cells: Cells, dim: int, cell: int) -> range:
    several = batches(cells.n, dim, way.plan.settings, way.plan.memory_mb)
    return next(batch for batch in several if cell in batch)


def null(way: Way, cells: Cells, dim: int, task: Task) -> Tally:
    """What scores the pairs of one cell; nothing where none can be scored."""
    cell, settings = task.data["number"], way.plan.settings
    batch = _batch_of(way, cells, dim, cell)
    sample, sworn = (
        _of_cell(way, f"{name}-{batch.start}", cell - batch.start) for name in ("sample", "sworn")
    )
    frames = load_frames(way, cells.n, dim, range(cell, cell + 1))
    own = sampled(sample)
    scorer = Scorer(
        null_from(frames.of_cell[cell], own, cell, settings),
        witnesses_from(frames, own, sworn, cell, settings),
    )
    way.store.put(way.name(f"scorers/{cell:06d}"), scorer.to_bytes())
    return Tally({"sampled": 0 if own is None else len(own.key)})


def _of_cell(way: Way, folder: str, part: int) -> Sequence[pa.Table]:
    return [table for _, table in gather(way.store, way.name(folder), part)]


def _rows(way: Way, name: str, n: int) -> np.ndarray:
    """(n,) ROWs of a source."""
    data = way.store.read(way.name(f"rows/{name}"))
    if len(data) != ROW.itemsize * n:
        where = way.store.place(way.name(f"rows/{name}"))
        raise DataError(f"{where}: {len(data)} bytes, expected {ROW.itemsize * n}")
    return np.frombuffer(data, ROW, n)


def score(way: Way, cells: Cells, task: Task) -> Tally:
    """The p-values of every pair of a source, and the counts of each group."""
    name = f"{task.data['number']:06d}"
    source = Source(way.plan.out, task.data["shards"])
    rows = _rows(way, name, source.n)
    good, counted = rows["good"].astype(bool), rows["counted"].astype(bool)
    records = read_records(way, name, rows["part"], good)
    scored = Scored(source.n, len(cells.groups))
    for done, cell in enumerate(np.unique(rows["cell"][good]).tolist()):
        beat(task, done, cells.n)
        scorers = {cell: Scorer.from_bytes(way.store.read(way.name(f"scorers/{cell:06d}")))}
        score_batch(records, rows["cell"], counted, scorers, cells.group_of_cell, good=good, scored=scored)
    way.store.put(way.name(f"p/{name}"), scored.p.tobytes())
    groups = len(cells.groups)
    parts = [counts.to_bytes() for counts in scored.counts_by_group]
    held = pa.table([[part for each in parts for part in each]], schema=DATA)
    scatter(way.store, way.name("histograms"), name, held, np.repeat(np.arange(groups), 3), groups)
    return Tally(scored.counts)


def merge(way: Way, task: Task) -> Tally:
    """The q-values of one group's bins, and what is said of it."""
    group, total = task.data["number"], Counts.none()
    for _, table in gather(way.store, way.name("histograms"), group):
        total += Counts.from_bytes(table["data"].to_pylist())
    q, said = calibrate(total, way.plan.settings.min_pairs)
    way.store.put(way.name(f"q/{group:06d}"), q.tobytes())
    put_json(way.store, way.name(f"said/{group:06d}"), said)
    return Tally({"counted": said["pairs"]})


def finish(way: Way, task: Task) -> Tally:
    """Write the scores of a source's shards. Facts: its shards; the first task's have the calibration too.

    Counts pairs: 'ok', and 'not_scored' where the embedding is broken.
    """
    out, name, store = way.plan.out, f"{task.data['number']:06d}", way.store
    source = Source(out, task.data["shards"])
    cells = Cells(**read_json(store, way.name("cells.json")))
    rows = _rows(way, name, source.n)
    records = read_records(way, name, rows["part"], rows["good"].astype(bool))
    p = np.frombuffer(store.read(way.name(f"p/{name}")), np.float32).reshape(3, -1)
    q = np.stack(
        [np.frombuffer(store.read(way.name(f"q/{group:06d}"))) for group in range(len(cells.groups))]
    ).reshape(-1, 2, BINS)
    group = cells.group_of_cell[rows["cell"]]
    for done, _ in enumerate(write_scores(out, source, group, p, q, records)):
        beat(task, done, len(source.shards), "writing")
    ok = int(np.isfinite(p[0]).sum())
    facts = {"shards": task.data["shards"]}
    if task.data["number"] == 0:
        said = [read_json(store, way.name(f"said/{group:06d}")) for group in range(len(cells.groups))]
        calibration = summary(cells, said)
        write_json(calibration, out / "scores/noise/calibration.json")
        facts |= calibration
    return Tally({"ok": ok, "not_scored": p.shape[1] - ok}, facts)
