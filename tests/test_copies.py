"""Exact copies, counted chunk by chunk and by a slow definition in plain Python."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import DataError
from pairmill.filter.columns import read_part
from pairmill.filter.copies import dedup_phases, dedup_stage, dedup_tasks
from pairmill.filter.frequency import (
    Rows,
    frequency_phases,
    frequency_stage,
    frequency_tasks,
    needs_frequency,
)
from pairmill.filter.ranks import group
from pairmill.filter.sql import database
from pairmill.progress import Quiet
from pairmill.recipe import Dedup, Rule, Rules
from pairmill.runner import Here, Stage, Tally, Task
from pairmill.shards.exchange import exchange_folder, gather
from pairmill.shards.job import (
    StageReport,
    finished_tasks,
    forget_phases,
    run_phases,
    run_stage,
    tally_path,
)
from pairmill.shards.schema import COPIES, PAIRS, make_uid, text_hash
from pairmill.shards.store import open_store

WORDS = ("Red", "red", "blue", "dog", "cat", "ein", "图")
Pair = tuple[str, str]


def write_part(out: Path, name: str, pairs: list[Pair]) -> None:
    """A part of pairs/ with these (url, caption)."""
    rows = [
        {
            "uid": make_uid(url, caption),
            "url_hash": text_hash(url),
            "caption_hash": text_hash(caption),
            "url": url,
            "caption": caption,
            "source": "list",
            "source_row": row,
        }
        for row, (url, caption) in enumerate(pairs)
    ]
    (out / "pairs").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, PAIRS), out / "pairs" / f"{name}.parquet")


def run(stage: Stage, tasks: list[Task]) -> list[Tally]:
    worker = stage.start(*stage.args)
    return [worker(task) for task in tasks]


def read_copies(out: Path) -> list[dict[str, object]]:
    paths = sorted((out / "scores" / "copies").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def parts() -> list[list[Pair]]:
    """Four parts (one empty) of 700 pairs in all, from 40 URLs and 25 captions: copies of every kind."""
    dice = random.Random(7)
    return [
        [(f"http://a/{dice.randrange(40)}", f"caption {dice.randrange(25)}") for _ in range(size)]
        for size in (300, 0, 399, 1)
    ]


def slow_copies(pairs: list[Pair]) -> list[dict[str, object]]:
    """The definition of COPIES, one row at a time."""
    captions: defaultdict[str, set[str]] = defaultdict(set)
    urls: defaultdict[str, set[str]] = defaultdict(set)
    for url, caption in pairs:
        captions[url].add(caption)
        urls[caption].add(url)
    copies, met = Counter(pairs), Counter[Pair]()
    rows: list[dict[str, object]] = []
    for url, caption in pairs:
        by_uid = sorted(make_uid(url, other) for other in captions[url])
        rows.append(
            {
                "uid": make_uid(url, caption),
                "pair_rank_v1": met[url, caption],
                "pair_copies_v1": copies[url, caption],
                "captions_per_image_v1": len(captions[url]),
                "caption_rank_v1": by_uid.index(make_uid(url, caption)),
                "images_per_caption_v1": len(urls[caption]),
            }
        )
        met[url, caption] += 1
    return rows


def test_copies_are_what_the_slow_definition_says(tmp_path: Path, parts: list[list[Pair]]) -> None:
    for number, pairs in enumerate(parts):
        write_part(tmp_path, f"0000-{number:05d}", pairs)
    (tally,) = run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    flat = [pair for pairs in parts for pair in pairs]
    assert read_copies(tmp_path) == slow_copies(flat)
    assert dict(tally.counts) == {"first": len(set(flat)), "pair_copy": len(flat) - len(set(flat))}
    assert tally.seen == len(flat)
    assert dict(tally.facts) == {
        "pairs": len(set(flat)),
        "urls": len({url for url, _ in flat}),
        "captions": len({caption for _, caption in flat}),
    }


def skewed(parts: list[list[Pair]]) -> list[Pair]:
    """Half of the rows bear one caption, a quarter one URL, an eighth one pair."""
    pairs = [pair for rows in parts for pair in rows]
    pairs[::2] = [(url, "product image") for url, _ in pairs[::2]]
    pairs[1::4] = [("http://a/none", caption) for _, caption in pairs[1::4]]
    pairs[3::8] = [("http://a/none", "product image")] * len(pairs[3::8])
    return pairs


def write_parts(out: Path, pairs: list[Pair], rows: int) -> None:
    for number, begin in enumerate(range(0, len(pairs), rows)):
        write_part(out, f"0000-{number:05d}", pairs[begin : begin + rows])


def cut_run(out: Path, rows: int) -> StageReport:
    """The stage with sources and partitions of `rows` rows."""
    reports = run_phases(out, dedup_phases(out, rows), Here(retries=0), Quiet())
    assert not any(report.failed for report in reports)
    return run_stage(out, dedup_stage(out), dedup_tasks(out, rows), Here(retries=0), Quiet())


@pytest.mark.parametrize("rows", [70, 150, 699])
def test_copies_are_the_same_however_the_rows_are_cut(
    tmp_path: Path, parts: list[list[Pair]], rows: int
) -> None:
    pairs = skewed(parts)
    write_parts(tmp_path, pairs, 60)
    report = cut_run(tmp_path, rows)
    assert len(report.facts) == -(-len(pairs) // max(60, rows // 60 * 60))
    assert read_copies(tmp_path) == slow_copies(pairs)
    assert dict(report.counts) == {"first": len(set(pairs)), "pair_copy": len(pairs) - len(set(pairs))}
    added = {
        name: sum(facts[name] for facts in report.facts.values()) for name in ("pairs", "urls", "captions")
    }
    distinct = (set(pairs), {url for url, _ in pairs}, {caption for _, caption in pairs})
    assert tuple(added.values()) == tuple(map(len, distinct))


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_among_the_phases_changes_no_byte(
    tmp_path: Path, parts: list[list[Pair]], seed: int
) -> None:
    """After some of the phases half of the files that nobody waited for are gone, cut or full of zeros."""
    dice = np.random.default_rng(seed)
    write_parts(tmp_path, skewed(parts), 60)
    phases = dedup_phases(tmp_path, 150)
    for _ in range(1 + seed % 4):
        tasks, stage = next(phases)
        run_stage(tmp_path, stage, tasks, Here(retries=0), Quiet())
    sent = [*sorted((tmp_path / "_exchange").rglob("*.exchange")), *(tmp_path / "_exchange").rglob("*.kept")]
    for number in dice.permutation(len(sent))[: len(sent) // 2]:
        path = sent[number]
        size = path.stat().st_size
        lost = (None, b"", path.read_bytes()[: size // 2], bytes(size))[dice.integers(4)]
        path.unlink() if lost is None else path.write_bytes(lost)
    cut_run(tmp_path, 150)
    assert read_copies(tmp_path) == slow_copies(skewed(parts))


def test_the_cut_changes_no_byte(tmp_path: Path, parts: list[list[Pair]]) -> None:
    found = []
    for rows in (10_000, 100):
        write_parts(tmp_path / f"{rows}", skewed(parts), 60)
        cut_run(tmp_path / f"{rows}", rows)
        found.append([path.read_bytes() for path in sorted((tmp_path / f"{rows}/scores/copies").iterdir())])
    assert found[0] == found[1]


def test_a_url_that_half_of_the_rows_bear_is_sent_once_by_each_partition(tmp_path: Path) -> None:
    pairs = [("http://a/one", f"caption {n}") for n in range(600)]
    write_parts(tmp_path, pairs, 60)
    phases = dedup_phases(tmp_path, 100)
    for _ in range(2):  # `pairs`, `keys`
        tasks, stage = next(phases)
        run(stage, list(tasks))
    next(phases)  # what they sent may be read
    store, folder = open_store(tmp_path), exchange_folder("dedup", "url_hash")
    sent = [len(table) for part in range(6) for _, table in gather(store, folder, part)]
    assert sum(sent) == 6


def test_a_stage_keeps_the_cut_it_was_begun_with(tmp_path: Path, parts: list[list[Pair]]) -> None:
    write_parts(tmp_path, skewed(parts), 60)
    cut_run(tmp_path, 150)
    before = dedup_tasks(tmp_path, 150)
    assert len(before) == 6
    assert dedup_tasks(tmp_path, 10_000) == before
    for task in before:
        tally_path(tmp_path, "dedup", task.name).unlink()
    assert [task.name for task in dedup_tasks(tmp_path, 10_000)] == ["all"]


def test_what_another_cut_left_is_forgotten(tmp_path: Path, parts: list[list[Pair]]) -> None:
    """Killed among its phases, then run with other partitions."""
    pairs = skewed(parts)
    write_parts(tmp_path, pairs, 60)
    phases = dedup_phases(tmp_path, 70)
    for _ in range(2):
        tasks, stage = next(phases)
        run_stage(tmp_path, stage, tasks, Here(retries=0), Quiet())
    cut_run(tmp_path, 150)
    assert read_copies(tmp_path) == slow_copies(pairs)
    forget_phases(tmp_path, "dedup")
    write_parts(tmp_path, pairs[:60], 60)
    for path in sorted((tmp_path / "pairs").glob("*.parquet"))[1:]:
        path.unlink()
    cut_run(tmp_path, 150)
    assert finished_tasks(tmp_path, "dedup") == ["all"]


def test_keys_that_share_their_first_half_are_told_apart() -> None:
    lows = [5, 3, 5, 9, 3, 3]
    keys = group(np.array([[7, low] for low in lows] + [[6, 0]], ">u8"))
    assert keys.order.tolist() == [6, 1, 4, 5, 0, 2, 3]
    assert keys.firsts.tolist() == [6, 1, 0, 3]
    assert keys.sizes().tolist() == [1, 3, 2, 1]
    assert keys.ranks().tolist() == [0, 0, 1, 0, 1, 2, 0]


def test_sums_run_within_each_key() -> None:
    keys = group(np.array([[7, 1], [5, 1], [7, 1], [7, 1]], ">u8"))
    before, total = keys.running(np.array([2, 10, 3, 4]))
    assert before.tolist() == [0, 0, 2, 5]
    assert total.tolist() == [9, 10, 9, 9]


def test_every_part_has_its_copies_beside_it(tmp_path: Path, parts: list[list[Pair]]) -> None:
    for number, pairs in enumerate(parts):
        write_part(tmp_path, f"0000-{number:05d}", pairs)
    run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    for path in sorted((tmp_path / "pairs").glob("*.parquet")):
        copies = pq.read_table(tmp_path / "scores" / "copies" / path.name)
        assert copies.schema.equals(COPIES)
        assert copies.column("uid").to_pylist() == pq.read_table(path).column("uid").to_pylist()


def test_what_does_not_fit_the_memory_is_spilled_and_swept(tmp_path: Path) -> None:
    spilled = tmp_path / "_tmp" / "sort"
    spilled.mkdir(parents=True)
    (spilled / "of_a_killed_run").write_bytes(b"half")
    with database(tmp_path, "sort", memory_mb=40) as connection:
        connection.execute(
            "CREATE TEMP TABLE many AS SELECT hash(range) AS x, range AS y FROM range(4_000_000)"
        )
        connection.execute("CREATE TEMP TABLE ordered AS SELECT * FROM many ORDER BY x")
        assert [path.name for path in spilled.iterdir()] not in ([], ["of_a_killed_run"])
        assert connection.execute("SELECT count(*), sum(y) FROM ordered").fetchall() == [
            (4_000_000, 7_999_998_000_000)
        ]
    assert not (tmp_path / "_tmp").exists()


def test_sql_reaches_no_file_outside_its_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "out" / "a.csv", tmp_path / "b.csv"
    inside.parent.mkdir()
    for path in (inside, outside):
        path.write_text("x\n1\n")
    with database(tmp_path / "out", "reach") as connection:
        assert connection.execute(f"SELECT * FROM '{inside}'").fetchall() == [(1,)]
        for sql in (
            f"SELECT * FROM '{outside}'",
            f"COPY (SELECT 1) TO '{outside}'",
            "SET threads = 8",
            "INSTALL httpfs",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)


def test_no_pairs_give_no_task(tmp_path: Path) -> None:
    assert dedup_tasks(tmp_path) == []
    assert frequency_tasks(tmp_path) == []


def test_scores_of_other_rows_are_refused(tmp_path: Path) -> None:
    write_part(tmp_path, "0000-00000", [("http://a/1", "one"), ("http://a/2", "two")])
    run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    write_part(tmp_path, "0000-00000", [("http://a/2", "two"), ("http://a/1", "one")])
    with pytest.raises(DataError, match="its rows are not those of pairs/0000-00000"):
        read_part(tmp_path, "0000-00000", {"pair_rank_v1"})


def test_a_stream_that_ends_too_soon_is_told() -> None:
    batch = pa.record_batch({"seq": [1, 2, 3]})
    rows = Rows(pa.RecordBatchReader.from_batches(batch.schema, [batch]))
    assert rows.take(2).column("seq").to_pylist() == [1, 2]
    with pytest.raises(DataError, match="2 rows expected, 1 left"):
        rows.take(2)


def tokens(caption: str) -> list[str]:
    words = caption.lower().split()
    return words + [f"{a} {b}" for a, b in pairwise(words)]


def tokens_of(captions: list[str]) -> list[str]:
    return [token for caption in captions for token in tokens(caption)]


def slow_rarest(captions: list[str]) -> list[int | None]:
    """The rank of the rarest word or pair of words of each caption; each distinct one counts once."""

    counts = Counter(token for caption in dict.fromkeys(captions) for token in tokens(caption))
    order = sorted(counts, key=lambda token: (-counts[token], token.encode()))
    ranks = {token: rank for rank, token in enumerate(order, start=1)}
    return [max((ranks[token] for token in tokens(caption)), default=None) for caption in captions]


def test_the_rarest_token_is_what_the_slow_definition_says(tmp_path: Path) -> None:
    dice = random.Random(3)
    captions = [" ".join(dice.choices(WORDS, k=dice.randrange(6))) for _ in range(80)]
    for number in range(2):
        rows = captions[40 * number : 40 * number + 40]
        write_part(tmp_path, f"0000-{number:05d}", [("http://a/1", caption) for caption in rows])
    run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    (tally,) = run(frequency_stage(tmp_path, Dedup(threads=2)), frequency_tasks(tmp_path))
    found = [
        rank
        for path in sorted((tmp_path / "scores" / "frequency").glob("*.parquet"))
        for rank in pq.read_table(path).column("rarest_token_rank_v1").to_pylist()
    ]
    assert found == slow_rarest(captions)
    assert tally.seen == 80


@pytest.mark.parametrize("rows", [1_000, 70, 25])
def test_tokens_have_the_same_ranks_however_the_rows_are_cut(tmp_path: Path, rows: int) -> None:
    dice = random.Random(4)
    words = [*WORDS, *(f"word{n}" for n in range(60)), "\U0001f600", "\uffee"]
    captions = [" ".join(dice.choices(words, k=dice.randrange(6))) for _ in range(160)]
    write_parts(tmp_path, [("http://a/1", caption) for caption in captions], 20)
    run(dedup_stage(tmp_path), dedup_tasks(tmp_path))
    phases = frequency_phases(tmp_path, Dedup(), rows=rows)
    for report in run_phases(tmp_path, phases, Here(retries=0), Quiet()):
        assert not report.failed
    stage, tasks = frequency_stage(tmp_path, Dedup()), frequency_tasks(tmp_path, rows)
    report = run_stage(tmp_path, stage, tasks, Here(retries=0), Quiet())
    paths = sorted((tmp_path / "scores" / "frequency").glob("*.parquet"))
    found = [rank for path in paths for rank in pq.read_table(path)["rarest_token_rank_v1"].to_pylist()]
    assert found == slow_rarest(captions)
    assert sum(facts["tokens"] for facts in report.facts.values()) == len(set(tokens_of(captions)))
    assert len(tasks) == {1_000: 1, 70: 3, 25: 8}[rows]


def test_frequency_is_only_needed_where_a_rule_asks_for_it() -> None:
    assert needs_frequency(Rules(sets=("align_text",)))
    assert needs_frequency(Rules(extra=(Rule("rare", "rarest_token_rank_v1 > 5"),)))
    assert not needs_frequency(Rules(sets=("copies", "plain_text")), Rules())
