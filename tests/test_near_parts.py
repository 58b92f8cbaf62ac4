"""The stage `near` over partitions says what it says over all rows at once, whatever is cut where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill import pipeline
from pairmill.filter import near_parts
from pairmill.filter.near_blocks import Cut
from pairmill.filter.near_order import columns_of_keep
from pairmill.filter.near_parts import members
from pairmill.pipeline import Summary
from pairmill.progress import Quiet
from pairmill.recipe import Near, build_recipe
from pairmill.runner import Here, Tally, Task
from pairmill.shards.counted import count_differences
from pairmill.shards.job import finished_tasks
from pairmill.shards.ledger import write_tally
from pairmill.shards.schema import NEAR, RAW
from pairmill.steps import STEPS, Job

STEP = next(step for step in STEPS if step.stage == "near")
PICTURES = 240


def write_raw(out: Path, seed: int = 0) -> None:
    """Three raw shards and a later wave: copies by bytes and by hash, chains, colours, captions."""
    dice = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    codes = dice.integers(0, 256, (PICTURES, 32), dtype=np.uint8)
    for n in range(1, PICTURES):
        if dice.random() < 0.6:  # a copy of an earlier one, which may be a copy itself
            bits = np.unpackbits(codes[dice.integers(n)])
            bits[dice.permutation(256)[: dice.integers(0, 36)]] ^= 1
            codes[n] = np.packbits(bits)
    files = [dice.bytes(32) for _ in range(PICTURES)]
    for n in range(PICTURES):
        file = files[n // 2] if dice.random() < 0.2 else files[n]
        row: dict[str, Any] = dict.fromkeys(RAW.names)
        row |= {"url_hash": dice.bytes(16), "outcome": "ok", "wave": 0, "sha256": file, "original_bytes": 1}
        row |= {"pdq_v1": codes[n].tobytes(), "pdq_quality_v1": int(dice.integers(40, 101))}
        row |= {"original_width": int(dice.integers(1, 9)), "original_height": 10}
        row |= {"chroma_v1": bytes([int(dice.integers(3)) * 60] * 18 + [int(dice.integers(4))])}
        if dice.random() < 0.05:
            row |= {"pdq_v1": None, "pdq_quality_v1": None, "sha256": None, "chroma_v1": None}
        said = [str(dice.integers(9)) for _ in range(int(dice.integers(1, 4)))]
        rows += [{**row, "uid": dice.bytes(16), "caption": caption} for caption in said]
    lost = {**dict.fromkeys(RAW.names), "outcome": "timeout", "wave": 0}
    rows += [{**lost, "uid": dice.bytes(16), "url_hash": dice.bytes(16)} for _ in range(5)]
    again = [{**row, "wave": 1, "outcome": "ok" if n % 2 else "http_404"} for n, row in enumerate(rows[:12])]
    (out / "raw").mkdir(parents=True, exist_ok=True)
    shards = {f"{n:05d}": rows[n::3] for n in range(3)} | {"w1-00000": again}
    for name, of_shard in shards.items():
        pq.write_table(pa.Table.from_pylist(of_shard, schema=RAW), out / f"raw/{name}.parquet")
        counts = Counter(row["outcome"] for row in of_shard)
        write_tally(out, Task("fetch", name), Tally(dict(counts)))


def run(out: Path, rows: int, retries: int = 0, **settings: Any) -> Summary:
    recipe = build_recipe({"run": {"engine": "here", "rows_per_partition": rows}, "near": settings}, "test")
    summary = Summary("test", str(out))
    problem = pipeline._run_steps(Job(recipe, out), summary, [STEP], False, Here(retries=retries), Quiet())
    assert not problem, problem
    return summary


def table(out: Path) -> pa.Table:
    """All files of near-copies, one after the other."""
    files = sorted((out / "scores/near").glob("*.parquet"))
    return pa.concat_tables(pq.read_table(path) for path in files).combine_chunks()


def files(folder: Path) -> dict[str, bytes]:
    """Bytes of all files below a folder, by name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def facts(summary: Summary) -> dict[str, int]:
    found: dict[str, list[int]] = {}
    for of_task in summary.stages["near"].facts.values():
        for name, value in of_task.items():
            found.setdefault(name, []).append(value)
    return {name: max(all_) if name == "largest" else sum(all_) for name, all_ in found.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("whole")
    write_raw(out)
    return out, run(out, 1_000_000)


@pytest.mark.parametrize("rows", [400, 60])
def test_partitions_say_what_all_rows_at_once_say(
    whole: tuple[Path, Summary], tmp_path: Path, rows: int
) -> None:
    write_raw(tmp_path)
    summary = run(tmp_path, rows)
    expected = table(whole[0])
    assert table(tmp_path).schema.equals(NEAR)
    assert table(tmp_path).equals(expected)
    assert len(list((tmp_path / "scores/near").iterdir())) == -(
        -whole[1].stages["near"].counts.total() // rows
    )
    assert summary.stages["near"].counts == whole[1].stages["near"].counts
    assert facts(summary) == facts(whole[1])
    assert facts(summary)["near"] > 20
    assert facts(summary)["same_bytes"] > 10
    assert summary.stages["near"].counts["adopted"] > 10
    assert not list(count_differences(tmp_path))
    assert not files(tmp_path / "_exchange")


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": "caption DESC NULLS LAST, lower(hex(sha256)), url_hash"},
        {"keep": "1", "captions": "drop"},
        {"keep": "greatest(COLUMNS('original_w.*')), uid", "colour": False, "min_quality": 0},
        {"max_distance": 40, "threads": 1},
    ],
)
def test_partitions_obey_every_setting(tmp_path: Path, settings: dict[str, Any]) -> None:
    for name, rows in (("whole", 1_000), ("cut", 200)):
        write_raw(tmp_path / name, seed=1)
        run(tmp_path / name, rows, **settings)
    assert len(files(tmp_path / "cut/scores/near")) > 1
    assert table(tmp_path / "cut").equals(table(tmp_path / "whole"))


