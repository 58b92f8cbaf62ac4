"""The seam: the same tasks, the same reports, in this process and on Ray."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pairmill.errors import ConfigError, DataError, OutputError
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay
from pairmill.runner import (
    Engine,
    Here,
    Stage,
    Tally,
    Task,
    TaskReport,
    Worker,
    beat,
    perform,
    read_beat,
)


def tasks_of(*kinds: str) -> list[Task]:
    return [Task("work", f"{i:02d}", {"kind": kind}) for i, kind in enumerate(kinds)]


def start_work(folder: Path, rows: int) -> Worker:
    """A worker for tasks that go wrong as their `kind` says; it counts their tries in `folder`."""

    def fail(kind: str, tries: int) -> None:
        if kind == "data" or (kind == "passing" and tries == 1):
            raise DataError("list.csv, row 3: no url")
        if kind == "bug":
            raise ZeroDivisionError("our own")
        if kind == "disk":
            raise OutputError("the disk is full")
        if kind == "killed":
            os.kill(os.getpid(), 9)

    def work(task: Task) -> Tally:
        with open(folder / task.name, "a") as file:
            file.write("x")
        fail(task.data["kind"], len((folder / task.name).read_text()))
        return Tally({"rows": rows}, {"name": task.name})

    return work


def start_badly(error: type[Exception]) -> Worker:
    raise error("no model at model/x.bin")


@pytest.fixture(params=["here", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return Here() if request.param == "here" else request.getfixturevalue("on_ray")


def run(engine: Engine, stage: Stage, tasks: list[Task]) -> dict[str, TaskReport]:
    """Reports by task, without their seconds."""
    reports = [replace(report, seconds=0.0) for report in engine(stage, tasks, Quiet())]
    assert len({report.task for report in reports}) == len(reports)
    return {report.task: report for report in sorted(reports, key=lambda report: report.task)}


def by_value(stage: Stage) -> Stage:
    """The stage with its factory pickled whole: this file is no module that a Ray worker could import."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return stage


def test_each_task_has_one_report_and_a_failed_one_stops_no_other(engine: Engine, tmp_path: Path) -> None:
    kinds = ["ok", "data", "ok", "bug", "passing", "ok", *(["killed", "ok"] if engine.name == "ray" else [])]
    found = run(engine, by_value(Stage("work", start_work, (tmp_path, 7))), tasks_of(*kinds))
    bad = {"data", "bug", "killed"}
    for name, kind in ((f"{i:02d}", kind) for i, kind in enumerate(kinds)):
        if kind not in bad:
            assert found[name] == TaskReport(name, "done", Tally({"rows": 7}, {"name": name}))
        assert (tmp_path / name).read_text() == ("x" if kind == "ok" else "xx")
    assert sorted(found) == [f"{i:02d}" for i in range(len(kinds))]
    failed = [report.error for report in found.values() if report.status == "failed"]
    assert failed[0] == "list.csv, row 3: no url"
    assert failed[1].startswith("Traceback")
    assert "ZeroDivisionError: our own" in failed[1]
    assert [error.partition(":")[0] for error in failed[2:]] == ["worker lost"] * kinds.count("killed")


def test_no_tasks_start_nothing() -> None:
    for engine in (Here(), OnRay(address="127.0.0.1:1")):
        assert run(engine, Stage("work", start_badly, (ValueError,)), []) == {}
        engine.close()


def test_a_fatal_task_is_not_tried_again(engine: Engine, tmp_path: Path) -> None:
    stage = by_value(Stage("work", start_work, (tmp_path, 7)))
    reports = engine(stage, tasks_of("ok", "ok", "disk", "ok", "ok"), Quiet())
    worst = next(report for report in reports if report.status != "done")
    reports.close()
    assert (worst.task, worst.status, worst.error) == ("02", "fatal", "the disk is full")
    assert (tmp_path / "02").read_text() == "x"


@pytest.mark.parametrize("error", [ConfigError, ValueError])
def test_a_worker_that_cannot_start_is_fatal(error: type[Exception]) -> None:
    first = next(Here()(Stage("embed", start_badly, (error,)), tasks_of("ok", "ok"), Quiet()))
    assert first.status == "fatal"
    assert "no model at model/x.bin" in first.error
    assert ("Traceback" in first.error) == (error is ValueError)


def start_counting(folder: Path) -> Worker:
    """A worker that notes how many tasks run at the same time as its own."""

    def work(task: Task) -> Tally:
        mine = folder / f"{task.name}.running"
        mine.touch()
        together = len(list(folder.glob("*.running")))
        time.sleep(0.02)  # long enough for the other seat to come in
        mine.unlink()
        return Tally({"together": together})

    return work


@pytest.mark.ray
def test_no_more_tasks_run_than_the_cores_hold(on_ray: OnRay, tmp_path: Path) -> None:
    stage = by_value(Stage("work", start_counting, (tmp_path,), cpus=2))
    found = run(on_ray, stage, tasks_of(*["ok"] * 8))
    assert [report.tally.seen for report in found.values()] == [1] * 8


