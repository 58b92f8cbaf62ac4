"""The seam between a stage and the machines it runs on: one signature, `here` or on Ray.

A stage is a factory of a worker, built once per process (so that a model is loaded once), and the
resources that one worker asks for. A worker turns one task into one tally. A worker that fails
returns its failure as a report; only a bug in pairmill raises across a process border.
"""

from __future__ import annotations

import errno
import json
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import OutputError, PairmillError

Status = Literal["done", "skipped", "failed", "fatal"]
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no task can go on after one of these


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of a stage: its name is its file name everywhere; `data` holds plain values only."""

    stage: str
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    live: str | None = None  # file that `beat` writes to


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of a task's rows: `counts` by outcome, one for each row seen.

    `facts` holds whatever else the summary wants (bytes, losses, best step): never timings.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How one task ended, as the driver sees it."""

    task: str
    status: Status
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    error: str = ""


Worker = Callable[[Task], Tally]


@dataclass(frozen=True, slots=True)
class Stage:
    """A named step: `start(*args)` builds the worker in the process that will run it."""

    name: str
    start: Callable[..., Worker]
    args: tuple[Any, ...] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    unit: str = "pairs"


class Progress(Protocol):
    """Where progress goes: a bar, plain lines, or nothing."""

    def begin(self, stage: str, *, total: int, done: int, unit: str) -> None: ...
    def report(self, report: TaskReport) -> None: ...
    def live(self, task: str, beat: Mapping[str, Any]) -> None: ...
    def say(self, line: str) -> None: ...
    def end(self) -> None: ...


class Engine(Protocol):
    """Runs tasks, each at least once, and yields one report for each, in order of completion."""

    name: str

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]: ...

    def close(self) -> None: ...


def beat(task: Task, done: float, total: float, note: str = "") -> None:
    """Tell whoever watches how far a long task is; cheap enough to call often (twice a second)."""
    if task.live is None:
        return
    path = Path(task.live)
    try:
        if time.time() - path.stat().st_mtime < 0.5 and done < total:
            return
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps({"done": done, "total": total, "note": note}))
    part.replace(path)


def read_beat(task: Task) -> dict[str, Any] | None:
    """What the worker of `task` said last, or None."""
    try:
        return json.loads(Path(task.live).read_text()) if task.live else None
    except (OSError, ValueError):
        return None


def perform(worker: Worker, task: Task) -> TaskReport:
    """Run one task and turn whatever happens into a report."""
    start = time.perf_counter()

    def ended(status: Status, error: str) -> TaskReport:
        return TaskReport(task.name, status, seconds=time.perf_counter() - start, error=error)

    try:
        tally = worker(task)
    except OutputError as error:
        return ended("fatal", str(error))
    except OSError as error:
        status: Status = "fatal" if error.errno in DISK_ERRORS else "failed"
        return ended(status, f"{error.filename or task.name}: {error.strerror or error}")
    except PairmillError as error:
        return ended("failed", str(error))
    except Exception:  # noqa: BLE001  a worker's outermost loop: the failure is reported and counted
        return ended("failed", traceback.format_exc())
    return TaskReport(task.name, "done", tally, time.perf_counter() - start)


class Seat:
    """Holds one worker, built when its first task comes. On Ray it is the actor, which outlives a stage."""

    def __init__(self, stage: Stage) -> None:
        self.turn_to(stage)

    def turn_to(self, stage: Stage) -> None:
        """From now on do the tasks of `stage`; the worker of the stage before is let go."""
        self._stage = stage
        self._worker: Worker | None = None

    def perform(self, task: Task) -> TaskReport:
        """The task's report; `fatal` where the worker cannot be built, for no other task will do better."""
        if self._worker is None:
            try:
                self._worker = self._stage.start(*self._stage.args)
            except PairmillError as error:
                return TaskReport(task.name, "fatal", error=str(error))
            except Exception:  # noqa: BLE001  as in `perform`
                return TaskReport(task.name, "fatal", error=traceback.format_exc())
        return perform(self._worker, task)


class Here:
    """Runs tasks one after another in this process: for tests, debugging and small lists."""

    name = "here"

    def __init__(self, *, retries: int = 1) -> None:
        self.retries = retries

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]:
        if not tasks:
            return
        seat = Seat(stage)
        for task in tasks:
            with _Watch(task, progress):
                report = seat.perform(task)
                for _ in range(self.retries):
                    if report.status != "failed":
                        break
                    report = seat.perform(task)
            yield report

    def close(self) -> None:
        """Nothing to release."""


class _Watch:
    """Passes the beats of a task that runs in this process on to the progress display."""

    def __init__(self, task: Task, progress: Progress) -> None:
        import threading

        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(task, progress), daemon=True)

    def _run(self, task: Task, progress: Progress) -> None:
        while not self._stop.wait(0.5):
            if (said := read_beat(task)) is not None:
                progress.live(task.name, said)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
