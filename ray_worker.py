"""What runs in Ray's processes: a stage's tasks, and beside the driver what is heard of them.

A process keeps the worker of its last stage, so a model is loaded once; a process without work for some
seconds lets go of it, for another may need its memory.
"""

from __future__ import annotations

import gc
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

from .runner import Beat, LazyWorker, Listener, Stage, Task, TaskReport, heard_by

IDLE_S = 10.0


class HeldWorker:
    """The worker of the stage that this process did a task of last."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self.idle_s = idle_s
        self._lock = threading.Lock()
        self._name = ""
        self._worker: LazyWorker | None = None
        self._timer: threading.Timer | None = None

    def perform(self, name: str, stage: bytes, task: bytes, listener: Listener) -> TaskReport:
        """Do a task of the pickled `stage`; `name` is another for every stage of every run."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._worker is None or self._name != name:
                self._free()  # before the next one takes memory
                self._name, self._worker = name, _worker(pickle.loads(stage))
            try:
                with heard_by(listener):
                    return self._worker.perform(pickle.loads(task))
            finally:
                self._timer = threading.Timer(self.idle_s, self.let_go)
                self._timer.daemon = True
                self._timer.start()

    def let_go(self) -> None:
        """Drop the worker, unless a task is running."""
        if self._lock.acquire(blocking=False):
            self._free()
            self._lock.release()

    def _free(self) -> None:
        if self._worker is None:
            return
        self._worker = None
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _worker(stage: Stage) -> LazyWorker:
    torch = sys.modules.get("torch")
    if torch is not None:  # the stage before may have had more of them, and their number moves the last bits
        torch.set_num_threads(max(1, int(stage.cpus)))
    return LazyWorker(stage)


HELD = HeldWorker()


def perform(name: str, stage: bytes, task: bytes, beats: Any) -> TaskReport:
    """Do one task in this process; its beats go to the actor `beats`, which nobody waits for."""

    def tell(task: Task, beat: Beat) -> None:
        beats.put.remote((task.stage, task.name), beat)

    return HELD.perform(name, stage, task, tell)


class Beats:
    """The last beat of every task since it was last asked for: an actor without CPUs beside the driver."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], Beat] = {}

    def put(self, task: tuple[str, str], beat: Beat) -> None:
        """Note how far a task is, by stage and name."""
        self._last[task] = beat

    def take(self) -> dict[tuple[str, str], Beat]:
        """What was noted since the last call."""
        last, self._last = self._last, {}
        return last


def make_entry() -> Callable[..., TaskReport | str]:
    """The function that Ray calls for a task. It travels by value, for a node may have no pairmill.

    It returns the task's report, or what is wrong with the node.
    """

    def pairmill_task(
        version: str, name: str, stage: bytes, task: bytes, beats: Any
    ) -> TaskReport | str:  # by value only what is defined in here goes along
        import socket
        import sys

        node = f"node {socket.gethostname()} ({sys.executable})"
        cure = f"install pairmill {version} on every node of the cluster"
        try:
            import pairmill
        except ImportError as error:
            return f"{node}: pairmill cannot be imported there ({error}): {cure}"
        if pairmill.__version__ != version:
            return f"{node}: pairmill {pairmill.__version__} there, {version} here: {cure}"
        try:
            from pairmill import ray_worker
        except ImportError as error:
            return f"{node}: {error}: {cure}, with its dependencies"
        return ray_worker.perform(name, stage, task, beats)

    return pairmill_task
