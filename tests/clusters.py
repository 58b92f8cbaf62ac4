"""Ray clusters of several nodes on this machine, and a look at which node works."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

STORE = 80 * 2**20  # bytes of shared memory for each node; the least that Ray takes is 75 MiB


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """A cluster of nodes with one CPU each; the first is the head."""
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, **how: Any) -> Any:
    """One more node of one CPU."""
    return cluster.add_node(num_cpus=1, object_store_memory=STORE, **how)


def kill_node(cluster: Any, node: Any) -> None:
    """As if its machine had lost power."""
    cluster.remove_node(node, allow_graceful=False)


def working_node(cluster: Any) -> Any | None:
    """A node other than the head of which a process is doing a task, or None."""
    for node in cluster.worker_nodes:
        try:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            names = ["".join(child.cmdline()) for child in raylet.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        if any(name.startswith("ray::pairmill_task") for name in names):
            return node
    return None


def wait_for(met: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `met` returns, as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found
