"""The phases of `noise` where its pairs are several sources: what each passes on to the next adds up.

    send     sources and parts      every uid, and every uid's language, to the partition of its key
    join     partitions             language, near-copies and candidacy of each pair, back to its source
    measure  sources                moments, and a share of the sample, of every cell; pairs to their pictures
    frame    cells                  the moments' sum
    hear     partitions of pictures what all captions of a picture say of each pair, back to its source
    null     cells                  the scores of pairs that do not belong together
    score    sources                p-values, and histograms of each group
    merge    groups                 the sum of these: the share of noise, and a q-value for each bin

Then the stage's own tasks write the scores. Memory: a source's or a partition's rows, and a batch of cells.
Moments add up exactly and sums of p-values do, so the bytes do not depend on how the shards are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..runner import Task
from ..shards.exchange import partitions, write_index
from ..shards.job import Phase
from ..shards.ledger import finished_tasks, read_tally, tally_path
from ..shards.tables import write_json
from . import noise_hearing as hearing
from . import noise_sources as sources_of
from . import noise_work as work
from .cells import Cells, find_cells
from .embedded import Embeddings, rows_of_languages, rows_of_shards
from .noise_plan import Plan, Way
from .passes import batches


def noise_phases(plan: Plan) -> Iterator[Phase]:
    """The phases before the stage's own tasks; none where that is a single one."""
    tasks = plan.tasks()
    _forget_others(plan.out, tasks)
    if len(tasks) < 2:
        return
    way = _way(plan, tasks[0].data["mark"])
    sources = [task.data["shards"] for task in tasks]
    yield way.phase(_by_source(way, "send", sources) + _language_tasks(way, len(sources)), work.send)
    _index(way, "pairs", "languages")
    join = [way.task("join", part) for part in range(way.parts)]
    yield way.phase(join, work.join)
    _index(way, "pairs/answers")
    cells = _cells(plan, join)
    write_json(way.store, way.name("cells.json"), asdict(cells))
    measured = _by_source(way, "measure", sources)
    yield way.phase(measured, sources_of.measure, cells)
    dim = _one_dim(plan.out, measured, sources)
    starts = [batch.start for batch in batches(cells.n, dim, plan.settings, plan.memory_mb)]
    _index(way, "hearing", *(f"{name}-{start}" for start in starts for name in ("moments", "sample")))
    yield way.phase([way.task("frame", cell) for cell in range(cells.n)], sources_of.frame, cells, dim)
    yield way.phase([way.task("hear", part) for part in range(way.hearers)], hearing.hear, cells, dim)
    _index(way, "hearing/answers", *(f"sworn-{start}" for start in starts))
    yield way.phase([way.task("null", cell) for cell in range(cells.n)], sources_of.null, cells, dim)
    yield way.phase(_by_source(way, "score", sources), sources_of.score, cells)
    _index(way, "histograms")
    yield way.phase([way.task("merge", group) for group in range(len(cells.groups))], sources_of.merge)


def _index(way: Way, *folders: str) -> None:
    for folder in folders:
        write_index(way.store, way.name(folder))


def _way(plan: Plan, mark: str) -> Way:
    pairs, languages = rows_of_shards(plan.out), rows_of_languages(plan.out)
    rows = max(sum(pairs.values()), sum(languages.values()))
    dim = Embeddings(plan.out, next(iter(pairs))).dim
    hearers = hearing.hearing_parts(sum(pairs.values()), dim, plan.memory_mb)
    return Way(plan, mark, partitions(rows, plan.rows_per_partition), hearers)


def _by_source(way: Way, phase: str, sources: Sequence[Sequence[str]]) -> list[Task]:
    return [way.task(phase, number, shards=shards) for number, shards in enumerate(sources)]


def _language_tasks(way: Way, first: int) -> list[Task]:
    parts = way.plan.language_parts()
    return [way.task("send", first + number, parts=names) for number, names in enumerate(parts)]


def _forget_others(out: Path, tasks: Sequence[Task]) -> None:
    """Tallies of tasks that were cut otherwise: these are done anew, and no pair is counted twice."""
    for name in set(finished_tasks(out, "noise")) - {task.name for task in tasks}:
        tally_path(out, "noise", name).unlink()


def _facts(out: Path, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    found = [read_tally(out, task.stage, task.name) for task in tasks]
    return [dict(tally.facts) for tally in found if tally is not None]


def _cells(plan: Plan, join: Sequence[Task]) -> Cells:
    counts = [{(name, fold): n for name, fold, n in fact["pairs"]} for fact in _facts(plan.out, join)]
    return find_cells(counts, plan.settings.min_pairs)


def _one_dim(out: Path, tasks: Sequence[Task], sources: Sequence[Sequence[str]]) -> int:
    dims = [int(fact["dim"]) for fact in _facts(out, tasks)]
    for dim, shards in zip(dims, sources, strict=True):
        if dim != dims[0]:
            raise DataError(
                f"scores/embedding/{shards[0]}: {dim} dimensions, others have {dims[0]}: embed again"
            )
    return dims[0]
