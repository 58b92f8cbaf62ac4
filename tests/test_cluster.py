"""A cluster that loses nodes, gains others, and is not always there: the run goes on or says why not."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import add_node, cluster_of, kill_node, wait_for, working_node

from pairmill import ray_engine
from pairmill.errors import ConfigError, RetryableError
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.ray_start import HELLO, knock
from pairmill.ray_worker import make_entry
from pairmill.runner import Stage, Tally, Task, TaskReport, Worker

pytestmark = pytest.mark.ray


def by_value(stage: Stage) -> Stage:
    """The stage with its factory pickled whole: this file is no module that a Ray worker could import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return stage


def tasks(n: int) -> list[Task]:
    return [Task("work", f"{i:02d}") for i in range(n)]


def start_held_up(folder: Path) -> Worker:
    """A worker whose tasks note their node, and stay until `folder/go` is there."""

    def work(task: Task) -> Tally:
        import ray

        with open(folder / task.name, "a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\n")
        while not (folder / "go").exists():
            time.sleep(0.02)
        return Tally({"rows": 1})

    return work


def start_saying_pid() -> Worker:
    """A worker that says its process."""
    return lambda task: Tally({"rows": 1}, {"pid": os.getpid()})


def nodes_of(folder: Path) -> dict[str, list[str]]:
    """On which nodes each task was tried."""
    return {path.name: path.read_text().split() for path in folder.iterdir() if path.name.isdigit()}


class Run:
    """A stage on a cluster, in a thread, for the test is what happens meanwhile."""

    def __init__(self, engine: OnRay, stage: Stage, n: int) -> None:
        self.engine = engine
        self.reports: list[TaskReport] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._go, args=(stage, n))
        self._thread.start()

    def _go(self, stage: Stage, n: int) -> None:
        try:
            self.reports.extend(self.engine(by_value(stage), tasks(n), Quiet()))
        except Exception as error:  # noqa: BLE001  for the test to judge
            self.error = error

    def wait(self) -> list[TaskReport]:
        """The reports, when all are there."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return sorted(self.reports, key=lambda report: report.task)


@pytest.fixture
def cluster(on_ray: OnRay) -> Iterator[Any]:
    """Three nodes of one CPU; a process can be in one Ray at a time, so the tests' own stops."""
    on_ray.close()
    with cluster_of(3) as made:
        yield made


def test_a_lost_node_and_one_that_joins_are_made_use_of(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tasks hold all CPUs; a node goes and another comes while none of them ends."""
    monkeypatch.setattr(ray_engine, "COUNT_EVERY_S", 0.1)
    engine = OnRay(cluster.address, patience_s=1.0)
    run = Run(engine, Stage("work", start_held_up, (tmp_path,)), 8)
    wait_for(lambda: len(nodes_of(tmp_path)) == 3)
    lost = wait_for(lambda: working_node(cluster))
    kill_node(cluster, lost)
    joined = add_node(cluster, num_gpus=1)
    wait_for(lambda: any(joined.node_id in nodes for nodes in nodes_of(tmp_path).values()))
    (tmp_path / "go").touch()
    reports = run.wait()
    assert [(report.task, report.status, report.error) for report in reports] == [
        (task.name, "done", "") for task in tasks(8)
    ]
    tried = nodes_of(tmp_path)
    twice = [nodes for nodes in tried.values() if len(nodes) > 1]
    assert [nodes[0] for nodes in twice] == [lost.node_id]
    assert sum(map(len, tried.values())) == 9

    found = Run(engine, Stage("work", start_saying_pid, gpus=1), 6).wait()
    assert len({report.tally.facts["pid"] for report in found}) == 1  # not a process for each task

    with pytest.raises(RetryableError, match=r"asks for 2 CPUs .* largest of \d nodes has 1 .*goes on"):
        Run(engine, Stage("work", start_held_up, (tmp_path,), cpus=2), 1).wait()
    engine.close()


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("__version__ = '0.0.9'\n", "pairmill 0.0.9 there, 0.1.0 here: install pairmill 0.1.0 on every node"),
        ("raise ImportError('no such thing')\n", r"pairmill cannot be imported there \(no such thing\): "),
    ],
)
def test_a_node_with_another_pairmill_or_none_is_one_line(
    package: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "pairmill").mkdir()
    (tmp_path / "pairmill" / "__init__.py").write_text(package)
    import ray

    entry = ray.cloudpickle.dumps(make_entry())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pickle; " + (
        f"print(pickle.loads({entry!r})('0.1.0', 'x', b'', b'', None))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^node \S+ \(.*\): {expected}", said), said
    assert said.count("\n") == 1


def test_auto_with_the_address_of_a_cluster_that_is_gone_is_found_out_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", gone)
    with pytest.raises(ConfigError, match=rf"run.address is auto, and no Ray cluster at {gone} .*refused"):
        knock("auto")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_a_server_that_is_no_ray_is_told_apart(answer: bytes | None) -> None:
    """answer: what it sends; nothing at all and the connection open where None."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def serve() -> None:
            connection, _ = server.accept()
            taken.append(connection)
            if answer is not None:
                connection.recv(len(HELLO))
                connection.sendall(answer)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        said = "timed out" if answer is None else "something else answers there"
        with pytest.raises(ConfigError, match=f"no Ray cluster at {address}: {said}"):
            knock(address, timeout_s=0.3)
        for connection in taken:
            connection.close()
