"""A stage over all its tasks: skip what is finished, run the rest, add up the tallies, keep what failed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import ConfigError, DataError, OutputError
from ..runner import Engine, Progress, Stage, Tally, Task, TaskReport, Worker
from .commit import FileDigest, file_digest, recorded
from .exchange import exchange_folder, forget
from .files import remove_folder
from .ledger import (
    files_of,
    finished_tasks,
    forget_failures,
    inputs_digest,
    read_tally,
    records,
    tally_path,
    write_failure,
    write_tally,
    write_tasks_list,
)
from .store import open_store

__all__ = ["StageReport", "finished_tasks", "inputs_digest", "read_tally", "run_stage", "tally_path"]


@dataclass(slots=True)
class StageReport:
    """The sum of a stage's tallies, finished tasks of earlier runs included."""

    stage: str
    counts: Counter[str] = field(default_factory=Counter)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task
    failed: dict[str, str] = field(default_factory=dict)  # task -> error
    skipped: int = 0  # tasks that an earlier run had finished
    seconds: float = 0.0  # wall clock of this run
    rows: int = 0  # seen in this run

    def add(self, task: str, tally: Tally) -> None:
        self.counts.update(tally.counts)
        if tally.facts:
            self.facts[task] = dict(tally.facts)


class Tallied:
    """A worker that writes its tally when its work is done. inputs: of each task, by its name."""

    def __init__(
        self, out: Path, start: Callable[..., Worker], args: tuple[Any, ...], inputs: Mapping[str, str]
    ) -> None:
        self.out, self.worker, self.inputs = out, start(*args), inputs

    def __call__(self, task: Task) -> Tally:
        begun = time.perf_counter()
        with recorded() as files:
            try:
                tally = self.worker(task)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"what {task.stage} reads is broken: {error}: `pairmill verify` says where"
                ) from error
        left = {
            path.relative_to(self.out).as_posix(): digest
            for path, digest in sorted(files.items())
            if path.is_relative_to(self.out) and path.exists()  # a checkpoint goes when all is done
        }
        seconds = time.perf_counter() - begun
        write_tally(self.out, task, tally, inputs=self.inputs[task.name], files=left, seconds=seconds)
        return tally


def finished_tallies(
    out: Path, stage: str, tasks: Sequence[Task], reads: Mapping[str, str]
) -> dict[str, Tally]:
    """By task the tallies that stand and were written for the inputs in `reads`; stale ones are removed.

    Stale is one too whose rows on their way are gone: its machine went down before they were on a disk. They
    are sent anew, to the same bytes.
    """
    there = {record["task"]: record for record in records(out, stage)}
    fresh = {task.name for task in tasks if there.get(task.name, {}).get("inputs") == reads[task.name]}
    fresh -= _torn(out, [there[name] for name in sorted(fresh)])
    for name in sorted({task.name for task in tasks}.intersection(finished_tasks(out, stage)) - fresh):
        tally_path(out, stage, name).unlink(missing_ok=True)
    return {
        task.name: Tally(there[task.name]["counts"], there[task.name]["facts"])
        for task in tasks
        if task.name in fresh
    }


def _torn(out: Path, records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Tasks of which a file on its way is missing, or not what the tally says. Reads every byte of them."""
    sent = [
        (record["task"], out / name, digest)
        for record in records
        for name, digest in files_of(record, on_its_way=True).items()
    ]
    with ThreadPoolExecutor() as pool:
        whole = pool.map(_is_whole, [path for _, path, _ in sent], [digest for *_, digest in sent])
        return {task for (task, *_), as_it_was in zip(sent, whole, strict=True) if not as_it_was}


def _is_whole(path: Path, digest: FileDigest) -> bool:
    try:
        return file_digest(path) == digest
    except OSError:
        return False


def run_stage(
    out: Path,
    stage: Stage,
    tasks: Sequence[Task],
    engine: Engine,
    progress: Progress,
    *,
    inputs: str | Mapping[str, str] = "",
) -> StageReport:
    """Run every unfinished task of `stage` and return the sum over all of them.

    inputs: a digest of what the stage reads (see `inputs_digest`), or of what each task reads, by its name;
    tasks that were finished for other inputs are run again. A task that fails leaves a record of why.
    Raises ConfigError where there is no task at all, OutputError where the output cannot be written.
    """
    if not tasks:
        raise ConfigError(f"stage {stage.name}: nothing to do in {out}: run the stage before it first")
    reads = dict.fromkeys((task.name for task in tasks), inputs) if isinstance(inputs, str) else inputs
    write_tasks_list(out, stage.name, tasks)
    forget_failures(out, stage.name)
    finished = finished_tallies(out, stage.name, tasks, reads)
    waiting = [task for task in tasks if task.name not in finished]
    by_name = {task.name: task for task in tasks}
    total = StageReport(stage.name, skipped=len(finished))
    for name, tally in finished.items():
        total.add(name, tally)
    wrapped = replace(stage, start=Tallied, args=(out, stage.start, stage.args, reads))
    begun = time.perf_counter()
    progress.begin(stage.name, total=len(tasks), done=len(finished), unit=stage.unit)
    try:
        with closing(engine(wrapped, waiting, progress)) as reports:  # Ctrl-C ends the workers at once
            for report in reports:
                progress.report(report)
                if report.status in ("failed", "fatal"):
                    with suppress(OutputError):  # a full disk is said below
                        write_failure(out, by_name[report.task], report.error)
                _take(report, total)
    finally:
        progress.end()
    total.seconds = time.perf_counter() - begun
    total.facts = dict(sorted(total.facts.items()))
    return total


Phase = tuple[Sequence[Task], Stage]


def run_phases(
    out: Path, phases: Iterable[Phase], engine: Engine, progress: Progress, *, inputs: str = ""
) -> list[StageReport]:
    """Run the phases that prepare a stage, one after the other; the last report has a failure, or none has.

    A phase's stage is named `<stage>.<phase>`. What it leaves is for the stage alone: `forget_phases` removes
    it once the stage is finished.
    """
    reports: list[StageReport] = []
    for tasks, stage in phases:
        reports.append(run_stage(out, stage, tasks, engine, progress, inputs=inputs))
        if reports[-1].failed:
            break
    return reports


def forget_phases(out: Path, stage: str) -> None:
    """Remove what the phases of a finished stage left: their rows on the way, tallies and lists of tasks."""
    forget(open_store(out), exchange_folder(stage))
    for folder in ("_done", "_failed"):
        for path in (out / folder).glob(f"{stage}.*/"):
            remove_folder(path)
    for path in (out / "_plan" / "tasks").glob(f"{stage}.*.json"):
        path.unlink()


def all_finished(out: Path, tasks: Sequence[Task], inputs: str) -> bool:
    """Whether every task has a tally that was written for these inputs."""
    if not tasks:
        return True
    reads = dict.fromkeys((task.name for task in tasks), inputs)
    return len(finished_tallies(out, tasks[0].stage, tasks, reads)) == len(tasks)


def _take(report: TaskReport, total: StageReport) -> None:
    if report.status == "fatal":
        raise OutputError(f"stage {total.stage}, task {report.task}: {report.error}")
    if report.status == "failed":
        total.failed[report.task] = report.error
        return
    total.add(report.task, report.tally)
    total.rows += report.tally.seen
