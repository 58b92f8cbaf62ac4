"""Stage `noise`: how likely each pair's score is for a pair that does not belong together.

The rule: scores are compared only within a cell, one fold and one language, since each fold has its own
embedding space. A pair's dot product, centred by its image's and its caption's mean, and how widely each of
the two scores (exact, from the means and covariances of the cell's embeddings) make one score that estimates
the likelihood ratio; the same of pairs that are known not to belong together, drawn from a sample of the
cell, is the null. P-values of all folds are comparable, so the share of noise and the q-values are reckoned
per language, among the pairs that every other rule would keep.

Up to `run.rows_per_partition` pairs are one task; more are cut into sources, runs of whole shards, which
pass on what adds up (`noise_phases.py`). The bytes are the same.
Memory: some 70 bytes per pair of a source, and as many cells at a time as `run.memory_mb` holds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..recipe import Noise
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB, ROWS_PER_PARTITION
from ..shards.commit import write_json
from .cells import count, find_cells, known, tables_of
from .embedded import Source
from .noise_plan import Plan, Way
from .noise_work import finish
from .passes import Scored, Scorer, batches, calibrate, measure, score, summary, write_scores
from .sql import database
from .strangers import describe, draw, null_from


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
    groups, scored = cells.group_of_cell, Scored(source.n, len(cells.groups))
    several = batches(cells.n, source.dim, settings, plan.memory_mb)
    total = (2 * len(several) + 1) * len(source.shards)
    for number, batch in enumerate(several):
        before = 2 * number * len(source.shards)
        spaces = measure(
            source, of_row, batch, lambda done, at=before: beat(task, at + done, total, "means and spreads")
        )
        sample = describe(out, source, uids, told["near"], drawn.of(batch))
        scorers = {}
        for cell, space in spaces.items():
            frame = space.frame()
            scorers[cell] = Scorer(frame, null_from(frame, [_of_cell(sample, cell)], cell, settings))
        score(
            source,
            of_row,
            told["counted"].to_numpy(),
            scorers,
            groups,
            batch=batch,
            scored=scored,
            said=lambda done, at=before: beat(task, at + len(source.shards) + done, total, "scores"),
        )
    found = [calibrate(histogram) for histogram in scored.histograms]
    q, said = np.stack([q for q, _ in found]), summary(cells, [said for _, said in found])
    for done, _ in enumerate(write_scores(out, source, groups[of_row], scored.p, q)):
        beat(task, total - len(source.shards) + done, total, "writing")
    write_json(said, out / "scores/noise/calibration.json")
    return Tally(scored.counts, said)


def _of_cell(table: pa.Table, cell: int) -> pa.Table:
    return table.filter(pa.array(table["cell"].to_numpy() == cell))