def test_columns_that_the_order_names_are_carried() -> None:
    assert columns_of_keep(Near()) == ["uid", "original_bytes", "original_width", "original_height"]
    assert columns_of_keep(Near(keep="Width, lower(URL)")) == ["url", "width"]
    assert columns_of_keep(Near(keep="COLUMNS('w.*')")) == RAW.names


def test_another_number_of_partitions_leaves_no_file_or_tally_of_the_first(
    whole: tuple[Path, Summary], tmp_path: Path
) -> None:
    write_raw(tmp_path)
    for rows in (200, 300, 1_000, 300):
        run(tmp_path, rows)
        assert table(tmp_path).equals(table(whole[0]))
        names = finished_tasks(tmp_path, "near")
        assert sorted(files(tmp_path / "scores/near")) == [f"{name}.parquet" for name in names]


@pytest.mark.parametrize(
    "phase", ["join-00002", *(pytest.param(late, marks=pytest.mark.slow) for late in ("bytes", "members"))]
)
def test_a_run_that_ends_in_any_phase_goes_on_with_the_same_bytes(
    tmp_path: Path, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(tmp_path / "once")
    run(tmp_path / "once", 150)
    out = tmp_path / "cut"
    write_raw(out)
    with monkeypatch.context() as patch:
        patch.setattr(Cut, "phase", stopping_at(phase))
        with pytest.raises(KeyboardInterrupt):
            run(out, 150)
    done = {path: path.stat().st_mtime_ns for path in (out / "_done").glob("near.*/*.json")}
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(near_parts, "members", lambda cut, task: watch(done, seen) or members(cut, task))
        run(out, 150)
    assert files(out / "scores") == files(tmp_path / "once/scores")
    assert all(seen)


def stopping_at(phase: str) -> Any:
    """`Cut.phase`, but the run is interrupted before this one."""
    plain = Cut.phase

    def stop(cut: Cut, name: str, work: object, names: list[str]) -> Any:
        if name == phase:
            raise KeyboardInterrupt
        return plain(cut, name, work, names)

    return stop


def watch(done: dict[Path, int], seen: list[int]) -> None:
    """Note whether what was finished before is as it was."""
    seen.append(all(path.stat().st_mtime_ns == time for path, time in done.items()))


def test_a_run_that_was_cut_otherwise_begins_anew(whole: tuple[Path, Summary], tmp_path: Path) -> None:
    write_raw(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cut, "phase", stopping_at("groups"))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, 200)
    run(tmp_path, 150)
    assert table(tmp_path).equals(table(whole[0]))


def test_more_partitions_than_pictures_are_empty_files(tmp_path: Path) -> None:
    write_raw(tmp_path)
    for path in sorted((tmp_path / "raw").iterdir())[1:]:
        path.unlink()
    path = tmp_path / "raw/00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 2), path)
    write_tally(tmp_path, Task("fetch", "00001"), Tally())
    write_tally(tmp_path, Task("fetch", "00002"), Tally())
    summary = run(tmp_path, 60)
    assert summary.stages["near"].counts.total() == len(table(tmp_path)) == 2
    assert len(files(tmp_path / "scores/near")) > 2
