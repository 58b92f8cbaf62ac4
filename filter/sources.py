"""How a stage over all rows is cut: into sources, some whole parts of pairs/ each, and as many partitions.

The rule: a function of the rows and of `rows`, never of workers; and a stage keeps the cut it was begun with
while a task of it stands, so that another setting does not disturb what comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from ..runner import Stage, Tally, Task, Worker
from ..settings import ROWS_PER_PARTITION
from ..shards.exchange import partitions, write_index
from ..shards.files import readable
from ..shards.job import forget_phases, tally_path
from ..shards.ledger import finished_tasks, planned_tasks
from ..shards.store import open_store
from .columns import part_names

ALONE = "all"  # the task of a list that needs no cut


@dataclass(frozen=True, slots=True)
class Cut:
    """The tasks of a stage: one, of all parts, or one for each source."""

    tasks: list[Task]
    n: int  # partitions

    @property
    def several(self) -> bool:
        """Whether rows have to be sent."""
        return len(self.tasks) > 1


def cut(out: Path, stage: str, rows: int = ROWS_PER_PARTITION) -> Cut:
    """Cut the parts of pairs/ into sources of up to `rows` rows (one part at least), in their order."""
    parts = part_names(out)
    if (begun := _begun(out, stage)) and [part for task in begun for part in task.data["parts"]] == parts:
        return Cut(begun, int(begun[0].data["n"]))
    sizes = {part: pq.read_metadata(readable(out / "pairs" / f"{part}.parquet")).num_rows for part in parts}
    n = partitions(sum(sizes.values()), rows)
    sources: list[list[str]] = []
    held = 0
    for part, size in sizes.items():
        if not sources or (held + size > rows and n > 1):
            sources.append([])
            held = 0
        sources[-1].append(part)
        held += size
    n = n if len(sources) > 1 else 1
    names = [ALONE] if len(sources) == 1 else [f"{source[0]}_{source[-1]}" for source in sources]
    data = [{"parts": source, "n": n} for source in sources]
    return Cut([Task(stage, name, about) for name, about in zip(names, data, strict=True)], n)


@dataclass(frozen=True, slots=True)
class Sending:
    """A phase: `work(out, task)` for each source, or for each partition. folders: of the exchange, filled."""

    name: str
    work: Callable[[Path, Task], Tally]
    folders: tuple[str, ...]
    of_sources: bool = False


def prepare(out: Path, made: Cut, sendings: Sequence[Sending]) -> Iterator[tuple[list[Task], Stage]]:
    """The phases of a stage that is cut into several sources; call it where the stage is not finished.

    First it forgets what an earlier run left that was cut otherwise.
    """
    stage = made.tasks[0].stage
    for name in set(finished_tasks(out, stage)) - {task.name for task in made.tasks}:
        tally_path(out, stage, name).unlink(missing_ok=True)
    begun = planned_tasks(out, f"{stage}.{sendings[0].name}")
    if begun and begun != {task.name: dict(task.data) for task in made.tasks}:
        forget_phases(out, stage)
    for sending in sendings if made.several else ():
        name = f"{stage}.{sending.name}"
        sources = [Task(name, task.name, task.data) for task in made.tasks]
        targets = [Task(name, f"{number:06d}", {"n": made.n}) for number in range(made.n)]
        yield sources if sending.of_sources else targets, Stage(name, start, (out, sending.work))
        for folder in sending.folders:
            write_index(open_store(out), folder)


def start(out: Path, work: Callable[[Path, Task], Tally]) -> Worker:
    """The worker of a phase or of a stage that is cut."""
    return partial(work, out)


def _begun(out: Path, stage: str) -> list[Task]:
    """The tasks of the stage as it was last begun, where one of them is finished."""
    names = planned_tasks(out, stage)
    begun = [Task(stage, name, about) for name, about in sorted(names.items())]
    finished = set(finished_tasks(out, stage)).intersection(names)
    return begun if finished and all("parts" in task.data for task in begun) else []
