"""Redaction: what is asked for goes, its neighbours keep their places, and it stays out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole import Pictures, go, recipe, url  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.commands import start
from pairmill.filter.redaction import FILE, read_list, remember
from pairmill.pins import command_recipe
from pairmill.progress import Quiet
from pairmill.redact import redact_list
from pairmill.runner import Here
from pairmill.shards.schema import NEAR
from pairmill.shards.verify import verify

HOW = {"engine": Here(retries=0), "progress": Quiet()}


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: 42 pairs in five shards, and a second selection without some."""
    shutil.copytree(finished_run / "out", tmp_path / "out")
    told = {"decide.name": "some", "decide.baseline": False}
    told["decide.rules.extra"] = [{"reason": "two", "where": "caption LIKE '%2'"}]
    go(command_recipe(tmp_path / "out", "decide", told), tmp_path / "out", command="decide")
    return tmp_path / "out"


def samples(out: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((out / "shards").glob("*.parquet"))}


def listed(out: Path, *lines: str) -> Path:
    path = out.parent / "list.txt"
    path.write_text("# asked for\n\n" + "\n".join(lines) + "\n")
    return path


def written(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "shards").glob("*.tar")}


def test_urls_uids_and_hashes_go_and_only_their_shards_are_written_again(out: Path) -> None:
    before, times = samples(out), written(out)
    rows = [row for shard in before.values() for row in shard]
    by_url, by_uid, by_hash = before["00001"][2], before["00001"][5], before["00003"][0]
    proof = redact_list(
        out, listed(out, by_url["url"], by_uid["key"], by_hash["sha256"].hex().upper()), "asked", **HOW
    )
    gone = {row["key"] for row in (by_url, by_uid, by_hash)}
    after = samples(out)
    assert set(proof["removed"]) == gone
    for name, shard in before.items():
        kept = [row["key"] for row in shard if row["key"] not in gone]
        assert [row["key"] for row in after[name]] == kept  # every other pair keeps its place
        assert (written(out)[f"{name}.tar"] == times[f"{name}.tar"]) == (len(kept) == len(shard))
    assert [one["shard"] for one in proof["shards_changed"]] == ["00001", "00003"]
    assert all(one["before"]["tar"] != one["after"]["tar"] for one in proof["shards_changed"])
    assert (proof["shards_unchanged"], proof["samples"]) == (3, {"before": 42, "after": 39})
    assert json.loads((out / "report" / "redaction-0001.json").read_text()) == proof
    assert verify(out)["problems"] == []
    for name in ("dataset", "everything", "some"):
        reasons = pq.read_table(out / "selection" / f"{name}.reasons.parquet").to_pylist()
        said = {row["uid"].hex() for row in reasons if row["reason"] == "redacted"}
        dropped = {row["key"] for row in rows if name == "some" and row["caption"].endswith("2")}
        assert said == gone - dropped


def test_later_runs_remember_and_a_second_list_adds_to_the_first(
    out: Path, finished_run: Path, picture_server: Pictures
) -> None:
    redact_list(out, listed(out, url(3)), "first", **HOW)
    state = samples(out)
    go(recipe(finished_run, picture_server.port), out)  # the run again: it stays out
    assert samples(out) == state
    proof = redact_list(out, listed(out, url(3), f"{url(5)}\tcourt order"), "second", **HOW)
    assert proof["new"] == 1
    assert len(proof["removed"]) == 1
    rows = pq.read_table(out / FILE).to_pylist()
    assert sorted(row["reason"] for row in rows) == ["court order", "first"]
    assert (out / "report" / "redaction-0002.json").exists()
    again = redact_list(out, listed(out, url(5)), "third", **HOW)
    assert (again["new"], again["removed"], again["shards_changed"]) == (0, [], [])
    assert verify(out)["problems"] == []


def test_a_caption_goes_with_the_picture_that_it_is_written_with(out: Path) -> None:
    rows = {row["url"]: row for shard in samples(out).values() for row in shard}
    path = out / "scores" / "near" / "near.parquet"
    near = pq.read_table(path).to_pylist()
    by_uid = {row["uid"]: row for row in near}
    best, copy = by_uid[rows[url(3)]["uid"]], by_uid[rows[url(4)]["uid"]]
    copy |= {"near_group_v1": best["near_group_v1"], "near_rank_v1": 1, "near_adopted_v1": True}
    pq.write_table(pa.Table.from_pylist(near, NEAR), path)
    proof = redact_list(out, listed(out, url(3)), "asked", **HOW)
    assert set(proof["removed"]) == {rows[url(3)]["key"], rows[url(4)]["key"]}


def test_a_trial_counts_what_was_redacted(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    redact_list(out, listed(out, url(3)), "asked", **HOW)
    capsys.readouterr()
    assert start(["decide", str(out), "--try"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kept"], said["dropped"]) == (41, {"redacted": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory: expected URLs, uids or sha256"),
        (b"# none\n", "nothing in it: expected URLs, uids or sha256"),
        (b"http://a.test/3\nnot a url\n", "line 2: 'not a url'.*: expected a URL, a uid"),
        (b"abc123\n", "line 1: 'abc123'"),
        (b"F\xe4he\n", "byte 1: not UTF-8"),
    ],
)
def test_a_bad_list_is_one_line_and_nothing_changes(
    out: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = out.parent / "list.txt"
    if content is not None:
        path.write_bytes(content)
    assert start(["redact", str(out), str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert not (out / "redaction").exists()


def test_the_first_reason_is_kept_and_the_file_does_not_depend_on_order(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"{'ab' * 16}\tone\n{'cd' * 32}\n{'ab' * 16}\ttwo\n")
    rows = read_list(path, "else", str)
    assert [row["reason"] for row in rows] == ["one", "else", "two"]
    assert remember(tmp_path / "a", rows) == 2
    assert remember(tmp_path / "b", rows[1:2]) == 1
    assert remember(tmp_path / "b", rows[:1]) == 1
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
