"""The noise score of several sources: the same bytes as of one, whatever the cut, and after a kill."""

from __future__ import annotations

import json
from hashlib import md5
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill import pipeline
from pairmill.errors import DataError
from pairmill.filter import noise, noise_hearing, noise_phases, noise_sources, noise_work, strangers
from pairmill.filter.cells import Cells
from pairmill.filter.evidence import Space
from pairmill.filter.sql import database
from pairmill.filter.strangers import draw, smallest
from pairmill.pipeline import Summary
from pairmill.progress import Quiet
from pairmill.recipe import build_recipe
from pairmill.runner import Here
from pairmill.shards.commit import write_table
from pairmill.shards.counted import count_differences
from pairmill.shards.ledger import finished_tasks, read_tally
from pairmill.shards.schema import NEAR
from pairmill.shards.selection import write_selection
from pairmill.steps import STEPS, Job

from .test_noise import make_crawl, unit

(STEP,) = (step for step in STEPS if step.stage == "noise")


def crawl(out: Path) -> None:
    """Five shards of two folds, two languages and two rare ones; near-copies; most pairs are candidates.

    Pictures lie at three URLs or at seven, so that some pairs have witnesses and others do not.
    """
    truth = make_crawl(
        out, [("en", 900, 0.3, 1.0), ("de", 400, 0.3, 1.0), ("fr", 60, 0, 1), ("pl", 40, 0, 1)], 5
    )
    uids = sorted(truth["uid"].tolist())
    same = [uids[row // 2 * 2 if row % 14 < 6 else row // 14 * 14 + 6] for row in range(len(uids))]
    zeros = [0] * len(uids)
    near = pa.table([uids, same, zeros, zeros, [False] * len(uids)], schema=NEAR)
    write_table(near, out / "scores/near/near.parquet", rows_per_group=100)
    write_selection(pa.array(uids[::5] + uids[1::5] + uids[2::5], pa.binary(16)).sort(), candidates(out))


def candidates(out: Path) -> Path:
    return out / "selection/candidates.parquet"


def run(out: Path, rows: int) -> Summary:
    given = {"run": {"rows_per_partition": rows}, "noise": {"negatives": 16}}
    recipe = build_recipe(given, "test")
    summary = Summary("test", str(out))
    problem = pipeline._run_steps(Job(recipe, out), summary, [STEP], False, Here(retries=0), Quiet())
    assert not problem, problem
    return summary


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "scores/noise").iterdir()}


@pytest.fixture(autouse=True)
def some_partitions_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_hearing, "hearing_parts", lambda *_: 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    crawl(out)
    run(out, 10_000)
    return out


