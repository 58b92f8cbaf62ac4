"""A stage over its tasks: what is finished is skipped, what is stale is done again, all is added up."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path

import pytest
import xxhash

from pairmill.errors import ConfigError, DataError, OutputError
from pairmill.progress import Quiet
from pairmill.runner import Engine, Here, Stage, Tally, Task, TaskReport, Worker, beat
from pairmill.shards import commit
from pairmill.shards.commit import recorded, write_bytes
from pairmill.shards.job import StageReport, finished_tasks, inputs_digest, read_tally, run_stage, tally_path
from pairmill.shards.ledger import Failure, failures, planned_tasks, read_record, write_tally


def tasks(n: int) -> list[Task]:
    return [Task("count", f"{i:02d}", {"i": i}) for i in range(n)]


def stage(out: Path, *, bad: tuple[str, ...] = (), fatal: tuple[str, ...] = ()) -> Stage:
    """Writes `i` lines into `count/<task>.txt`, counted as even or odd; a try is a byte in `tries/<task>`.

    Its factory is a closure: Ray then takes it by value.
    """

    def start(out: Path, bad: tuple[str, ...], fatal: tuple[str, ...]) -> Worker:
        def count(task: Task) -> Tally:
            (out / "tries").mkdir(parents=True, exist_ok=True)
            with open(out / "tries" / task.name, "a") as file:
                file.write("x")
            if task.name in fatal:
                raise OSError(errno.ENOSPC, "No space left on device")
            if task.name in bad:
                raise DataError(f"part {task.name} is broken")
            i = task.data["i"]
            beat(task, i, i, "counted")
            write_bytes(b"line\n" * i, out / "count" / f"{task.name}.txt")
            return Tally({"even": (i + 1) // 2, "odd": i // 2}, {"lines": i})

        return count

    return Stage("count", start, (out, bad, fatal))


def tries(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted((out / "tries").iterdir())}


def run(
    out: Path, n: int = 5, *, inputs: str = "", engine: Engine | None = None, **bad: tuple[str, ...]
) -> StageReport:
    return run_stage(out, stage(out, **bad), tasks(n), engine or Here(retries=0), Quiet(), inputs=inputs)


def test_counts_are_the_sum_of_the_tallies(tmp_path: Path) -> None:
    report = run(tmp_path, 5)
    assert report.counts == Counter({"even": 6, "odd": 4})
    assert (report.rows, report.skipped, report.failed) == (10, 0, {})
    assert report.facts == {f"{i:02d}": {"lines": i} for i in range(5)}
    tallies = [read_tally(tmp_path, "count", name) for name in finished_tasks(tmp_path, "count")]
    assert sum(tally.seen for tally in tallies if tally) == 10


def test_finished_tasks_are_skipped_and_still_counted(tmp_path: Path) -> None:
    first = run(tmp_path, 5)
    second = run(tmp_path, 5)
    assert tries(tmp_path) == {f"{i:02d}": 1 for i in range(5)}
    assert (second.skipped, second.rows) == (5, 0)
    assert (second.counts, second.facts) == (first.counts, first.facts)


def test_tasks_finished_for_other_inputs_are_done_again(tmp_path: Path) -> None:
    run(tmp_path, 3, inputs="one")
    assert run(tmp_path, 4, inputs="one").skipped == 3
    assert run(tmp_path, 4, inputs="two").skipped == 0
    assert tries(tmp_path) == {"00": 2, "01": 2, "02": 2, "03": 2}


def test_a_tally_names_every_file_of_its_task_with_a_checksum(tmp_path: Path) -> None:
    run(tmp_path, 3)
    record = read_record(tally_path(tmp_path, "count", "02"))
    assert record is not None
    lines = b"line\n" * 2
    assert record["files"] == {"count/02.txt": {"bytes": 10, "xxh3": xxhash.xxh3_128_hexdigest(lines)}}


def test_no_flipped_bit_of_a_tally_is_believed(tmp_path: Path) -> None:
    run(tmp_path, 2)
    path = tally_path(tmp_path, "count", "01")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            assert read_record(path) is None, f"byte {place}, bit {bit}"
    path.write_bytes(whole)
    assert read_record(path) is not None


def test_the_tally_of_another_task_is_no_tally(tmp_path: Path) -> None:
    run(tmp_path, 2)
    tally_path(tmp_path, "count", "01").replace(tally_path(tmp_path, "count", "00"))
    assert read_tally(tmp_path, "count", "00") is None


def test_a_file_made_anew_with_the_same_bytes_disturbs_nobody_and_other_bytes_do(tmp_path: Path) -> None:
    def write(text: bytes, seconds: float) -> str:
        with recorded() as files:
            write_bytes(text, tmp_path / "a.txt")
            write_bytes(b"%f" % seconds, tmp_path / "_log" / "a.txt")
        left = {path.relative_to(tmp_path).as_posix(): digest for path, digest in files.items()}
        write_tally(tmp_path, Task("make", "a"), Tally({"ok": 1}), files=left, seconds=seconds)
        return inputs_digest(tmp_path, "make")

    assert write(b"one", 1.0) == write(b"one", 2.0)
    assert write(b"one", 1.0) != write(b"two", 1.0)


def test_a_failure_is_kept_with_what_its_task_was_about_until_it_is_tried_again(tmp_path: Path) -> None:
    run(tmp_path, 3, bad=("01",))
    assert failures(tmp_path, "count") == [Failure("count", "01", "part 01 is broken", {"i": 1})]
    assert planned_tasks(tmp_path, "count") == {"00": {"i": 0}, "01": {"i": 1}, "02": {"i": 2}}
    run(tmp_path, 3)
    assert failures(tmp_path, "count") == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_tally_is_no_tally(tmp_path: Path, damage: bytes) -> None:
    first = run(tmp_path, 3)
    tally_path(tmp_path, "count", "01").write_bytes(damage)
    assert read_tally(tmp_path, "count", "01") is None
    inputs_digest(tmp_path, "count")
    second = run(tmp_path, 3)
    assert (second.skipped, second.counts) == (2, first.counts)


def test_a_failed_task_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    report = run(tmp_path, 5, bad=("01", "03"))
    assert report.failed == {"01": "part 01 is broken", "03": "part 03 is broken"}
    assert report.counts.total() == 0 + 2 + 4
    assert finished_tasks(tmp_path, "count") == ["00", "02", "04"]
    mended = run(tmp_path, 5)
    assert (mended.skipped, mended.failed, mended.counts.total()) == (3, {}, 10)


def test_a_full_disk_stops_the_stage_and_what_is_finished_stays(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"stage count, task 02: .*No space left on device"):
        run(tmp_path, 5, fatal=("02",))
    assert finished_tasks(tmp_path, "count") == ["00", "01"]
    assert "03" not in tries(tmp_path)
    assert run(tmp_path, 5).skipped == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fills_at_any_call_leaves_a_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The Nth fsync or rename fails, for all N of a run of two tasks."""
    expected = run(tmp_path / "whole", 2).counts
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "count").iterdir()}
    real, left = getattr(os, call), 0

    def fail(*args: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(commit.os, call, fail)
    stops: list[str] = []
    for nth in range(1, 20):
        out, left = tmp_path / str(nth), nth
        try:
            run(out, 2)
        except OutputError as error:
            stops.append(str(error))
        assert {path.name for path in (out / "count").glob("*")} <= whole.keys()
        left = 0
        assert run(out, 2).counts == expected
        assert {path.name: path.read_bytes() for path in (out / "count").iterdir()} == whole
    assert len(stops) == (16 if call == "fsync" else 5)  # files and new folders; beats are not synced
    assert all("No space left on device" in said for said in stops)


@pytest.mark.ray
def test_here_equals_on_ray(tmp_path: Path, on_ray: Engine) -> None:
    reports = [run(tmp_path / engine.name, 6, engine=engine, bad=("04",)) for engine in (Here(), on_ray)]
    for report in reports:
        report.seconds = 0.0
    assert reports[0] == reports[1]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "count").iterdir()}
        for name in ("here", "ray")
    ]
    assert files[0] == files[1]


