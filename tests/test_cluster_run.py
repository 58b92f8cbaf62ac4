"""Whole runs on three nodes: one is lost in each stage that matters, and once the driver; the bytes agree."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster_of, kill_node, wait_for, working_node
from whole_runs import digests, finish, kill_tree, start, wait

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(out, "here")
    return digests(out)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU; the driver is a process of its own."""
    with cluster_of(3) as made:
        yield made


def has_begun(running: subprocess.Popen[bytes], out: Path, stage: str, before: str) -> None:
    """Wait until `before` is finished; then `stage` has begun and is not finished, or the test says so."""
    wait_for(lambda: any((out / "_done" / before).glob("*.json")) or running.poll() is not None, 300)
    assert running.poll() is None, out.with_suffix(".log").read_text()[-3000:]


@pytest.mark.parametrize(
    ("stage", "before"), [("fetch", "plan-fetch"), ("bootstrap", "tokenizer"), ("write", "plan-write")]
)
def test_a_node_lost_in_a_stage_changes_no_byte(
    expected: dict[str, str], cluster: Any, tmp_path: Path, stage: str, before: str
) -> None:
    out = tmp_path / "out"
    running = start(out, "ray", f"run.address={cluster.address}")
    has_begun(running, out, stage, before)
    kill_node(cluster, wait_for(lambda: working_node(cluster)))
    wait(running, out)
    assert digests(out) == expected


def test_a_driver_that_is_killed_leaves_a_run_that_goes_on(
    expected: dict[str, str], cluster: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = f"run.address={cluster.address}"
    running = start(out, "ray", settings)
    has_begun(running, out, "fetch", "plan-fetch")
    wait_for(lambda: working_node(cluster))
    kill_tree(running)
    finish(out, "ray", settings)
    assert digests(out) == expected
