"""The engine `ray`: the tasks of a stage in Ray actors, on this machine or on a cluster."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Sequence
from typing import Any

from .errors import ConfigError
from .runner import Progress, Seat, Stage, Task, TaskReport, read_beat


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
        self._idle: list[Any] = []  # actors between two stages: a new one costs a second of imports
        self._size = (0.0, 0.0)  # CPUs and GPUs that each of them holds

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]:
        if not tasks:
            return
        if self._ray is None:
            self._ray = _start_ray(self.address, self.cpus)
        if (stage.cpus, stage.gpus) != self._size:
            self._dismiss()
            self._size = (stage.cpus, stage.gpus)
        yield from _Crew(self._ray, stage, tasks, progress, self.retries, self._idle).run()

    def _dismiss(self) -> None:
        while self._idle:
            self._ray.kill(self._idle.pop())

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
    on_term = signal.getsignal(signal.SIGTERM)
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # Ray's answer would be its stack and an abort
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


class _Crew:
    """The actors of one stage, and which task each holds. `idle` are those that wait for one."""

    def __init__(
        self, ray: Any, stage: Stage, tasks: Sequence[Task], progress: Progress, retries: int, idle: list[Any]
    ) -> None:
        self.idle = idle
        self.ray, self.stage, self.progress = ray, stage, progress
        options = {"num_cpus": stage.cpus, "num_gpus": stage.gpus, "max_restarts": 0}
        self.actor = ray.remote(Seat).options(**options)
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
                self._hand_out(self._turned_seat() if self.idle else self._new_seat())
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
        return self.actor.remote(self.stage)

    def _turned_seat(self) -> Any:
        actor = self.idle.pop()
        actor.turn_to.remote(self.stage)  # an actor's calls run in the order in which they are made
        return actor

    def _hand_out(self, actor: Any) -> None:
        if self.waiting:
            task = self.waiting.pop()
            self.held[actor.perform.remote(task)] = (actor, task)
        else:
            self.idle.append(actor)

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
