"""A store holds whole files under their names, on a disk and in a bucket alike."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from s3 import BUCKET, S3, serve_s3

from pairmill.errors import ConfigError, OutputError, RetryableError
from pairmill.shards import object_lock, object_store
from pairmill.shards.store import LOCK, Claim, Store, open_store

BIG = bytes(range(256)) * 50_000  # 12.8 MB: more than one part of an upload


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(tmp_path / "out")
        return
    server: S3 = request.getfixturevalue("s3")
    yield open_store(f"s3://{BUCKET}/{uuid4().hex}/out")
    server.refused = server.cut = 0.0


def listing(store: Store, prefix: str = "") -> list[tuple[str, int]]:
    return list(store.list(prefix))


def test_what_was_put_is_read_whole_by_range_and_by_spans(store: Store) -> None:
    store.put("raw/a.bin", BIG)
    store.put("raw/a.bin", memoryview(BIG))
    assert store.read("raw/a.bin") == BIG
    assert store.read("raw/a.bin", 5, 9) == BIG[5:9]
    assert store.read("raw/a.bin", 9_000_000) == BIG[9_000_000:]
    spans = [(12_000_000, 100), (0, 3), (1, 5), (9_999_999, 0), (len(BIG) - 2, 10), (len(BIG) + 5, 10)]
    assert store.ranges("raw/a.bin", spans) == [BIG[at : at + size] for at, size in spans]
    assert store.size("raw/a.bin") == len(BIG)
    assert store.exists("raw/a.bin")


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.put("empty", b"")
    with store.writer("also"):
        pass
    assert listing(store) == [("also", 0), ("empty", 0)]
    assert store.read("empty") == b""
    assert store.open("also").read() == b""


def test_a_name_that_is_not_there_is_said_so(store: Store) -> None:
    assert not store.exists("a")
    assert listing(store) == []
    for ask in (store.read, store.size, store.open, lambda name: store.ranges(name, [(0, 1)])):
        with pytest.raises(FileNotFoundError):
            ask("a")
    store.remove(["a", "b/c"])


def test_only_files_of_the_folder_are_listed_in_order_of_their_names(store: Store) -> None:
    for name in ("raw/2.tar", "raw/10.tar", "raw/1.parquet", "raw/deep/3.tar", "raw2/4.tar", "b"):
        store.put(name, name.encode())
    assert [name for name, _ in store.list("raw")] == [
        "raw/1.parquet",
        "raw/10.tar",
        "raw/2.tar",
        "raw/deep/3.tar",
    ]
    assert store.names("raw", ".tar") == ["10", "2"]
    assert len(listing(store)) == 6
    store.remove(["raw/2.tar", "raw/nothing", "b"])
    assert [name for name, _ in store.list()] == [
        "raw/1.parquet",
        "raw/10.tar",
        "raw/deep/3.tar",
        "raw2/4.tar",
    ]


def test_a_writer_counts_and_hashes_what_it_writes(store: Store) -> None:
    with store.writer("x/big") as file:
        for start in range(0, len(BIG), 1_000_000):
            assert file.tell() == start
            file.write(BIG[start : start + 1_000_000])
        assert not store.exists("x/big")
    assert (file.size, file.digest) == (len(BIG), xxhash.xxh3_128_hexdigest(BIG))
    assert store.read("x/big") == BIG


def write_half(store: Store, name: str) -> None:
    with store.writer(name) as file:
        file.write(BIG)
        raise KeyboardInterrupt


def test_what_failed_halfway_has_no_name_and_leaves_the_old_file_whole(store: Store) -> None:
    store.put("a", b"old")
    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            write_half(store, name)
    assert listing(store) == [("a", 3)]
    assert store.read("a") == b"old"


def test_parquet_is_written_to_and_read_from_a_store(store: Store) -> None:
    table = pa.table({"n": list(range(200_000)), "text": [f"caption {i}" for i in range(200_000)]})
    with store.writer("t.parquet") as file:
        pq.write_table(table, file, row_group_size=50_000)
    with store.open("t.parquet") as source, pq.ParquetFile(source) as parquet:
        assert parquet.metadata.num_row_groups == 4
        assert parquet.read(columns=["n"]) == table.select(["n"])
        assert parquet.read_row_group(3) == table.slice(150_000)


def test_of_many_that_create_a_name_one_does(store: Store) -> None:
    won: list[bytes] = []

    def create(number: int) -> None:
        body = b"%d" % number
        if store.create("only", body):
            won.append(body)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.read("only")]


def test_a_store_travels_as_its_url(store: Store) -> None:
    store.put("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read("a") == b"1"


def test_a_folder_is_held_by_one_run_at_a_time(store: Store) -> None:
    with store.claim("first") as claim:
        claim.check()
        with (
            pytest.raises(OutputError, match="another pairmill run is working in this folder"),
            store.claim("second"),
        ):
            pass
        assert listing(store) == []
    with store.claim("third"):
        store.put("a", b"")
    assert listing(store) == [("a", 0)]


@pytest.fixture
def bucket(s3: S3) -> Iterator[Store]:
    yield open_store(f"s3://{BUCKET}/{uuid4().hex}")
    s3.refused = s3.cut = 0.0


def test_nothing_is_lost_where_requests_are_refused_and_bodies_cut(bucket: Store, s3: S3) -> None:
    s3.refused, s3.cut = 0.05, 0.05
    before = s3.faults
    for number in range(40):
        bucket.put(f"{number:02d}", BIG[: number * 1_000])
        assert bucket.read(f"{number:02d}") == BIG[: number * 1_000]
        assert bucket.ranges(f"{number:02d}", [(0, number), (500_000, 2)])[0] == BIG[:number]
    assert [size for _, size in bucket.list()] == [number * 1_000 for number in range(40)]
    with bucket.writer("big") as file:
        file.write(BIG)
    assert bucket.read("big") == BIG
    assert s3.faults > before


def test_a_store_that_keeps_failing_is_an_error_of_the_outside(
    bucket: Store, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PATIENCE_S", 0.2)
    monkeypatch.setattr(object_store, "TRIES", 2)
    s3.refused = 1.0
    with pytest.raises(RetryableError, match=rf"{bucket.url}/a: the store fails: .*503"):
        bucket.put("a", b"")
    with pytest.raises(RetryableError, match="the store fails"):
        bucket.read("a")


def test_a_bucket_that_is_not_there_is_said_in_words(s3: S3) -> None:
    nowhere = open_store("s3://elsewhere/out")
    for write in (lambda: nowhere.put("a", b""), lambda: nowhere.claim("run").__enter__()):
        with pytest.raises(OutputError, match="there is no bucket 'elsewhere': make it first"):
            write()
    with pytest.raises(OutputError, match="there is no bucket 'elsewhere'"):
        list(nowhere.list())


def test_a_store_without_credentials_or_of_another_kind_is_refused_at_once(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="ftp://host/out: an output folder is local, or at s3://"):
        open_store("ftp://host/out")
    with pytest.raises(ConfigError, match="no bucket is named"):
        open_store("s3://").read("a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{BUCKET}/x").read("a")


HOLD = (
    "import os, sys, time; from pairmill.shards.store import open_store\n"
    "with open_store(sys.argv[1]).claim('held'):\n    print('held', flush=True); sys.stdin.read()"
)


def test_the_lock_of_a_killed_run_is_taken_over_when_it_is_stale_or_freed(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, pipe = [sys.executable, "-c", HOLD, bucket.url], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
    monkeypatch.setattr(socket, "gethostname", lambda: "another machine")  # from there nobody can tell
    with pytest.raises(
        OutputError, match=rf"run held on .*process {other.pid}.*at once by `pairmill unlock {bucket.url}`"
    ):
        bucket.claim("mine").__enter__()
    with monkeypatch.context() as patched:
        patched.setattr(object_lock, "STALE_S", -60.0)
        with bucket.claim("mine"):
            pass
    bucket.put(LOCK, b"not even JSON")
    with pytest.raises(OutputError, match="a run that does not say its name"):
        bucket.claim("mine").__enter__()
    assert object_lock.free(bucket) == "a run that does not say its name"
    assert object_lock.free(bucket) == ""
    with bucket.claim("mine"):
        pass


def test_the_lock_of_a_process_of_this_machine_goes_with_it(bucket: Store) -> None:
    command, pipe = [sys.executable, "-c", HOLD, bucket.url], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=dict(os.environ)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another pairmill run is working"):
            bucket.claim("mine").__enter__()
        other.kill()
    with bucket.claim("mine"):
        pass


def check_for(seconds: float, claim: Claim) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        claim.check()


def test_a_run_whose_lock_was_taken_over_stops(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "BEAT_S", 0.01)
    with bucket.claim("slow") as claim:
        bucket.put(LOCK, b"{}")
        with pytest.raises(OutputError, match="another run has taken the folder over"):
            check_for(20, claim)
    assert bucket.read(LOCK) == b"{}"
