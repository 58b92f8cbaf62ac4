"""The seam between a stage and the machines it runs on: one signature, `here` or on Ray.

A stage is a factory of a worker, built once per process (so that a model is loaded once), and the
resources that one worker asks for. A worker turns one task into one tally. A worker that fails
returns its failure as a report; only a bug in pairmill raises across a process border.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from .errors import ConfigError, OutputError, PairmillError

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
        seat = _Seat(stage.start, stage.args)
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


class OnRay:
    """Runs tasks in Ray actors, with a bounded number in flight; a lost actor's task is retried.

    address: None starts a local Ray that is stopped again by `close`; "auto", "ray://host:port" or
        "host:port" joins a cluster, whose nodes must see the output folder under the same path.
    """

    name = "ray"

    def __init__(self, address: str | None = None, *, cpus: int | None = None, retries: int = 2) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "engine 'ray' needs the package ray, which is not installed: pip install ray,"
                " or run in this process with --engine here"
            )
        self.retries, self.address, self.cpus = retries, address, cpus
        self._ray: Any = None  # started when there is work: a finished run needs none

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]:
        if not tasks:
            return
        if self._ray is None:
            self._ray = _start_ray(self.address, self.cpus)
        yield from _Crew(self._ray, stage, tasks, progress, self.retries).run()

    def close(self) -> None:
        """Leave the cluster; a local one stops."""
        if self._ray is not None:
            self._ray.shutdown()


def _start_ray(address: str | None, cpus: int | None) -> Any:
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if address is not None:
        _knock(address)
    try:
        if address is None:
            ray.init(
                address="local",  # None would join whatever RAY_ADDRESS names
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=128 * 2**20,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    return ray


def _knock(address: str) -> None:
    """Raises ConfigError where nobody answers at host:port, for which Ray itself would wait minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from error


class _Seat:
    """Holds one worker, built when its first task comes. On Ray it is the actor."""

    def __init__(self, start: Callable[..., Worker], args: tuple[Any, ...]) -> None:
        self._start, self._args = start, args
        self._worker: Worker | None = None

    def perform(self, task: Task) -> TaskReport:
        """The task's report; `fatal` where the worker cannot be built, for no other task will do better."""
        if self._worker is None:
            try:
                self._worker = self._start(*self._args)
            except PairmillError as error:
                return TaskReport(task.name, "fatal", error=str(error))
            except Exception:  # noqa: BLE001  as in `perform`
                return TaskReport(task.name, "fatal", error=traceback.format_exc())
        return perform(self._worker, task)


class _Crew:
    """The actors of one stage, and which task each holds."""

    def __init__(
        self, ray: Any, stage: Stage, tasks: Sequence[Task], progress: Progress, retries: int
    ) -> None:
        self.ray, self.stage, self.progress = ray, stage, progress
        options = {"num_cpus": stage.cpus, "num_gpus": stage.gpus, "max_restarts": 0}
        self.actor = ray.remote(_Seat).options(**options)
        self.waiting = list(reversed(tasks))
        self.tries_left = {task.name: retries for task in tasks}
        self.held: dict[Any, tuple[Any, Task]] = {}
        total = ray.cluster_resources()
        room = int(total.get("CPU", 1) // max(stage.cpus, 0.01))
        if stage.gpus:
            room = min(room, int(total.get("GPU", 0) // stage.gpus))
        if room < 1:
            raise ConfigError(
                f"stage {stage.name} asks for {stage.cpus:g} CPUs and {stage.gpus:g} GPUs per task;"
                f" the cluster has {total.get('CPU', 0):g} and {total.get('GPU', 0):g}"
            )
        self.seats = min(room, len(tasks))

    def run(self) -> Generator[TaskReport, None, None]:
        try:
            for _ in range(self.seats):
                self._hand_out(self._new_seat())
            while self.held:
                ready, _ = self.ray.wait(list(self.held), num_returns=1, timeout=0.5)
                for said, task in ((read_beat(task), task) for _, task in self.held.values()):
                    if said is not None:
                        self.progress.live(task.name, said)
                for reference in ready:
                    report = self._collect(reference)
                    if report is not None:
                        yield report
        finally:
            for actor, _ in self.held.values():
                self.ray.kill(actor)

    def _new_seat(self) -> Any:
        return self.actor.remote(self.stage.start, self.stage.args)

    def _hand_out(self, actor: Any) -> None:
        if self.waiting:
            task = self.waiting.pop()
            self.held[actor.perform.remote(task)] = (actor, task)

    def _collect(self, reference: Any) -> TaskReport | None:
        actor, task = self.held.pop(reference)
        try:
            report = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:  # the process died, or its worker did not start
            report = TaskReport(task.name, "failed", error=f"worker lost: {error}")
            actor = self._new_seat()
        if report.status == "failed" and self.tries_left[task.name] > 0:
            self.tries_left[task.name] -= 1
            self.waiting.append(task)
            report = None
        if report is not None and report.status == "fatal":
            self.waiting.clear()
        self._hand_out(actor)
        return report


def make_engine(name: str, *, address: str | None = None, cpus: int | None = None) -> Engine:
    """The engine that a recipe names: `ray` or `here`."""
    if name == "here":
        return Here()
    if name == "ray":
        return OnRay(address, cpus=cpus)
    raise ConfigError(f"engine is {name!r}, expected 'ray' or 'here'")
