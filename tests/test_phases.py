"""A stage over partitions: its phases send rows, run only where it is not finished, and leave nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pairmill import pipeline
from pairmill.errors import DataError
from pairmill.pipeline import Summary
from pairmill.progress import Quiet
from pairmill.recipe import build_recipe
from pairmill.runner import Here, Stage, Tally, Task, Worker
from pairmill.shards.commit import write_json
from pairmill.shards.damage import check_files
from pairmill.shards.exchange import exchange_folder, gather, scatter
from pairmill.shards.store import open_store
from pairmill.steps import Job, Phase, Step

PARTS, NUMBERS = 3, {"a": [1, 2, 3, 4], "b": [5, 6], "c": []}


def send(out: Path, broken: str) -> Worker:
    def work(task: Task) -> Tally:
        (out / "tries").mkdir(exist_ok=True)
        with open(out / "tries" / f"{task.stage}-{task.name}", "a") as file:
            file.write("x")
        if task.name == broken:
            raise DataError(f"{task.name} is broken")
        n = np.array(NUMBERS[task.name], np.int64)
        rows = pa.table({"n": pa.array(n, pa.int64())})
        scatter(open_store(out), exchange_folder("sum"), task.name, rows, n % PARTS, PARTS)
        return Tally({"sent": len(n)})

    return work


def add(out: Path) -> Worker:
    def work(task: Task) -> Tally:
        store, part = open_store(out), int(task.name)
        found = [
            n for _, table in gather(store, exchange_folder("sum"), part) for n in table["n"].to_pylist()
        ]
        write_json(found, out / "sums" / f"{task.name}.json")
        return Tally({"added": len(found)})

    return work


def step(broken: str = "") -> Step:
    """Numbers of three sources, sent to the partition of their remainder and written there."""

    def prepare(job: Job) -> Iterator[Phase]:
        tasks = [Task("sum.send", name) for name in NUMBERS]
        yield tasks, Stage("sum.send", send, (job.out, broken))
        assert len(list((job.out / "_exchange/sum").iterdir())) == len(
            NUMBERS
        )  # the second waits for the first

    def build(job: Job) -> tuple[Sequence[Task], Stage]:
        return [Task("sum", f"{p}") for p in range(PARTS)], Stage("sum", add, (job.out,))

    return Step("sum", "sum", build, prepare=prepare)


def run(out: Path, step: Step) -> tuple[Summary, str]:
    out.mkdir(exist_ok=True)
    summary = Summary("test", str(out))
    job = Job(build_recipe({}, "test"), out)
    problem = pipeline._run_steps(job, summary, [step], False, Here(retries=0), Quiet())
    return summary, problem


def left(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_rows_reach_their_partition_and_nothing_else_is_left(tmp_path: Path) -> None:
    summary, problem = run(tmp_path, step())
    assert (problem, summary.stages["sum"].counts) == ("", {"added": 6})
    assert (tmp_path / "sums/1.json").read_text().split() == ["[", "1,", "4", "]"]
    assert {name.split("/")[0] for name in left(tmp_path)} == {"tries", "sums", "_done", "_plan"}
    assert not any("sum.send" in name for name in left(tmp_path) if not name.startswith("tries"))


def test_phases_run_again_only_where_the_stage_is_not_finished(tmp_path: Path) -> None:
    run(tmp_path, step())
    run(tmp_path, step())
    assert (tmp_path / "tries/sum.send-a").read_text() == "x"
    (tmp_path / "_done/sum/1.json").unlink()
    run(tmp_path, step())
    assert (tmp_path / "tries/sum.send-a").read_text() == "xx"
    assert (tmp_path / "sums/1.json").read_text().split() == ["[", "1,", "4", "]"]


def test_a_phase_that_was_finished_before_a_kill_is_not_run_again(tmp_path: Path) -> None:
    _, problem = run(tmp_path, step(broken="b"))
    assert "stage sum.send: 1 of 3 tasks failed, and the stages after it need every one" in problem
    assert "task b: b is broken" in problem
    run(tmp_path, step())
    assert (tmp_path / "tries/sum.send-a").read_text() == "x"
    assert (tmp_path / "tries/sum.send-b").read_text() == "xx"
    assert (tmp_path / "sums/2.json").read_text().split() == ["[", "2,", "5", "]"]


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("lose", [Path.unlink, zeros, half])
def test_rows_that_a_machine_took_with_it_are_sent_again_and_no_others(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    run(tmp_path, step(broken="b"))
    lose(tmp_path / "_exchange/sum/a.exchange")
    _, problem = run(tmp_path, step())
    assert problem == ""
    tries = {name: (tmp_path / f"tries/sum.send-{name}").read_text() for name in NUMBERS}
    assert tries == {"a": "xx", "b": "xx", "c": "x"}
    assert (tmp_path / "sums/1.json").read_text().split() == ["[", "1,", "4", "]"]


def test_rows_on_their_way_are_no_damage_of_the_folder(tmp_path: Path) -> None:
    run(tmp_path, step(broken="b"))
    (tmp_path / "_exchange/sum/a.exchange").unlink()
    assert check_files(tmp_path).damage == []


def test_a_stage_whose_phase_failed_is_not_run(tmp_path: Path) -> None:
    summary, problem = run(tmp_path, step(broken="a"))
    assert problem
    assert summary.stages["sum"].failed == {"a": "a is broken"}
    assert not (tmp_path / "sums").exists()
