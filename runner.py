"""The seam between a stage and the machines it runs on: one signature, `here` or on Ray.

A stage is a factory of a worker, built once per process (so that a model is loaded once), and the
resources that one worker asks for. A worker turns one task into one tally. A worker that fails
returns its failure as a report; only a bug in pairmill raises across a process border.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from .errors import DISK_ERRORS, ConfigError, OutputError, PairmillError, RetryableError, may_pass

Status = Literal["done", "failed", "fatal"]
Cause = Literal["", "outside", "worker", "node"]  # of a failure that may pass; '' where none may
NODE_RETRIES = 10  # a node that goes is not its tasks' fault; still, one of them might bring it down
PAUSE_S = 1.0  # before the first new try after a failure outside; doubled each time
BEAT_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of a stage: its name is its file name everywhere; `data` holds plain values only."""

    stage: str
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)


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
    cause: Cause = ""


Worker = Callable[[Task], Tally]
Beat = Mapping[str, Any]  # done, total, note
Listener = Callable[[Task, Beat], None]


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
    def live(self, task: str, beat: Beat) -> None: ...
    def say(self, line: str) -> None: ...
    def end(self) -> None: ...


class Engine(Protocol):
    """Runs tasks, each at least once, and yields one report for each, in order of completion."""

    name: str

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]: ...

    def close(self) -> None: ...


_listener: Listener | None = None  # of this process: it does one task at a time
_last_beat = ("", 0.0)  # the task that was heard last, and when


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Within it the beats of this process's task go to `listener`."""
    global _listener, _last_beat
    before, _listener, _last_beat = _listener, listener, ("", 0.0)
    try:
        yield
    finally:
        _listener = before


def beat(task: Task, done: float, total: float, note: str = "") -> None:
    """Tell whoever watches how far a long task is; call it often, it is passed on twice a second."""
    global _last_beat
    now = time.monotonic()
    if _listener is None or (
        _last_beat[0] == task.name and now - _last_beat[1] < BEAT_EVERY_S and done < total
    ):
        return
    _last_beat = (task.name, now)
    _listener(task, {"done": done, "total": total, "note": note})


def may_join(task: Task, running: Iterable[Task]) -> bool:
    """Whether a task may run beside others, by its `data`: in the same `turn`, and in no `lane` of theirs.

    So a plan can promise that what two tasks share is not used by both at once. Tasks that say neither may.
    """
    turn, lane = task.data.get("turn"), task.data.get("lane")
    return all(
        other.data.get("turn") == turn and (lane is None or other.data.get("lane") != lane)
        for other in running
    )


def perform(worker: Worker, task: Task) -> TaskReport:
    """Run one task and turn whatever happens into a report."""
    start = time.perf_counter()
    try:
        tally = worker(task)
    except Exception as error:  # noqa: BLE001  a worker's outermost loop: the failure is reported and counted
        return replace(failure(task, error), seconds=time.perf_counter() - start)
    return TaskReport(task.name, "done", tally, time.perf_counter() - start)


def failure(task: Task, error: Exception) -> TaskReport:
    """The report of a task that raised: a traceback only where the fault is pairmill's own."""
    if isinstance(error, OSError):
        text = f"{error.filename or task.name}: {error.strerror or error}"
        if error.errno in DISK_ERRORS:
            return TaskReport(task.name, "fatal", error=text)
        return TaskReport(task.name, "failed", error=text, cause="outside" if may_pass(error) else "")
    if not isinstance(error, PairmillError):
        return TaskReport(task.name, "failed", error="".join(traceback.format_exception(error)))
    status: Status = "fatal" if isinstance(error, OutputError | ConfigError) else "failed"  # as for all tasks
    cause: Cause = "outside" if isinstance(error, RetryableError) else ""
    return TaskReport(task.name, status, error=str(error), cause=cause)


class LazyWorker:
    """A stage's worker, built when its first task comes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._worker: Worker | None = None

    def perform(self, task: Task) -> TaskReport:
        """The task's report; `fatal` where the worker cannot be built, for no other task will do better."""
        if self._worker is None:
            try:
                self._worker = self._stage.start(*self._stage.args)
            except Exception as error:  # noqa: BLE001  as in `perform`
                report = failure(task, error)
                return report if report.cause else replace(report, status="fatal")
        return perform(self._worker, task)


class Tries:
    """Which failed tasks are worth another try: those that the outside failed, counted by task and cause."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self._failures: Counter[tuple[str, Cause]] = Counter()

    def pause_before_next(self, report: TaskReport) -> float | None:
        """Seconds to wait before the task is tried again; None where it is not."""
        if report.status != "failed" or not report.cause:
            return None
        self._failures[report.task, report.cause] += 1
        failures = self._failures[report.task, report.cause]
        if failures > (NODE_RETRIES if report.cause == "node" else self.retries):
            return None
        return PAUSE_S * 2 ** (failures - 1) if report.cause == "outside" else 0.0

    def last(self, report: TaskReport) -> TaskReport:
        """The report with the number of tries in its message, where there was more than one."""
        tries = sum(n for (task, _), n in self._failures.items() if task == report.task)
        if report.status != "failed" or tries < 2:
            return report
        return replace(report, error=f"{report.error} (tried {tries} times)")


class Here:
    """Runs tasks one after another in this process: for tests, debugging and small lists."""

    name = "here"

    def __init__(self, *, retries: int = 2) -> None:
        self.retries = retries

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]:
        worker, tries = LazyWorker(stage), Tries(self.retries)
        for task in tasks:
            with heard_by(lambda task, beat: progress.live(task.name, beat)):
                report = worker.perform(task)
                while (pause := tries.pause_before_next(report)) is not None:
                    time.sleep(pause)
                    report = worker.perform(task)
            yield tries.last(report)

    def close(self) -> None:
        """Nothing to release."""