@pytest.mark.parametrize("rows", [300, 600])
def test_the_bytes_do_not_depend_on_the_number_of_sources(whole: Path, tmp_path: Path, rows: int) -> None:
    crawl(tmp_path)
    summary = run(tmp_path, rows)
    assert len(finished_tasks(tmp_path, "noise")) == -(-5 // (rows // 280))
    assert written(tmp_path) == written(whole)
    assert len(written(whole)) == 6
    assert summary.stages["noise"].counts == {"ok": 1_400, "not_scored": 0}
    assert not list((tmp_path / "_exchange").rglob("*.*"))
    assert not list((tmp_path / "_done").glob("noise.*"))
    facts = summary.stages["noise"].facts["00000-00000" if rows == 300 else "00000-00001"]
    assert {name: facts[name] for name in ("languages", "kept_by_asked")} == json.loads(
        (whole / "scores/noise/calibration.json").read_text()
    )


def test_the_bytes_do_not_depend_on_how_many_cells_fit_the_memory(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_by_one(cells: int, *_: object) -> list[range]:
        return [range(cell, cell + 1) for cell in range(cells)]

    for module in (noise, noise_phases, noise_sources, noise_hearing):
        monkeypatch.setattr(module, "batches", one_by_one)
    for name, rows in (("one", 10_000), ("several", 600)):
        crawl(tmp_path / name)
        run(tmp_path / name, rows)
        assert written(tmp_path / name) == written(whole)


@pytest.mark.parametrize("phase", ["join", "hear", "null", "finish"])
def test_after_a_kill_the_phases_that_are_finished_stand(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    crawl(tmp_path)
    module = {"join": noise_work, "hear": noise_hearing, "finish": noise}.get(phase, noise_sources)
    work, calls = getattr(module, phase), []

    def killed(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*args)

    monkeypatch.setattr(module, phase, killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 600)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "_done").rglob("*.json")}
    monkeypatch.setattr(module, phase, work)
    monkeypatch.setattr("pairmill.pipeline.forget_phases", lambda *_: None)
    run(tmp_path, 600)
    assert written(tmp_path) == written(whole)
    assert before
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_what_a_run_with_another_cut_left_is_neither_read_nor_counted(whole: Path, tmp_path: Path) -> None:
    crawl(tmp_path)
    for rows in (300, 600, 10_000):
        counts = run(tmp_path, rows).stages["noise"].counts
        assert counts == {"ok": 1_400, "not_scored": 0}
        tallies = [read_tally(tmp_path, "noise", name) for name in finished_tasks(tmp_path, "noise")]
        assert sum(tally.seen for tally in tallies if tally) == 1_400
        assert written(tmp_path) == written(whole)


def test_verify_misses_the_scores_of_each_source(tmp_path: Path) -> None:
    crawl(tmp_path)
    run(tmp_path, 600)
    noted = [line for line in count_differences(tmp_path) if "noise" in line]
    assert noted == []
    path = tmp_path / "scores/noise/00003.parquet"
    write_table(pq.read_table(path).slice(1), path)
    (line,) = (line for line in count_differences(tmp_path) if "noise" in line)
    assert "559" in line
    assert "560" in line


def test_a_source_of_other_dimensions_is_named(tmp_path: Path) -> None:
    crawl(tmp_path)
    for side in ("image", "text"):
        path = tmp_path / f"scores/embedding/00004.{side}.npy"
        np.save(path, np.load(path)[:, :40])
    with pytest.raises(DataError, match="scores/embedding/00004: 40 dimensions, others have 48: embed again"):
        run(tmp_path, 300)


def test_a_source_whose_pairs_are_all_broken_has_no_score(tmp_path: Path) -> None:
    crawl(tmp_path)
    path = tmp_path / "scores/embedding/00002.image.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    assert run(tmp_path, 300).stages["noise"].counts == {"ok": 1_120, "not_scored": 280}
    assert pq.read_table(tmp_path / "scores/noise/00002.parquet")["mismatch_q_v2"].null_count == 280


def test_sources_draw_together_the_pairs_with_the_smallest_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "SAMPLE", 60)
    dice = np.random.default_rng(0)
    uids = [dice.bytes(16) for _ in range(3_000)]
    of_row = dice.integers(0, 2, 3_000).astype(np.int32)
    cells = Cells(["*"], [(0, 0), (0, 1)], np.bincount(of_row).tolist(), {"*": 0})
    found = []
    with database(tmp_path, "test") as connection:
        for start in range(0, 3_000, 1_000):
            part = slice(start, start + 1_000)
            column = pa.chunked_array([pa.array(uids[part], pa.binary(16))])
            drawn = draw(connection, column, of_row[part], cells, 7)
            assert 0 < len(drawn.row) < 120  # far fewer than all
            found += [(bytes(key), start + row) for key, row in zip(drawn.key, drawn.row, strict=True)]
    key, row = (np.array(column) for column in zip(*found, strict=True))
    for cell in (0, 1):
        mine = smallest(key, of_row[row] == cell)
        hashes = {
            md5(uids[at].hex().upper().encode() + b"7").hexdigest(): at
            for at in np.flatnonzero(of_row == cell)
        }
        assert row[mine].tolist() == sorted(hashes[each] for each in sorted(hashes)[:60])


def test_moments_are_the_same_bits_in_whatever_order_they_are_added() -> None:
    dice = np.random.default_rng(0)
    rows = unit(dice.normal(size=(2, 9_000, 16)).reshape(-1, 16)).reshape(2, -1, 16)
    image, text = rows.astype(np.float16).astype(np.float32)
    spaces = []
    for size in (9_000, 70, 1_111):
        parts = []
        for start in range(0, 9_000, size):
            parts.append(Space(16))
            parts[-1].add(image[start : start + size], text[start : start + size])
        total = Space(16)
        for part in sorted(parts * 37, key=lambda part: part.sums[0, 0]):
            total += Space.from_bytes(part.to_bytes())
        assert total.rest.any()  # a float64 alone would have rounded
        assert (Space.from_bytes(total.to_bytes()).frame().spreads == total.frame().spreads).all()
        spaces.append(total.frame())
    for other in spaces[1:]:
        assert (other.means == spaces[0].means).all()
        assert (other.spreads == spaces[0].spreads).all()
    assert np.allclose(spaces[0].means, [image.mean(0), text.mean(0)], atol=1e-6)
    assert np.allclose(spaces[0].spreads[0], np.cov(image.T, bias=True), rtol=1e-3, atol=1e-3)