@pytest.mark.ray
def test_a_stage_that_asks_for_more_than_there_is_says_so(on_ray: OnRay) -> None:
    with pytest.raises(ConfigError, match="asks for 64 CPUs and 0 GPUs per task; the cluster has 2 and 0"):
        run(on_ray, Stage("work", start_badly, (ValueError,), cpus=64), tasks_of("ok"))
    with pytest.raises(ConfigError, match="asks for 1 CPUs and 1 GPUs"):
        run(on_ray, Stage("work", start_badly, (ValueError,), gpus=1), tasks_of("ok"))


def start_waiting(folder: Path) -> Worker:
    """A worker that says who it is and then waits for a minute."""

    def work(task: Task) -> Tally:
        (folder / task.name).write_text(str(os.getpid()))
        for step in range(600):
            beat(task, step, 600, "waiting")
            time.sleep(0.1)
        return Tally({"rows": 1})

    return work


class Interrupting(Quiet):
    """Progress that plays Ctrl-C as soon as a worker has been heard."""

    def live(self, task: str, beat: Mapping[str, Any]) -> None:
        """Raises KeyboardInterrupt."""
        assert beat["note"] == "waiting"
        raise KeyboardInterrupt


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.ray
def test_ctrl_c_ends_the_workers_at_once(on_ray: OnRay, tmp_path: Path) -> None:
    tasks = [
        replace(task, live=str(tmp_path / "live" / f"{task.name}.json"))
        for task in tasks_of("ok", "ok", "ok")
    ]
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(on_ray(by_value(Stage("work", start_waiting, (tmp_path,))), tasks, Interrupting()))
    pids = [int(path.read_text()) for path in tmp_path.iterdir() if path.is_file() and path.read_text()]
    assert pids
    while any(map(is_alive, pids)):
        assert time.monotonic() - begun < 30
        time.sleep(0.05)


def test_without_ray_the_engine_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install ray.*--engine here"):
        OnRay()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_refused_at_once(address: str) -> None:
    engine = OnRay(address)
    with pytest.raises(ConfigError, match=f"no Ray cluster at {re.escape(address)}: "):
        run(engine, Stage("work", start_badly, (ValueError,)), tasks_of("ok"))


def test_errors_of_the_disk_are_fatal_and_others_are_not() -> None:
    def report(error: Exception) -> TaskReport:
        def work(task: Task) -> Tally:
            raise error

        return perform(work, Task("s", "a"))

    full = report(OSError(28, "No space left on device"))
    assert (full.status, full.error) == ("fatal", "a: No space left on device")
    gone = report(FileNotFoundError(2, "No such file or directory", "raw/00003.tar"))
    assert (gone.status, gone.error) == ("failed", "raw/00003.tar: No such file or directory")
    assert report(PermissionError(13, "Permission denied", "list.csv")).status == "failed"
    assert report(ConfigError("recipe")).status == "failed"


def test_beats_reach_the_progress_of_either_engine(engine: Engine, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []

    class Listening(Quiet):
        def live(self, task: str, beat: Mapping[str, Any]) -> None:
            heard.append((task, beat["done"]))

    def start() -> Worker:
        def work(task: Task) -> Tally:
            beat(task, 3, 4)
            time.sleep(1.2)  # longer than the engines take between two looks
            return Tally({"rows": 1})

        return work

    task = Task("long", "00", live=str(tmp_path / "live" / "00.json"))
    list(engine(Stage("long", start), [task], Listening()))
    assert ("00", 3) in heard


def test_a_beat_is_written_at_most_twice_a_second_and_at_the_end(tmp_path: Path) -> None:
    task = Task("s", "a", live=str(tmp_path / "live" / "a.json"))
    assert read_beat(task) is None
    beat(task, 1, 10, "first")
    beat(task, 2, 10, "too soon")
    assert read_beat(task) == {"done": 1, "total": 10, "note": "first"}
    beat(task, 10, 10, "last")
    assert read_beat(task) == {"done": 10, "total": 10, "note": "last"}
    Path(str(task.live)).write_text("{")
    assert read_beat(task) is None
    beat(Task("s", "b"), 1, 2)
    assert read_beat(Task("s", "b")) is None


def start_saying(word: str) -> Worker:
    """A worker that says its stage's word and its process."""
    return lambda task: Tally({word: 1}, {"pid": os.getpid()})


@pytest.mark.ray
def test_processes_go_on_to_the_next_stage_of_the_same_size(on_ray: OnRay) -> None:
    first, second, wide = (
        run(on_ray, by_value(Stage(word, start_saying, (word,), cpus=cpus)), tasks_of(*["ok"] * 6))
        for word, cpus in (("first", 1), ("second", 1), ("wide", 2))
    )
    pids = [{report.tally.facts["pid"] for report in found.values()} for found in (first, second, wide)]
    assert pids[1] <= pids[0]
    assert not pids[2] & pids[0]
    assert [report.tally.counts for report in second.values()] == [{"second": 1}] * 6
