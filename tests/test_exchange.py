"""What a source sends arrives at its partition, and the answer comes back to the row that asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from s3 import BUCKET, serve_s3

from pairmill.errors import ShardError
from pairmill.shards import exchange
from pairmill.shards.commit import file_digest, recorded
from pairmill.shards.exchange import (
    answers,
    forget,
    gather,
    keep,
    kept,
    partition_of,
    partitions,
    reply,
    scatter,
    sources,
    write_index,
)
from pairmill.shards.store import Store, open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(tmp_path)
        return
    with serve_s3():
        yield open_store(f"s3://{BUCKET}/{uuid4().hex}")


def send(
    store: Store, lengths: dict[str, int], parts: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Numbers from a seed, sent to partitions drawn from it: the numbers and the partitions by source."""
    rng = np.random.default_rng(7)
    numbers = {name: rng.integers(0, 1 << 40, length) for name, length in lengths.items()}
    part = {name: rng.integers(0, parts, length) for name, length in lengths.items()}
    for name in reversed(lengths):  # in another order than that of their names
        table = pa.table({"n": numbers[name], "text": [str(n) for n in numbers[name]]})
        scatter(store, "_exchange/test", name, table, part[name], parts)
    return numbers, part


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ({"a": 100, "b": 1000, "c": 0}, 7),
        ({"a": 5}, 1),
        ({"a": 3, "b": 2}, 30),
        ({f"{i:03d}": 2 for i in range(80)}, 3),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_every_row_arrives_once_and_every_answer_comes_back(
    store: Store, lengths: dict[str, int], parts: int, indexed: bool
) -> None:
    numbers, part = send(store, lengths, parts)
    if indexed:
        write_index(store, "_exchange/test")
    assert sources(store, "_exchange/test") == list(lengths)
    for p in range(parts):
        came = list(gather(store, "_exchange/test", p))
        assert [name for name, _ in came] == list(lengths)
        for name, table in came:
            assert table["n"].to_pylist() == numbers[name][part[name] == p].tolist()
            assert table["text"].to_pylist() == [str(n) for n in table["n"].to_pylist()]
        n = np.concatenate([table["n"].to_numpy() for _, table in came])
        twice = pa.table({"twice": 2 * n, "part": np.full(len(n), p)})
        reply(store, "_exchange/test", p, twice, [len(table) for _, table in came])
    for name in lengths:
        back = answers(store, "_exchange/test", name, part[name], parts)
        assert back["twice"].to_pylist() == (2 * numbers[name]).tolist()
        assert back["part"].to_pylist() == part[name].tolist()
    forget(store, "_exchange/test")
    assert list(store.list()) == []


def test_a_file_that_is_cut_or_foreign_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    send(store, {"a": 100}, 3)
    whole = store.read("_exchange/test/a.exchange")
    store.put("_exchange/test/a.exchange", whole[:-200])
    with pytest.raises(ShardError, match=r"_exchange/test/a\.exchange, byte \d+: \d+ bytes, expected"):
        list(gather(store, "_exchange/test", 2))
    store.put("_exchange/test/a.exchange", b"")
    with pytest.raises(ShardError, match="not a file of an exchange: lost with a machine"):
        list(gather(store, "_exchange/test", 0))


def test_bytes_that_a_power_cut_turned_to_zeros_are_never_rows(tmp_path: Path) -> None:
    """Every place of a file of rows, and of one that is kept, a block of it at a time."""
    store = open_store(tmp_path)
    send(store, {"a": 100}, 3)
    keep(store, "_exchange/test", "b", pa.table({"n": list(range(100))}))
    for name, read in (
        ("a.exchange", lambda: [rows for p in range(3) for rows in gather(store, "_exchange/test", p)]),
        ("b.kept", lambda: kept(store, "_exchange/test", "b")),
    ):
        whole = store.read(f"_exchange/test/{name}")
        assert read()
        for begin in range(0, len(whole), 64):
            zeros = bytes(len(whole[begin : begin + 64]))
            torn = whole[:begin] + zeros + whole[begin + 64 :]
            if torn != whole:
                store.put(f"_exchange/test/{name}", torn)
                with pytest.raises(ShardError, match="the same command again makes it anew"):
                    read()


def test_nobody_waits_for_the_disk_but_a_task_names_what_it_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise AssertionError("synced")

    monkeypatch.setattr(os, "fsync", fail)
    store = open_store(tmp_path)
    with recorded() as files:
        send(store, {"a": 100}, 3)
        keep(store, "_exchange/test", "b", pa.table({"n": [1]}))
    assert files == {
        tmp_path / f"_exchange/test/{name}": file_digest(tmp_path / f"_exchange/test/{name}")
        for name in ("a.exchange", "b.kept")
    }
    with pytest.raises(AssertionError, match="synced"):
        store.put("pairs/a", b"")


def test_sources_that_were_cut_differently_are_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    scatter(store, "x", "a", pa.table({"n": [1]}), np.array([0]), 2)
    scatter(store, "x", "b", pa.table({"n": [1]}), np.array([0]), 3)
    with pytest.raises(ShardError, match="different numbers of partitions"):
        write_index(store, "x")


def test_partitions_are_ranges_of_keys_of_about_one_size() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (100_000, 16), np.uint8).view("V16").ravel()
    part = partition_of(keys, 7)
    assert np.all(np.diff(part[np.argsort(keys.view(">u8").reshape(-1, 2)[:, 0], kind="stable")]) >= 0)
    assert np.bincount(part, minlength=7).min() > 13_700
    assert partition_of(np.frombuffer(b"\0" * 16 + b"\xff" * 16, "V16"), 5).tolist() == [0, 4]


def test_the_number_of_partitions_follows_the_rows_alone() -> None:
    assert [partitions(rows, 10) for rows in (0, 1, 10, 11, 100)] == [1, 1, 1, 2, 10]


def test_reads_run_ahead_but_not_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "IN_FLIGHT", 4)
    store = open_store(tmp_path)
    numbers, part = send(store, {f"{i:02d}": 10 for i in range(20)}, 2)
    came = {name: table["n"].to_pylist() for name, table in gather(store, "_exchange/test", 1)}
    assert came == {name: numbers[name][part[name] == 1].tolist() for name in numbers}
