"""Every file that a stage left is checked, and `mend` makes just those anew that are not as they were."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from whole import Pictures, go  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.mend import mend
from pairmill.pins import stored_recipe
from pairmill.pipeline import StoppedError
from pairmill.progress import Quiet
from pairmill.recipe import build_recipe
from pairmill.runner import Here
from pairmill.shards.damage import check_files
from pairmill.shards.verify import verify
from pairmill.stats.funnel import funnel

DATA = ("pairs", "raw", "scores", "selection", "shards", "_plan")


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may break."""
    shutil.copytree(finished_run / "out", tmp_path / "out")
    return tmp_path / "out"


def files(out: Path, *folders: str) -> dict[str, bytes]:
    paths = [path for name in folders for path in sorted((out / name).rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def mended(out: Path) -> dict[str, list[str]]:
    return mend(out, engine=Here(retries=0), progress=Quiet())


def spoil(path: Path, how: str) -> None:
    whole = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(whole[:-1])
    else:
        whole[random.Random(path.name).randrange(len(whole))] ^= 4
        path.write_bytes(whole)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_any_file_or_tally_that_is_not_as_it_was_is_found(out: Path, how: str) -> None:
    assert verify(out)["problems"] == []
    found = files(out, *DATA, "report", "_log", "_done")
    for name, data in found.items():
        if name.startswith("_plan/tasks/") or name.endswith(".yaml"):
            continue
        if (how, name) == ("gone", "_done/report/page.json"):  # then the run is just not finished
            continue
        spoil(out / name, how)
        assert out / name in check_files(out).paths, name
        (out / name).write_bytes(data)
    assert len(found) > 80


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_mending_makes_just_the_damaged_files_anew_with_the_bytes_that_they_had(out: Path, how: str) -> None:
    before, tallies = files(out, *DATA), files(out, "_done")
    for name in (
        "pairs/rejected/0001.parquet",
        "scores/language/0000-00001.parquet",
        "raw/00001.tar",
        "raw/00002.parquet",
        "scores/near/near.parquet",
        "selection/dataset.npy",
        "shards/00002.tar",
        "shards/manifest.json",
        "_done/screen/0001-00000.json",
    ):
        spoil(out / name, how)
    done = mended(out)
    assert verify(out)["problems"] == []
    assert files(out, *DATA) == before
    once = {"decide": ["dataset"], "ingest": ["0001"], "language": ["0000-00001"], "manifest": ["all"]}
    once |= {"near": ["near"], "screen": ["0001-00000"], "write": ["00002"]}
    assert {stage: tasks for stage, tasks in done.items() if stage != "fetch"} == once
    changed = {name.split("/", 1)[1] for name, data in files(out, "_done").items() if tallies[name] != data}
    assert changed <= {f"{stage}/{task}.json" for stage, tasks in done.items() for task in tasks} | {
        "report/page.json"
    }


def test_of_a_damaged_raw_shard_only_the_damaged_picture_is_asked_for_again(
    out: Path, picture_server: Pictures
) -> None:
    before, asked = files(out, *DATA), picture_server.asked
    row = next(row for row in pq.read_table(out / "raw" / "00001.parquet").to_pylist() if row["size"])
    tar = bytearray((out / "raw" / "00001.tar").read_bytes())
    tar[row["offset"] + 20] ^= 1
    (out / "raw" / "00001.tar").write_bytes(tar)
    (out / "_done" / "write" / "00003.json").unlink()
    assert mended(out) == {"fetch": ["00001"], "write": ["00003"]}
    assert picture_server.asked == asked + 1
    assert files(out, *DATA) == before


def test_a_picture_that_was_left_out_as_damaged_comes_back_with_its_shard(out: Path) -> None:
    before = files(out, *DATA)
    row = next(row for row in pq.read_table(out / "raw" / "00000.parquet").to_pylist() if row["size"])
    tar = bytearray((out / "raw" / "00000.tar").read_bytes())
    tar[row["offset"]] ^= 1
    (out / "raw" / "00000.tar").write_bytes(tar)
    shutil.rmtree(out / "_done" / "write")
    go(stored_recipe(out), out)
    assert funnel(out).kept == 41
    assert set(mended(out)) == {"fetch", "write"}
    assert (funnel(out).kept, files(out, *DATA)) == (42, before)


def test_a_file_that_no_task_wrote_is_named_and_left_alone(out: Path) -> None:
    stray = out / "raw" / "00009.parquet"
    shutil.copy(out / "raw" / "00000.parquet", stray)
    assert verify(out)["problems"] == [f"{stray}: in no tally: no task of this run wrote it"]
    assert mended(out) == {}
    assert stray.exists()


def test_a_run_that_had_ended_early_is_mended_too(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.invalid/1,one\nhttp://a.invalid/2,two\n")
    made = build_recipe({"ingest": {"input": [str(tmp_path / "list.csv")]}, "fetch": {"retries": 0}}, "r")
    out = tmp_path / "out"
    with pytest.raises(StoppedError, match="0 pairs, none with a picture"):
        go(made, out)
    assert funnel(out).as_json()["adds_up"] is True  # both rows are dropped, under a reason
    before = files(out, "pairs", "scores")
    spoil(out / "scores" / "copies" / "0000-00000.parquet", "flipped")
    assert mended(out) == {"dedup": ["all"]}
    assert files(out, "pairs", "scores") == before
    assert verify(out)["ok"]


def test_a_whole_folder_has_nothing_to_mend(out: Path) -> None:
    before = files(out, *DATA, "_done", "report")
    assert mended(out) == {}
    assert files(out, *DATA, "_done", "report") == before
