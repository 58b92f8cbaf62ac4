"""The seam: the same tasks, the same reports, in this process and on Ray."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pairmill import runner
from pairmill.errors import ConfigError, DataError, OutputError, RetryableError
from pairmill.progress import Quiet
from pairmill.ray_engine import OnRay, _StageRun
from pairmill.runner import (
    Beat,
    Engine,
    Here,
    Stage,
    Tally,
    Task,
    TaskReport,
    Tries,
    Worker,
    beat,
    heard_by,
    may_join,
    perform,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE_S", 0.0)


def tasks_of(*kinds: str) -> list[Task]:
    return [Task("work", f"{i:02d}", {"kind": kind}) for i, kind in enumerate(kinds)]


def start_work(folder: Path, rows: int) -> Worker:
    """A worker for tasks that go wrong as their `kind` says; it counts their tries in `folder`."""

    def fail(kind: str, tries: int) -> None:
        if kind == "data":
            raise DataError("list.csv, row 3: no url")
        if kind == "store" or (kind == "passing" and tries == 1):
            raise RetryableError("s3://bucket: 503")
        if kind == "network":
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out", "s3://bucket/list.csv")
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
    return Here(retries=1) if request.param == "here" else request.getfixturevalue("on_ray")


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


def test_each_task_has_one_report_and_only_what_the_outside_failed_is_tried_again(
    engine: Engine, tmp_path: Path
) -> None:
    expected = {  # kind -> tries, and how its message begins
        "ok": (1, ""),
        "data": (1, "list.csv, row 3: no url"),
        "bug": (1, "Traceback"),
        "passing": (2, ""),
        "store": (2, "s3://bucket: 503 (tried 2 times)"),
        "network": (2, "s3://bucket/list.csv: Connection timed out (tried 2 times)"),
    }
    if engine.name == "ray":
        expected["killed"] = (2, "worker lost: ")
    kinds = [*expected, "ok"]
    found = run(engine, by_value(Stage("work", start_work, (tmp_path, 7))), tasks_of(*kinds))
    assert sorted(found) == [f"{i:02d}" for i in range(len(kinds))]
    for name, kind in ((f"{i:02d}", kind) for i, kind in enumerate(kinds)):
        tries, message = expected[kind]
        assert (tmp_path / name).read_text() == "x" * tries, kind
        assert found[name].error.startswith(message)
        if message:
            assert found[name].status == "failed"
        else:
            assert found[name] == TaskReport(name, "done", Tally({"rows": 7}, {"name": name}))
    assert "ZeroDivisionError: our own" in found["02"].error


def test_tries_are_counted_by_cause_and_a_lost_node_is_borne_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PAUSE_S", 1.0)
    tries = Tries(2)
    lost, outside, node = (TaskReport("a", "failed", cause=cause) for cause in ("worker", "outside", "node"))
    pauses = [tries.pause_before_next(report) for report in (outside, lost, outside, lost, outside, lost)]
    assert pauses == [1.0, 0.0, 2.0, 0.0, None, None]
    assert tries.pause_before_next(replace(outside, task="b")) == 1.0
    borne = [tries.pause_before_next(node) for _ in range(runner.NODE_RETRIES + 1)]
    assert borne == [0.0] * runner.NODE_RETRIES + [None]
    assert Tries(2).pause_before_next(TaskReport("a", "fatal", cause="outside")) is None


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
    with pytest.raises(
        ConfigError, match="asks for 64 CPUs and 0 GPUs per task; the largest of 1 nodes has 2 and 0"
    ):
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

    def live(self, task: str, beat: Beat) -> None:
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
    stage = by_value(Stage("work", start_waiting, (tmp_path,)))
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(on_ray(stage, tasks_of("ok", "ok", "ok"), Interrupting()))
    pids = [int(path.read_text()) for path in tmp_path.iterdir() if path.read_text()]
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


def report_of(error: Exception) -> TaskReport:
    def work(task: Task) -> Tally:
        raise error

    return replace(perform(work, Task("s", "a")), seconds=0.0)


def test_errors_of_the_disk_are_fatal_and_others_are_not() -> None:
    full = report_of(OSError(28, "No space left on device"))
    assert (full.status, full.error) == ("fatal", "a: No space left on device")
    gone = report_of(FileNotFoundError(2, "No such file or directory", "raw/00003.tar"))
    assert (gone.status, gone.error) == ("failed", "raw/00003.tar: No such file or directory")
    assert report_of(OutputError("in use")).status == "fatal"
    assert report_of(ConfigError("recipe")).status == "fatal"  # it holds for every task


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EIO, "Input/output error"), "outside"),
        (OSError(errno.ESTALE, "Stale file handle"), "outside"),
        (ConnectionResetError("closed by the other side"), "outside"),
        (TimeoutError(), "outside"),
        (RetryableError("503"), "outside"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), ""),
        (PermissionError(errno.EACCES, "Permission denied"), ""),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), ""),
        (OSError("Couldn't deserialize thrift"), ""),  # as pyarrow says of a broken file
        (DataError("row 3"), ""),
        (KeyError("x"), ""),
    ],
)
def test_only_what_the_outside_may_have_caused_may_pass(error: Exception, cause: str) -> None:
    found = report_of(error)
    assert (found.status, found.cause) == ("failed", cause)


def test_a_worker_whose_start_the_outside_failed_is_built_again() -> None:
    starts: list[int] = []

    def start() -> Worker:
        starts.append(1)
        if len(starts) == 1:
            raise OSError(errno.EIO, "Input/output error", "model.bin")
        return lambda task: Tally({"rows": 1})

    reports = list(Here()(Stage("embed", start), tasks_of("ok", "ok"), Quiet()))
    assert [report.status for report in reports] == ["done", "done"]
    assert len(starts) == 2


def test_beats_reach_the_progress_of_either_engine(engine: Engine) -> None:
    heard: list[tuple[str, float]] = []

    class Listening(Quiet):
        def live(self, task: str, beat: Beat) -> None:
            heard.append((task, beat["done"]))

    def start() -> Worker:
        def work(task: Task) -> Tally:
            beat(task, 3, 4)
            time.sleep(1.2)  # longer than Ray's driver takes between two looks
            return Tally({"rows": 1})

        return work

    list(engine(Stage("long", start), [Task("long", "00")], Listening()))
    assert ("00", 3) in heard


def test_a_beat_is_passed_on_at_most_twice_a_second_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    heard: list[tuple[str, Beat]] = []
    first, second = Task("s", "a"), Task("s", "b")
    with heard_by(lambda task, beat: heard.append((task.name, beat))):
        beat(first, 1, 10, "first")
        beat(first, 2, 10, "too soon")
        now += 0.5
        beat(first, 3, 10)
        beat(first, 10, 10, "last")
        beat(second, 1, 2)
    beat(second, 2, 2, "nobody hears")
    assert [(name, said["done"], said["note"]) for name, said in heard] == [
        ("a", 1, "first"), ("a", 3, ""), ("a", 10, "last"), ("b", 1, ""),
    ]  # fmt: skip


def start_saying(word: str) -> Worker:
    """A worker that says its stage's word and its process."""
    return lambda task: Tally({word: 1}, {"pid": os.getpid()})


