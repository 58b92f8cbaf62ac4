"""The engine `ray`: the tasks of a stage as Ray tasks, on this machine or on a cluster.

The rule: as many tasks are handed over as the nodes hold at the moment, and one more. So nodes that go
are not waited for, and those that join have work at once.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from typing import Any

from . import __version__
from .errors import ConfigError, RetryableError
from .ray_start import start_ray
from .ray_worker import Beats, make_entry
from .runner import Progress, Stage, Task, TaskReport, Tries, failure, may_join

LOOK_EVERY_S = 0.5  # for beats
COUNT_EVERY_S = 2.0  # for nodes
PATIENCE_S = 300.0  # without a node that could run the stage


class OnRay:
    """Runs tasks on Ray, with a bounded number handed over; a task whose node or process dies is retried.

    address: None starts a local Ray that is stopped again by `close`; "auto", "ray://host:port" or
        "host:port" joins a cluster, whose nodes must see the output folder under the same path.
    patience_s: how long to wait for a node of the cluster that can run a stage's tasks.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        retries: int = 2,
        patience_s: float = PATIENCE_S,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "engine 'ray' needs the package ray, which is not installed: pip install ray,"
                " or run in this process with --engine here"
            )
        self.retries, self.address, self.cpus = retries, address, cpus
        self.patience_s = 0.0 if address is None else patience_s  # nothing joins a local Ray
        self._ray: Any = None  # started when there is work: a finished run needs none
        self._entry: Any = None
        self._beats: Any = None

    def __call__(
        self, stage: Stage, tasks: Sequence[Task], progress: Progress
    ) -> Generator[TaskReport, None, None]:
        if not tasks:
            return
        if self._ray is None:
            self._start()
        yield from _StageRun(self, stage, tasks, progress).reports()

    def _start(self) -> None:
        self._ray = ray = start_ray(self.address, self.cpus)
        # max_calls: never a process for each task, which is Ray's habit where tasks ask for GPUs
        self._entry = ray.remote(max_retries=0, max_calls=0)(make_entry())
        node = ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": beside}
        self._beats = ray.remote(Beats).options(**options).remote()

    def close(self) -> None:
        """Leave the cluster; a local one stops."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = None


class _StageRun:
    """One stage on Ray: the tasks that wait, and those that were handed over."""

    def __init__(self, engine: OnRay, stage: Stage, tasks: Sequence[Task], progress: Progress) -> None:
        self.engine, self.stage, self.progress = engine, stage, progress
        self.ray = engine._ray
        self.name = f"{stage.name}-{uuid.uuid4().hex}"  # no process takes this stage for another
        self.pickled = self.ray.cloudpickle.dumps(stage)
        self.entry = engine._entry.options(num_cpus=stage.cpus, num_gpus=stage.gpus)
        self.waiting = deque(tasks)
        self.paused: list[tuple[float, Task]] = []  # when to go on with each
        self.handed: dict[Any, Task] = {}
        self.tries = Tries(engine.retries)
        self.room, self.counted = 0, float("-inf")
        self.homeless_since: float | None = None  # no node can run the stage
        self.looked, self.asked = float("-inf"), None

    def reports(self) -> Generator[TaskReport, None, None]:
        try:
            while self.waiting or self.paused or self.handed:
                self._count_room()
                self._hand_over()
                ready: Iterable[Any] = ()
                if self.handed:
                    ready, _ = self.ray.wait(list(self.handed), num_returns=1, timeout=LOOK_EVERY_S)
                else:
                    time.sleep(0.1)
                self._hear()
                for reference in ready:
                    report = self._collect(reference)
                    if report is not None:
                        yield report
        finally:
            for reference in self.handed:
                with suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(reference, force=True)

    def _count_room(self) -> None:
        """How many tasks the living nodes hold. Raises where for too long none of them held any."""
        now = time.monotonic()
        if now - self.counted < COUNT_EVERY_S:
            return
        self.counted = now
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.room = sum(_fits(self.stage, node) for node in nodes)
        if self.room:
            self.homeless_since = None
            return
        self.homeless_since = self.homeless_since or now
        largest = [max((node.get(kind, 0) for node in nodes), default=0) for kind in ("CPU", "GPU")]
        stage = self.stage
        said = (
            f"stage {stage.name} asks for {stage.cpus:g} CPUs and {stage.gpus:g} GPUs per task;"
            f" the largest of {len(nodes)} nodes has {largest[0]:g} and {largest[1]:g}"
        )
        if now - self.homeless_since >= self.engine.patience_s:
            raise (
                ConfigError(said)
                if self.engine.address is None
                else RetryableError(
                    f"{said}, for {self.engine.patience_s:g} s now; what is finished stays:"
                    " with such a node the same command goes on"
                )
            )
        for task in self._watched()[:1]:
            self.progress.live(task.name, {"done": 0, "total": 1, "note": f"waiting for a node: {said}"})

    def _watched(self) -> list[Task]:
        return [*self.handed.values(), *self.waiting]

    def _hand_over(self) -> None:
        now = time.monotonic()
        self.waiting.extend(task for due, task in self.paused if due <= now)
        self.paused = [(due, task) for due, task in self.paused if due > now]
        while len(self.handed) <= self.room:  # one more: it asks an autoscaler for a node
            running = self.handed.values()
            task = next((task for task in self.waiting if may_join(task, running)), None)
            if task is None:
                break
            self.waiting.remove(task)
            pickled = self.ray.cloudpickle.dumps(task)
            arguments = (__version__, self.name, self.pickled, pickled, self.engine._beats)
            self.handed[self.entry.remote(*arguments)] = task

    def _hear(self) -> None:
        """Pass on what the tasks said; the answer of one look is read at the next."""
        now = time.monotonic()
        if now - self.looked < LOOK_EVERY_S:
            return
        self.looked = now
        if self.asked is not None:
            if not self.ray.wait([self.asked], timeout=0)[0]:
                return
            said = {}
            with suppress(self.ray.exceptions.RayError):  # the actor is started again by itself
                said = self.ray.get(self.asked)
            running = {task.name for task in self.handed.values()}
            for (stage, task), beat in said.items():
                if stage == self.stage.name and task in running:
                    self.progress.live(task, beat)
        self.asked = self.engine._beats.take.remote()

    def _collect(self, reference: Any) -> TaskReport | None:
        """The report of a task that ended; None where it is tried again."""
        task = self.handed.pop(reference)
        report = self._report_of(reference, task)
        if report.status == "fatal":
            self.waiting.clear()
            self.paused.clear()
        pause = self.tries.pause_before_next(report)
        if pause is None:
            return self.tries.last(report)
        self.paused.append((time.monotonic() + pause, task))
        return None

    def _report_of(self, reference: Any, task: Task) -> TaskReport:
        errors = self.ray.exceptions
        try:
            said = self.ray.get(reference)
        except errors.RayTaskError as error:  # raised before the worker could make a report of it
            return failure(task, error)
        except (errors.NodeDiedError, errors.LocalRayletDiedError) as error:
            return TaskReport(task.name, "failed", error=f"node lost: {_first_line(error)}", cause="node")
        except errors.RayError as error:
            return TaskReport(task.name, "failed", error=f"worker lost: {_first_line(error)}", cause="worker")
        return TaskReport(task.name, "fatal", error=said) if isinstance(said, str) else said


def _fits(stage: Stage, node: dict[str, float]) -> int:
    """How many tasks of the stage a node with these resources holds."""
    asked = {"CPU": stage.cpus, "GPU": stage.gpus}
    return min((int(node.get(kind, 0) / n + 1e-9) for kind, n in asked.items() if n), default=1)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
