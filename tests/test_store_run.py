"""A run into an object store: the bytes of a local run whatever fails on the way, and every command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from s3 import BUCKET, S3, serve_s3
from whole import go, recipe, write_lists

from pairmill.commands import start
from pairmill.errors import ConfigError, OutputError, RetryableError
from pairmill.mend import mend
from pairmill.pipeline import run
from pairmill.pretrain.train import train_stage, train_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Train, Training
from pairmill.runner import Here, perform
from pairmill.shards.commit import sweep, write_bytes
from pairmill.shards.files import local_copy, move_file, open_file, pread, read_spans, remove_folder, size_of
from pairmill.shards.layout import DATA
from pairmill.shards.store_path import StorePath, open_path
from pairmill.shards.verify import verify
from pairmill.stats.explain import explain

TINY = {"samples_seen": 64, "batch_size": 4, "towers": {"image_size": 32, "embed_dim": 16, "vocab_size": 310}}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as server:
        yield server


@pytest.fixture
def bucket(s3: S3) -> Iterator[StorePath]:
    """A prefix of its own."""
    place = open_path(f"s3://{BUCKET}/{uuid4().hex}")
    assert isinstance(place, StorePath)
    yield place
    s3.refused = s3.cut = 0.0


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_lists(folder)
    return folder


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of data, by name."""
    files = (path for name in DATA for path in (out / name).rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Paths


def test_a_store_path_is_made_and_taken_apart_as_a_path_is() -> None:
    out = open_path("s3a://bucket/some/set/")
    path = out / "raw" / "00017.tar"
    assert str(path) == "s3://bucket/some/set/raw/00017.tar"
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("00017.tar", "00017", ".tar", "raw")
    assert str(path.with_suffix(".parquet").with_name("a.b.npy")) == "s3://bucket/some/set/raw/a.b.npy"
    assert path.relative_to(out).as_posix() == "raw/00017.tar"
    assert pickle.loads(pickle.dumps(path)) == path
    assert {path: 1}[out / "raw/00017.tar"] == 1
    assert sorted([path, out / "a"])[0] == out / "a"
    assert open_path(Path("s3://bucket/some/set")) == out
    assert open_path("file:///data/set") == Path("/data/set")


@pytest.mark.parametrize(
    "place", ["s3:///set", "s3://bucket/a%20b", "s3://bucket//a", "az://box/../a", "ftp://a/b"]
)
def test_a_place_that_would_be_taken_for_another_is_refused(place: str) -> None:
    with pytest.raises(ConfigError, match=place.replace("/", "/")):
        open_path(place)


def test_a_store_path_never_reaches_the_disk(
    bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = (lambda path: path.write_text("x"), lambda path: path.touch())
    for attempt in (open, os.listdir, pq.read_table, *written):
        with pytest.raises(TypeError, match="is in an object store"):
            attempt(bucket / "a")
    (bucket / "b").mkdir(parents=True)
    assert list(tmp_path.iterdir()) == []


def test_folders_and_files_are_found_as_on_a_disk(bucket: StorePath, tmp_path: Path) -> None:
    names = ("a.parquet", "b.reasons.parquet", "sub/c.parquet", "sub/deep/d.json", "subject/e.parquet")
    for out in (bucket, tmp_path):
        for name in names:
            write_bytes(name.encode(), out / name)
    for ask in (
        lambda out: sorted(path.relative_to(out) for path in out.glob("*.parquet")),
        lambda out: sorted(path.relative_to(out) for path in out.glob("sub/*.parquet")),
        lambda out: sorted(path.relative_to(out) for path in out.glob("*/*.parquet")),
        lambda out: sorted(path.relative_to(out) for path in out.glob("*/deep/d.json")),
        lambda out: sorted(path.relative_to(out) for path in out.glob("sub*/")),
        lambda out: sorted(path.relative_to(out) for path in out.rglob("*.parquet")),
        lambda out: sorted(path.name for path in out.iterdir()),
        lambda out: [(out / name).exists() for name in ("a.parquet", "sub", "sub/dee", "none")],
        lambda out: [(out / name).is_file() for name in ("a.parquet", "sub")],
        lambda out: [(out / name).is_dir() for name in ("a.parquet", "sub")],
        lambda out: (out / "a.parquet").stat().st_size,
    ):
        assert str(ask(bucket)) == str(ask(tmp_path)).replace("PosixPath", "StorePath")
    move_file(bucket / "a.parquet", bucket / "z")
    assert (bucket / "z").read_text() == "a.parquet"
    remove_folder(bucket / "sub")
    assert [path.name for path in bucket.iterdir()] == ["b.reasons.parquet", "subject", "z"]
    (bucket / "not there").unlink(missing_ok=True)


@pytest.mark.parametrize(("whole", "in_memory"), [(1 << 20, 1 << 20), (1 << 20, 10), (10, 10)])
def test_a_file_is_read_at_any_place_whether_it_is_held_or_not(
    bucket: StorePath, monkeypatch: pytest.MonkeyPatch, whole: int, in_memory: int
) -> None:
    monkeypatch.setattr("pairmill.shards.files.WHOLE", whole)
    monkeypatch.setattr("pairmill.shards.files.IN_MEMORY", in_memory)
    monkeypatch.setattr("pairmill.shards.files.CHUNK", 700)
    data = bytes(range(256)) * 10
    write_bytes(data, bucket / "a.bin")
    write_bytes(b"", bucket / "empty")
    for ahead in (False, True):
        with open_file(bucket / "a.bin", ahead=ahead) as file:
            assert (file.name, size_of(file)) == (str(bucket / "a.bin"), len(data))
            assert pread(file, 20, 250) == data[250:270]
            assert pread(file, 20, len(data) - 5) == data[-5:]
            assert read_spans(file, [(300, 3), (0, 2)]) == [data[300:303], data[:2]]
            file.seek(-4, io.SEEK_END)
            assert file.read() == data[-4:]
    with open_file(bucket / "empty") as file:
        assert file.read() == b""
    with local_copy(bucket / "a.bin") as copy:
        assert copy.read_bytes() == data
    assert not copy.exists()
    with pytest.raises(FileNotFoundError):
        open_file(bucket / "none")


def test_what_killed_processes_left_in_the_temporary_folder_goes(
    bucket: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for name in (f"pairmill-{gone.pid}-a", f"pairmill-{os.getpid()}-b", "pairmill-x-c"):
        (tmp_path / name).mkdir()
    assert sweep(bucket) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"pairmill-{os.getpid()}-b", "pairmill-x-c"]


# Runs


@pytest.fixture(scope="module")
def remote(finished_run: Path, picture_server: Any, s3: S3) -> StorePath:
    """The run of `finished_run` into a store of which 5 % of requests are refused and 1 % of bodies cut."""
    place = open_path(f"s3://{BUCKET}/remote/set")
    assert isinstance(place, StorePath)
    s3.refused, s3.cut, before = 0.05, 0.01, s3.faults
    summary = go(recipe(finished_run, picture_server.port), place)
    s3.refused = s3.cut = 0.0
    assert s3.faults > before + 10
    assert summary.exit_code == 0
    assert summary.funnel is not None
    assert summary.funnel.problems == ()
    return place


def test_a_run_into_a_store_that_fails_now_and_then_leaves_the_bytes_of_a_local_one(
    finished_run: Path, remote: StorePath
) -> None:
    assert digests(remote) == digests(finished_run / "out")
    found = verify(remote)
    assert found["problems"] == []
    assert found["checked"]["shards"] == 5
    assert {path.name for path in remote.glob("_*/")} == {"_done", "_log", "_plan"}


def test_a_pair_in_a_store_is_explained(finished_run: Path, remote: StorePath) -> None:
    assert explain(remote, "http://a.test/7") == explain(finished_run / "out", "http://a.test/7")


def test_a_finished_run_asks_a_store_to_write_nothing_but_its_lock_and_pages(
    finished_run: Path, picture_server: Any, remote: StorePath, s3: S3
) -> None:
    asked = len(s3.requests)
    summary = go(recipe(finished_run, picture_server.port), remote)
    assert all(report.skipped for report in summary.stages.values())
    written = {path.rpartition("/")[2] for method, path in s3.requests[asked:] if method == "PUT"}
    assert written == {"_lock.json"}


@pytest.mark.parametrize("source", ["raw", "shards"])
def test_a_model_is_trained_on_ranges_of_a_store_as_on_a_disk(
    finished_run: Path,
    remote: StorePath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: Literal["raw", "shards"],
) -> None:
    monkeypatch.setattr("pairmill.shards.files.WHOLE", 1_000)  # no tar is fetched in one go
    local = tmp_path / "out"
    shutil.copytree(finished_run / "out", local)
    training = Training(**TINY)
    for out in (local, remote):
        stage = train_stage(out, Train(training=training, source=source))
        (task,) = train_tasks(out, Train(training=training, source=source), "dataset")
        report = perform(stage.start(*stage.args), task)
        assert report.status == "done", report.error
    assert digests(remote) == digests(local)
    remove_folder(remote / "model")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_works_on_a_store(
    lists: Path, picture_server: Any, bucket: StorePath, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained and scored, by partitions, with a list added, and then each command by hand."""
    made = lists / "small.yaml"
    settings = {
        "fetch": {"urls_per_shard": 12, "deadline_s": 5, "retries": 0},
        "bootstrap": {"training": TINY, "rules": {"sets": ["near_copies"]}},
        "write": {"samples_per_shard": 10},
        "decide": {"max_noise": 1.0},
        "train": {"training": TINY},
        "near": {"cosine": 0.99999},
        "run": {"resolve": {"a.test:80": f"127.0.0.1:{picture_server.port}"}, "rows_per_partition": 20},
    }
    made.write_text(json.dumps(settings))
    local = lists / "local"
    for out in (str(local), str(bucket)):
        for given in (["a"], ["a", "b"]):
            paths = [str(lists / f"{name}.parquet") for name in given]
            assert start(["run", str(made), "--engine", "here", "--out", out, "--input", *paths]) == 0
    assert digests(bucket) == digests(local)
    (lists / "gone.txt").write_text("http://a.test/5\n")
    for command in (
        ["decide", "--name", "strict", "--max-noise", "1", "--set", EXTRA],
        ["train", "--source", "raw", "--set", "decide.name=strict"],
        ["fetch", "--retry-failed"],
        ["evaluate"],
        ["redact", str(lists / "gone.txt"), "--reason", "asked for"],
        ["report"],
    ):
        engine = [] if command[0] == "redact" else ["--engine", "here"]
        for out in (local, bucket):
            assert start([command[0], str(out), *command[1:], *engine]) == 0
    assert digests(bucket) == digests(local)
    capsys.readouterr()
    assert start(["explain", str(bucket), "http://a.test/3"]) == 0
    assert "in the dataset" in capsys.readouterr().out
    assert start(["diff", str(bucket), "dataset", "strict"]) == 0
    assert start(["verify", str(bucket)]) == 0
    assert {path.name for path in bucket.glob("_*/")} == {"_done", "_log", "_plan"}


EXTRA = 'decide.rules.extra=[{reason: long, where: "length(caption) > 900"}]'
KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from whole import go, recipe
from pairmill.shards.store_path import open_path
go(recipe(Path(sys.argv[2]), int(sys.argv[3])), open_path(sys.argv[4]))
"""


def test_a_killed_run_goes_on_by_the_same_command_and_ends_with_the_same_bytes(
    finished_run: Path, picture_server: Any, bucket: StorePath
) -> None:
    place, port = str(Path(__file__).parent), picture_server.port
    command = [sys.executable, "-c", KILLED, place, str(finished_run), str(port), str(bucket)]
    with subprocess.Popen(command, env=dict(os.environ)) as process:
        deadline = time.monotonic() + 60
        while not any((bucket / "_done" / "fetch").glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert (bucket / "_lock.json").is_file()  # of a process that is gone
    assert not (bucket / "shards" / "manifest.json").exists()
    assert go(recipe(finished_run, port), bucket).exit_code == 0
    assert digests(bucket) == digests(finished_run / "out")


def test_damage_in_a_store_is_found_and_mended(finished_run: Path, remote: StorePath) -> None:
    tar, pairs = remote / "shards" / "00001.tar", remote / "pairs" / "0000-00000.parquet"
    data = tar.read_bytes()
    write_bytes(data[:3000] + b"\xff" + data[3001:], tar)
    pairs.unlink()
    problems = verify(remote)["problems"]
    assert [line for line in problems if line.startswith(f"{tar}: xxh3")]
    assert [line for line in problems if line.startswith(f"{pairs}: missing")]
    mend(remote, engine=Here(), progress=Quiet())
    assert verify(remote)["problems"] == []
    assert digests(remote) == digests(finished_run / "out")


def test_a_run_says_in_one_line_why_a_store_is_not_for_it(
    finished_run: Path,
    picture_server: Any,
    bucket: StorePath,
    s3: S3,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = finished_run / "bad.yaml"
    made.write_text(json.dumps({"run": {"engine": "here"}}))

    def said(out: object, *more: str) -> str:
        arguments = ["run", str(made), "--out", str(out), *more, "--input", str(finished_run / "a.parquet")]
        assert start(arguments) in (1, 2)
        (line,) = capsys.readouterr().err.strip().split("\n")
        return line

    assert "s3://nowhere/set: there is no bucket 'nowhere': make it first" in said("s3://nowhere/set")
    write_bytes(b"x", bucket / "other" / "raw" / "00000.tar")
    assert "holds pairs or shards but no recipe.yaml" in said(bucket / "other")
    write_bytes(
        json.dumps({"run": "old", "host": "gone.example", "pid": 7}).encode(), bucket / "held/_lock.json"
    )
    assert "(run old on gone.example, process 7, heard of" in said(bucket / "held")
    assert start(["unlock", str(bucket / "held")]) == 0
    assert "freed from run old on gone.example" in capsys.readouterr().out
    assert not (bucket / "held/_lock.json").exists()
    s3.read_only = True
    try:
        assert "the store refuses: AccessDenied" in said(bucket / "new")
    finally:
        s3.read_only = False
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "is AWS_ENDPOINT_URL=http://127.0.0.1:9 right?" in said("s3://elsewhere/set")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials: set AWS_ACCESS_KEY_ID" in said("s3://without/set")


def test_a_store_that_fails_for_long_ends_the_run_with_one_line_and_the_same_command_goes_on(
    finished_run: Path, picture_server: Any, bucket: StorePath, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("object_store", "object_client"):
        monkeypatch.setattr(f"pairmill.shards.{module}.PATIENCE_S", 0.2)
    monkeypatch.setattr("pairmill.shards.object_store.FIRST_PATIENCE_S", 0.1)

    class Outage(Quiet):
        def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
            s3.refused = 1.0 if stage == "near" else 0.0

    made = recipe(finished_run, picture_server.port)
    with pytest.raises(
        RetryableError, match=r"s3://.*: the store fails: .*503.*the same command goes on"
    ) as caught:
        run(made, bucket, engine=Here(retries=0), progress=Outage())
    assert "\n" not in str(caught.value)
    s3.refused = 0.0
    assert not any((bucket / "scores" / "near").glob("*"))
    assert go(made, bucket).exit_code == 0
    assert digests(bucket) == digests(finished_run / "out")


def test_a_run_whose_folder_was_taken_over_stops_before_its_next_stage(
    finished_run: Path, picture_server: Any, bucket: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairmill.shards.object_lock.BEAT_S", 0.05)

    class Thief(Quiet):
        def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
            if stage == "language":
                write_bytes(b"{}", bucket / "_lock.json")
                time.sleep(0.5)

    with pytest.raises(OutputError, match="another run has taken the folder over"):
        run(recipe(finished_run, picture_server.port), bucket, engine=Here(), progress=Thief())
    assert not any((bucket / "raw").glob("*"))
