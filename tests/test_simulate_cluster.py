"""The simulation of a cluster: the same twice, every task once, and what can be reckoned by hand is so."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def events() -> ModuleType:
    return importlib.import_module("cluster_events")


def whole() -> ModuleType:
    return importlib.import_module("simulate_cluster")


def phase(
    lengths: list[float], *, lanes: list[int] | None = None, on_disk: bool = False, **cluster: Any
) -> Any:
    own = None if lanes is None else np.array(lanes)
    work = events().Work(np.array(lengths), own, on_disk)
    return events().Phase(work, events().Cluster(**cluster), np.random.default_rng(1))


@pytest.mark.parametrize(
    ("tasks", "nodes", "cores"), [(1, 1, 1), (10, 1, 1), (10, 1, 4), (96, 3, 8), (97, 3, 8)]
)
def test_equal_tasks_take_as_many_rounds_as_fill_the_slots(tasks: int, nodes: int, cores: int) -> None:
    course = phase([7.0] * tasks, nodes=nodes, cores=cores).run()
    assert course.seconds == pytest.approx(7 * math.ceil(tasks / (nodes * cores)))
    assert (course.done, course.attempts, course.lost) == (tasks, tasks, 0)


def test_one_core_takes_the_sum_of_all_lengths() -> None:
    lengths = np.random.default_rng(3).exponential(10, 100).tolist()
    assert phase(lengths, nodes=1, cores=1).run().seconds == pytest.approx(sum(lengths))


def test_no_more_tasks_begin_than_the_driver_hands_out() -> None:
    assert phase([0.0] * 10, nodes=8, cores=8, hand_out_s=0.5).run().seconds == pytest.approx(5)
    assert phase([4.0] * 10, nodes=8, cores=8, hand_out_s=0.5).run().seconds == pytest.approx(9)
    assert phase([4.0] * 10, nodes=1, cores=1, hand_out_s=0.5).run().seconds == pytest.approx(45)


def test_tasks_of_one_lane_run_one_after_the_other_and_others_beside_them() -> None:
    assert phase([5.0] * 6, lanes=[0] * 6, nodes=4, cores=4).run().seconds == pytest.approx(30)
    assert phase([5.0] * 6, lanes=[0, 1, 0, 1, 0, 1], nodes=4, cores=4).run().seconds == pytest.approx(15)
    assert phase([5.0] * 6, lanes=[0, -1, 0, -1, -1, -1], nodes=1, cores=2).run().seconds == pytest.approx(15)


def test_a_slow_disk_slows_what_reads_it_and_nothing_else() -> None:
    slow = {"nodes": 1, "cores": 2, "slow_nodes": 1, "slow_factor": 3.0}
    assert phase([5.0] * 4, on_disk=True, **slow).run().seconds == pytest.approx(30)
    assert phase([5.0] * 4, **slow).run().seconds == pytest.approx(10)


def test_a_lost_node_costs_its_tasks_and_none_is_done_twice_or_never() -> None:
    lanes = [n % 7 if n % 3 == 0 else -1 for n in range(500)]
    run = phase([600.0] * 500, lanes=lanes, nodes=5, cores=4, losses_per_hour=6.0)
    ended, running, worst = Counter[int](), Counter[int](), Counter[int]()
    begin, end, leave = run._begin, run._end, run._leave_lane

    def note_begin(node: int, task: int) -> None:
        begin(node, task)
        running[lanes[task]] += 1
        worst[lanes[task]] = max(worst[lanes[task]], running[lanes[task]])

    def note_leave(task: int) -> None:
        running[lanes[task]] -= 1
        leave(task)

    def note_end(node: int, task: int) -> None:
        ended[task] += 1
        end(node, task)

    run._begin, run._end, run._leave_lane = note_begin, note_end, note_leave
    course = run.run()
    assert ended == Counter(range(500))
    assert course.lost > 20
    assert course.attempts == course.done + course.lost == 500 + course.lost
    assert course.seconds > 600 * 500 / 20
    assert [worst[lane] for lane in range(7)] == [1] * 7


class Planned:
    """Dice that lose a node at seconds 300 and 1,100, once more while it is away, and never again."""

    def __init__(self) -> None:
        self.gaps = iter([300.0, 800.0, 20.0, 1e9])

    def exponential(self, mean: float) -> float:
        return next(self.gaps)

    def integers(self, most: int) -> int:
        return 0


def test_a_node_that_was_lost_comes_back_after_its_time_and_begins_the_task_anew() -> None:
    run = phase([1000.0], nodes=1, cores=1, losses_per_hour=1.0, back_after_s=50.0)
    run.dice = Planned()
    course = run.run()
    assert (course.seconds, course.lost, course.attempts) == (1150 + 1000, 2, 3)


def test_lengths_scatter_about_their_mean() -> None:
    lengths = whole().lengths_of(100_000, 60.0, 0.5, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(60, rel=0.01)
    assert np.log(lengths).std() == pytest.approx(0.5, rel=0.01)


def test_a_giant_host_takes_what_its_budget_says() -> None:
    module, giant = whole(), events().Giant(share=0.1, rate=10.0, lanes=4)
    stage = {"per_s": 1e9, "per_task": 1000, "giant": True}
    total = module.simulate_stage(stage, 1e6, events().Cluster(), giant, np.random.default_rng(0))
    assert total.seconds == pytest.approx(100_000 / 10, rel=1e-3)


def test_blocks_are_joined_side_by_side_and_settled_one_by_one() -> None:
    stage = {"per_s": 1e9, "per_task": 10, "join_s": 3.0, "settle_s": 5.0, "sigma": 0.0}
    wide = events().Cluster(nodes=1, cores=100)
    total = whole().simulate_stage(stage, 200, wide, events().Giant(), np.random.default_rng(0))
    assert total.seconds == pytest.approx(19 * 3 + 20 * 5, abs=1e-3)
    assert total.tasks == 20 + 20 * 19 // 2 + 20


def test_blocks_that_are_too_many_stand_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"per_s": 1e9, "per_task": 10, "join_s": 3.0, "settle_s": 5.0, "sigma": 0.0}
    narrow = events().Cluster(nodes=1, cores=4)
    times = []
    for most in (10**6, 1500):
        monkeypatch.setattr(whole(), "MOST_JOINS", most)
        total = whole().simulate_stage(stage, 1000, narrow, events().Giant(), np.random.default_rng(0))
        times.append(total.seconds)
    assert times[1] == pytest.approx(times[0], rel=0.03)
    assert times[1] != times[0]


def test_the_command_says_the_same_twice_and_another_thing_with_another_seed() -> None:
    """One line of JSON; all tasks of every stage, and dollars that follow from hours and requests."""

    def said(*more: str) -> str:
        command = [
            sys.executable,
            str(BENCHMARKS / "simulate_cluster.py"),
            "--rows",
            "2e7",
            "--nodes",
            "4",
            *more,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    first = said()
    assert said() == first
    assert said("--seed", "1") != first
    line = json.loads(first)
    assert first.count("\n") == 1
    assert line["tasks"] == sum(stage["tasks"] for stage in line["stages"].values())
    assert line["stages"]["language"]["tasks"] == 200
    assert line["dollars"]["nodes"] == pytest.approx(line["hours"] * 4 * 1.36, abs=1)


def test_a_cluster_without_nodes_is_refused_in_one_line() -> None:
    command = [sys.executable, str(BENCHMARKS / "simulate_cluster.py"), "--nodes", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("must be above 0")
