"""No row leaves the account: whatever fails, the funnel, the page and the stories name it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from whole import N, Pictures, go, recipe, url, write_lists  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.errors import ConfigError, DataError
from pairmill.pins import stored_recipe
from pairmill.pipeline import StoppedError
from pairmill.runner import Tally, Task
from pairmill.shards.job import Tallied
from pairmill.shards.ledger import tally_path
from pairmill.stats.explain import explain
from pairmill.stats.funnel import Funnel, funnel
from pairmill.stats.tallies import STAGES


@pytest.fixture
def host(picture_server: Pictures) -> Pictures:
    return picture_server


@pytest.fixture
def folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may break."""
    shutil.copytree(finished_run, tmp_path / "copy")
    return tmp_path / "copy"


def again(folder: Path, host: Pictures) -> Funnel:
    """The same run over a folder that was broken; the funnel that it ends with, and that the page shows."""
    try:
        made = stored_recipe(folder / "out") if (folder / "out").exists() else recipe(folder, host.port)
        found = go(made, folder / "out").funnel
    except StoppedError as error:
        found = error.summary.funnel
    assert found is not None
    return found


def in_shards(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (folder / "out" / "shards").glob("*.parquet"))


def closes(found: Funnel) -> bool:
    return found.rows == sum(step.dropped for step in found.steps) + (found.kept or 0)


def test_a_whole_run_adds_up_to_what_lies_in_its_shards(folder: Path) -> None:
    found = funnel(folder / "out")
    assert (found.rows, found.kept, found.written, in_shards(folder)) == (48, 42, 42, 42)
    assert (found.problems, found.failed, closes(found)) == ((), (), True)


def test_a_damaged_picture_is_out_under_its_reason_and_all_else_is_kept(folder: Path, host: Pictures) -> None:
    out = folder / "out"
    raw = out / "raw" / "00001"
    row = next(row for row in pq.read_table(raw.with_suffix(".parquet")).to_pylist() if row["size"])
    tar = bytearray(raw.with_suffix(".tar").read_bytes())
    tar[row["offset"] + row["size"] // 2] ^= 16
    raw.with_suffix(".tar").write_bytes(tar)
    shutil.rmtree(out / "_done" / "write")
    found = again(folder, host)
    assert (found.kept, in_shards(folder), found.failed) == (41, 41, ())
    assert dict(found.steps[-1].reasons) == {"picture_damaged": 1}
    assert closes(found)
    (pair,) = explain(out, row["uid"].hex()).pairs
    assert pair["summary"].startswith("kept by selection dataset, but in no shard: picture_damaged")


def test_the_pairs_of_a_failed_shard_are_named_everywhere(folder: Path, host: Pictures) -> None:
    out = folder / "out"
    tally_path(out, "write", "00002").unlink()
    (out / "_plan" / "write" / "00002.parquet").write_bytes(b"PAR1")
    found = again(folder, host)
    assert (found.kept, found.written) == (32, 32)
    assert dict(found.steps[-1].reasons) == {"not_written": 10}
    said = json.loads((out / "report" / "funnel.json").read_text())
    assert (said["adds_up"], said["kept"]["count"], said["failed"][0]["task"]) == (False, 32, "00002")
    assert "write task 00002 failed" in (out / "report" / "index.html").read_text()
    assert closes(found)


def test_a_folder_whose_writing_was_killed_says_what_is_not_written(folder: Path) -> None:
    tally_path(folder / "out", "write", "00004").unlink()
    (folder / "out" / "shards" / "00004.parquet").unlink()
    found = funnel(folder / "out")
    assert (found.kept, dict(found.steps[-1].reasons), closes(found)) == (40, {"not_written": 2}, True)
    assert found.problems == ("write task 00004 did not come to its end, with 2 rows: run again",)


def test_a_list_that_breaks_off_half_way_is_named_with_its_rows(host: Pictures, tmp_path: Path) -> None:
    write_lists(tmp_path)
    path = tmp_path / "b.parquet"
    whole = bytearray(path.read_bytes())
    at = pq.read_metadata(path).row_group(2).column(0).data_page_offset
    whole[at : at + 40] = b"\xff" * 40
    path.write_bytes(whole)
    found = again(tmp_path, host)
    assert (found.rows, found.kept, closes(found)) == (24, 21, True)
    (gap,) = found.failed
    assert (gap.stage, gap.about, gap.rows) == ("ingest", "b.parquet", 24)
    assert found.problems[0].startswith("list b.parquet failed, with 24 rows: ")
    assert found.as_json()["adds_up"] is False
    with pytest.raises(ConfigError, match=r"not read: b\.parquet failed"):
        explain(tmp_path / "out", url(N + 5))


@pytest.mark.parametrize(
    ("stage", "task", "rows"),
    [
        ("language", "0000-00001", 10),
        ("fetch", "00001", 12),
        ("plan-write", "dataset", None),
        ("write", "00001", 10),
    ],
)
def test_whatever_task_fails_its_rows_are_named_and_the_folder_says_so_later(
    stage: str,
    task: str,
    rows: int | None,
    folder: Path,
    host: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = folder / "out"
    whole = Tallied.__call__

    def broken(self: Tallied, given: Task) -> Tally:
        if (given.stage, given.name) == (stage, task):
            raise DataError("hit by a stone")
        return whole(self, given)

    monkeypatch.setattr(Tallied, "__call__", broken)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(out / "_done" / later, ignore_errors=True)
    again(folder, host)
    found = funnel(out)
    gap = found.failed[0]
    assert (gap.stage, gap.task, gap.rows, gap.error) == (stage, task, rows, "hit by a stone")
    assert found.as_json()["adds_up"] is False
    assert any(line.startswith(f"{stage} task {task} failed") for line in found.problems)
    assert found.kept is None or closes(found)
    if stage == "write":
        assert found.kept == json.loads((out / "shards" / "manifest.json").read_text())["samples"] == 32
    in_task, elsewhere = a_pair_in(out, stage, "00001"), a_pair_in(out, stage, "00002")
    assert [gap["stage"] for gap in explain(out, in_task).pairs[0]["failed"]][:1] == [stage]
    assert bool(explain(out, elsewhere).pairs[0]["failed"]) == (rows is None)
    monkeypatch.undo()
    assert again(folder, host).problems == ()


def a_pair_in(out: Path, stage: str, number: str) -> str:
    """A uid of the stage's task with that number."""
    folder = {"language": "pairs/0000-", "fetch": "_plan/fetch/"}.get(stage, "_plan/write/")
    return pq.read_table(out / f"{folder}{number}.parquet", columns=["uid"])["uid"][0].as_py().hex()