@pytest.mark.ray
def test_processes_go_on_to_the_next_stage(on_ray: OnRay) -> None:
    first, second, wide = (
        run(on_ray, by_value(Stage(word, start_saying, (word,), cpus=cpus)), tasks_of(*["ok"] * 6))
        for word, cpus in (("first", 1), ("second", 1), ("wide", 2))
    )
    pids = [{report.tally.facts["pid"] for report in found.values()} for found in (first, second, wide)]
    assert pids[1] & pids[0]  # Ray may start one more meanwhile
    assert pids[2] & (pids[0] | pids[1])
    assert [report.tally.counts for report in second.values()] == [{"second": 1}] * 6


def start_timed() -> Worker:
    """A worker that says when it worked."""

    def work(task: Task) -> Tally:
        begun = time.time()
        time.sleep(0.2)
        return Tally({"done": 1}, {"begun": begun, "ended": time.time()})

    return work


@pytest.mark.ray
def test_tasks_of_one_lane_or_of_two_turns_are_not_handed_over_together(on_ray: OnRay) -> None:
    tasks = [
        Task("work", f"{turn}-{n}", {"turn": turn} | ({"lane": lane} if lane else {}))
        for turn in ("a", "b")
        for n, lane in enumerate(("x", "x", "x", "y", "y", None, None))
    ]
    found = run(on_ray, by_value(Stage("timed", start_timed, (), cpus=0.25)), tasks)
    assert all(report.status == "done" for report in found.values())
    spans = {task.name: found[task.name].tally.facts for task in tasks}
    together = [
        (one, other)
        for number, one in enumerate(tasks)
        for other in tasks[number + 1 :]
        if spans[one.name]["begun"] < spans[other.name]["ended"]
        and spans[other.name]["begun"] < spans[one.name]["ended"]
    ]
    assert all(may_join(one, [other]) for one, other in together)


class Handing:
    """Stands for what the engine calls of Ray: nothing that is handed over ever ends."""

    def __init__(self) -> None:
        self.cloudpickle, self._engine = self, self
        self.names: list[str] = []
        self._entry = self._beats = self

    def options(self, **_: float) -> Handing:
        return self

    def dumps(self, value: object) -> object:
        return value

    def remote(self, *arguments: object) -> object:
        task = arguments[3]
        assert isinstance(task, Task)
        self.names.append(task.name)
        return object()


def test_what_is_handed_over_is_of_one_turn_and_of_as_many_lanes_as_tasks() -> None:
    ray = Handing()
    engine = OnRay.__new__(OnRay)
    engine._ray, engine._entry, engine._beats, engine.retries = ray, ray, ray, 0
    tasks = [
        Task("work", f"{turn}{n}{lane}", {"turn": turn} | ({"lane": lane} if lane else {}))
        for turn in ("a", "b")
        for n, lane in enumerate(("x", "x", "y", "", ""))
    ]
    stage_run = _StageRun(engine, Stage("work", start_timed), tasks, Quiet())
    stage_run.room = 20
    stage_run._hand_over()
    assert ray.names == ["a0x", "a2y", "a3", "a4"]
    stage_run.handed.clear()
    stage_run._hand_over()
    assert ray.names[4:] == ["a1x"]
    stage_run.handed.clear()
    stage_run._hand_over()
    assert ray.names[5:] == ["b0x", "b2y", "b3", "b4"]
