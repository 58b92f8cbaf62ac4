"""Stage `noise`: how likely each pair's score is for a pair that does not belong together.

The rule: scores are compared only within a cell, one fold and one language, since each fold has its own
embedding space. Of a pair by itself the score is its dot product, centred by its image's and its caption's
mean, with how widely each of the two scores (exact, from the means and covariances of the cell's embeddings):
an estimate of the likelihood ratio. Where a picture has three captions or more, the others are asked too
(`testimony.py`), and the score is the ratio over three ways of being wrong (`witness_null.py`). Pairs known
not to belong together, drawn from a sample of the cell, are the nulls. P-values of all folds are comparable,
so the share of noise and the q-values are reckoned per language, among the pairs that every other rule would
keep: of pairs with witnesses and of those without apart, and each keeps its promise.

Up to `run.rows_per_partition` pairs are one task; more are cut into sources, runs of whole shards, which
pass on what adds up (`noise_phases.py`). The bytes are the same.
Memory: some 150 bytes per pair of a source, and as many cells at a time as `run.memory_mb` holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..recipe import Noise
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB, ROWS_PER_PARTITION
from ..shards.commit import write_json
from .cells import Cells, count, find_cells, known, tables_of
from .embedded import Source
from .noise_files import calibrate, summary, write_scores
from .noise_plan import Plan, Way
from .noise_sources import finish
from .passes import Scored, Scorer, batches, frames_of, measure, no_frames, score
from .places import asked_of, places, vectors_of
from .sql import database
from .strangers import Drawn, describe, draw, null_from, sampled, sworn_table, witnesses_from
from .testimony import RECORD, Asked, Frames, hear_witnesses, no_sworn


def noise_tasks(
    out: Path,
    settings: Noise | None = None,
    memory_mb: int = MEMORY_MB,
    rows_per_partition: int = ROWS_PER_PARTITION,
) -> list[Task]:
    """One task, or one per source where the pairs are several; none without embeddings."""
    return Plan(out, settings or Noise(), memory_mb, rows_per_partition).tasks()


def noise_stage(
    out: Path,
    settings: Noise,
    memory_mb: int = MEMORY_MB,
    rows_per_partition: int = ROWS_PER_PARTITION,
) -> Stage:
    """The stage `noise`: scores/noise/<shard>.parquet and scores/noise/calibration.json."""
    return Stage("noise", partial, (_work, Plan(out, settings, memory_mb, rows_per_partition)))


def _work(plan: Plan, task: Task) -> Tally:
    """Counts pairs: 'ok', and 'not_scored' where the embedding is broken. Facts: the calibration."""
    if "mark" in task.data:
        return finish(Way(plan, task.data["mark"]), task)
    return _score_all(plan, task)


def _score_all(plan: Plan, task: Task) -> Tally:
    """All pairs at once, with nothing on the way in files."""
    out, settings = plan.out, plan.settings
    source = Source(out, task.data["shards"])
    pairs = source.pairs()
    uids, fold = pairs["uid"], pairs["fold"].to_numpy()
    with database(out, "noise", memory_mb=plan.memory_mb) as connection:
        told = known(connection, uids, tables_of(out, settings))
        cells = find_cells([count(told["lang"], fold)], settings.min_pairs)
        of_row = cells.of(told["lang"], fold)
        drawn = draw(connection, uids, of_row, cells, settings.seed)
    several = batches(cells.n, source.dim, settings, plan.memory_mb)
    work = _Work(plan, source, cells, of_row, several, task)
    good = np.zeros(source.n, bool)
    means, spreads = work.frames(good)
    place, counted = places(out, source, told["near"]), told["counted"].to_numpy()
    asked = asked_of(uids, place, of_row, counted, drawn.row)
    records = np.zeros(source.n, RECORD)
    scored = Scored(source.n, len(cells.groups))
    for batch in several:
        frames = frames_of(means, spreads, batch)
        mine = drawn.of(batch)
        sworn = work.hear(asked, good, frames, batch, records, mine)
        sample = describe(source, place, mine)
        scorers = {
            cell: _scorer(frames, sample, sworn, cell, settings)
            for cell in batch
            if good[of_row == cell].any()
        }
        score(records, of_row, counted, scorers, cells.group_of_cell, good=good, scored=scored)
    return work.write(scored, records)


def _scorer(frames: Frames, sample: pa.Table, sworn: pa.Table, cell: int, settings: Noise) -> Scorer:
    own = sampled([_of_cell(sample, cell)])
    null = null_from(frames.of_cell[cell], own, cell, settings)
    return Scorer(null, witnesses_from(frames, own, [sworn], cell, settings))


@dataclass(frozen=True)
class _Work:
    """The passes over all pairs, and how far they are."""

    plan: Plan
    source: Source
    cells: Cells
    of_row: np.ndarray
    several: list[range]
    task: Task

    def frames(self, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (C, 2, D) and covariances (C, 2, D, D) of all cells. good: set where embeddings are."""
        dim, shards = self.source.dim, len(self.source.shards)
        means = np.zeros((self.cells.n, 2, dim))
        spreads = no_frames(self.cells.n, dim, in_memory=len(self.several) == 1)
        for number, batch in enumerate(self.several):
            before = number * shards
            spaces = measure(
                self.source,
                self.of_row,
                batch,
                lambda done, at=before: beat(self.task, at + done, self._total, "means and spreads"),
                good,
            )
            for cell, space in spaces.items():
                frame = space.frame()
                means[cell], spreads[cell] = frame.means, frame.spreads
        return means, spreads

    def hear(
        self,
        asked: Asked,
        good: np.ndarray,
        frames: Frames,
        batch: range,
        records: np.ndarray,
        drawn: Drawn,
    ) -> pa.Table:
        """Fill in the records of a batch of cells; returns what is sworn of the drawn."""
        there = np.flatnonzero(good)
        key = dict(zip(drawn.row.tolist(), drawn.key.tolist(), strict=True))
        tables, heard = [], 0
        for rows, found, sworn in hear_witnesses(
            asked.take(there), lambda some: vectors_of(self.source, there[some]), frames, batch
        ):
            records[there[rows]] = found
            keys = np.array([key[row] for row in there[sworn.rows].tolist()], "S32")
            tables.append(sworn_table(keys, sworn))
            heard += len(rows)
            share = len(self.source.shards) * heard // max(self.source.n, 1)
            beat(self.task, len(self.several) * len(self.source.shards) + share, self._total, "witnesses")
        return pa.concat_tables(tables) if tables else sworn_table(np.empty(0, "S32"), no_sworn(frames))

    @property
    def _total(self) -> int:
        return (len(self.several) + 2) * len(self.source.shards)

    def write(self, scored: Scored, records: np.ndarray) -> Tally:
        """Calibrate, and write every shard's scores."""
        out, shards = self.plan.out, len(self.source.shards)
        found = [calibrate(counts, self.plan.settings.min_pairs) for counts in scored.counts_by_group]
        q, said = np.stack([q for q, _ in found]), summary(self.cells, [said for _, said in found])
        group = self.cells.group_of_cell[self.of_row]
        for done, _ in enumerate(write_scores(out, self.source, group, scored.p, q, records)):
            beat(self.task, self._total - shards + done, self._total, "writing")
        write_json(said, out / "scores/noise/calibration.json")
        return Tally(scored.counts, said)


def _of_cell(table: pa.Table, cell: int) -> pa.Table:
    return table.filter(pa.array(table["cell"].to_numpy() == cell))