def test_no_tasks_at_all_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stage count: nothing to do in .*: run the stage before it first"):
        run(tmp_path, 0)


def test_the_digest_changes_with_what_was_counted_and_from_what(tmp_path: Path) -> None:
    run(tmp_path / "a", 3)
    run(tmp_path / "b", 3, bad=("00",))
    run(tmp_path / "b", 3)
    run(tmp_path / "c", 3, inputs="other")
    assert inputs_digest(tmp_path / "a", "count") != inputs_digest(tmp_path / "c", "count")
    assert inputs_digest(tmp_path / "a", "count") == inputs_digest(tmp_path / "b", "count")
    run(tmp_path / "a", 4)
    assert inputs_digest(tmp_path / "a", "count") != inputs_digest(tmp_path / "b", "count")
    assert inputs_digest(tmp_path, "nothing") == inputs_digest(tmp_path, "other")


def test_progress_hears_of_every_task(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listening(Quiet):
        def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
            heard.append(f"{stage} {done}/{total} {unit}")

        def report(self, report: TaskReport) -> None:
            heard.append(f"{report.task} {report.status} {report.tally.seen}")

        def end(self) -> None:
            heard.append("end")

    run(tmp_path, 1)
    run_stage(tmp_path, stage(tmp_path, bad=("02",)), tasks(3), Here(retries=0), Listening())
    assert heard == ["count 1/3 pairs", "01 done 1", "02 failed 0", "end"]
