"""A stage over all its tasks: skip what is finished, run the rest, add up the tallies.

`_done/<stage>/<task>.json` is a task's tally, written last: while it stands, the task is finished.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from ..errors import ConfigError, DataError, OutputError
from ..runner import Engine, Progress, Stage, Tally, Task, TaskReport, Worker
from .commit import write_json


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


def tally_path(out: Path, stage: str, task: str) -> Path:
    return out / "_done" / stage / f"{task}.json"


def read_tally(out: Path, stage: str, task: str) -> Tally | None:
    """The tally of a finished task, or None."""
    found = _read_record(tally_path(out, stage, task))
    return None if found is None else Tally(found["counts"], found["facts"])


def _read_record(path: Path) -> dict[str, Any] | None:
    """What a tally file says; None where it is missing or was damaged, so that the task is done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(found, dict) and {"counts", "facts", "inputs"} <= found.keys()
    return found if whole else None


def finished_tasks(out: Path, stage: str) -> list[str]:
    """Names of the finished tasks of a stage, sorted."""
    return sorted(path.stem for path in (out / "_done" / stage).glob("*.json"))


def inputs_digest(out: Path, *stages: str) -> str:
    """A digest of what the finished tasks of `stages` counted, and from what: their own inputs are in it.

    So a change travels through all stages, even where every count stays the same.
    """
    digest = xxhash.xxh3_64()
    for stage in stages:
        for task in finished_tasks(out, stage):
            found = _read_record(tally_path(out, stage, task)) or {}
            said = [stage, task, *(found.get(key) for key in ("counts", "facts", "inputs"))]
            digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()


class Tallied:
    """A worker that writes its tally when its work is done."""

    def __init__(self, out: Path, start: Callable[..., Worker], args: tuple[Any, ...], inputs: str) -> None:
        self.out, self.worker, self.inputs = out, start(*args), inputs

    def __call__(self, task: Task) -> Tally:
        begun = time.perf_counter()
        try:
            tally = self.worker(task)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"what {task.stage} reads is broken: {error}: `pairmill verify` says where"
            ) from error
        record = {
            "stage": task.stage,
            "task": task.name,
            "seen": tally.seen,
            "counts": dict(tally.counts),
            "facts": dict(tally.facts),
            "inputs": self.inputs,
            "seconds": round(time.perf_counter() - begun, 3),
        }
        write_json(record, tally_path(self.out, task.stage, task.name))
        return tally


def is_finished(out: Path, task: Task, inputs: str) -> bool:
    """Whether the task's tally stands and was written for these inputs; a stale one is removed."""
    path = tally_path(out, task.stage, task.name)
    found = _read_record(path)
    if found is not None and found["inputs"] == inputs:
        return True
    path.unlink(missing_ok=True)
    return False


def run_stage(
    out: Path,
    stage: Stage,
    tasks: Sequence[Task],
    engine: Engine,
    progress: Progress,
    *,
    inputs: str = "",
) -> StageReport:
    """Run every unfinished task of `stage` and return the sum over all of them.

    inputs: a digest of what the stage reads (see `inputs_digest`); tasks that were finished for
    other inputs are run again.
    Raises ConfigError where there is no task at all, OutputError where the output cannot be written.
    """
    if not tasks:
        raise ConfigError(f"stage {stage.name}: nothing to do in {out}: run the stage before it first")
    finished = [task for task in tasks if is_finished(out, task, inputs)]
    names = {task.name for task in finished}
    live = out / "_live" / stage.name
    waiting = [
        replace(task, live=str(live / f"{task.name}.json")) for task in tasks if task.name not in names
    ]
    total = StageReport(stage.name, skipped=len(finished))
    for task in finished:
        tally = read_tally(out, stage.name, task.name)
        assert tally is not None
        total.add(task.name, tally)
    wrapped = replace(stage, start=Tallied, args=(out, stage.start, stage.args, inputs))
    _forget_beats(waiting)  # of a killed run
    begun = time.perf_counter()
    progress.begin(stage.name, total=len(tasks), done=len(finished), unit=stage.unit)
    try:
        with closing(engine(wrapped, waiting, progress)) as reports:  # Ctrl-C ends the workers at once
            for report in reports:
                progress.report(report)
                _take(report, total)
    finally:
        progress.end()
        _forget_beats(waiting)
    total.seconds = time.perf_counter() - begun
    total.facts = dict(sorted(total.facts.items()))
    return total


def _forget_beats(tasks: Sequence[Task]) -> None:
    for task in tasks:
        Path(str(task.live)).unlink(missing_ok=True)


def _take(report: TaskReport, total: StageReport) -> None:
    if report.status == "fatal":
        raise OutputError(f"stage {total.stage}, task {report.task}: {report.error}")
    if report.status == "failed":
        total.failed[report.task] = report.error
        return
    total.add(report.task, report.tally)
    total.rows += report.tally.seen
