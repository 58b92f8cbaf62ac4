"""A final name always holds a whole file, and an output folder has one run at a time."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairmill.errors import OutputError
from pairmill.shards import commit
from pairmill.shards.commit import (
    committed,
    file_digest,
    locked,
    recorded,
    sweep,
    write_bytes,
    write_json,
    write_once,
    write_table,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def fail_halfway(path: Path, error: BaseException) -> None:
    with committed(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyError(), KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_what_failed_halfway_has_no_name_at_all(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail_halfway(tmp_path / "a.bin", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, OSError), (errno.ESTALE, OSError), (errno.EACCES, OutputError), (errno.ENOSPC, OutputError)],
)
def test_a_disk_that_fails_for_a_moment_is_not_one_that_cannot_be_written(
    tmp_path: Path, number: int, kind: type[Exception]
) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(kind):
        fail_halfway(path, OSError(number, os.strerror(number), str(path)))
    assert names(tmp_path) == []


def test_what_failed_halfway_leaves_the_old_file_whole(tmp_path: Path) -> None:
    write_bytes(b"old", tmp_path / "a.bin")
    with pytest.raises(KeyError):
        fail_halfway(tmp_path / "a.bin", KeyError())
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_a_killed_writer_leaves_only_what_sweep_removes(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pairmill.shards.commit import committed\n"
        "with committed(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "raw" / "00000.tar"
    done = subprocess.run([sys.executable, "-c", code, path], check=False, timeout=60)
    assert done.returncode == -9
    assert not path.exists()
    assert len(names(path.parent)) == 1
    write_bytes(b"mine", tmp_path / "keep.part")
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == ["keep.part", "raw"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(commit.os, call, fail)
    with pytest.raises(OutputError, match=f"a.json: cannot be written: {os.strerror(number)}"):
        write_json({}, tmp_path / "a.json")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_really_full_is_said_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    (tmp_path / f".a.parquet.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"a\.parquet: cannot be written: .*No space left on device"):
        write_table(pa.table({"a": list(range(10))}), path)
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"")
    with pytest.raises(OutputError, match=r"raw/00000\.json: cannot be written: "):
        write_json({}, tmp_path / "raw" / "00000.json")


def test_what_cannot_be_read_meanwhile_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fail_halfway(tmp_path / "a.bin", FileNotFoundError(2, "No such file", str(tmp_path / "raw.tar")))
    with pytest.raises(PermissionError):
        fail_halfway(tmp_path / "a.bin", PermissionError(13, "Permission denied", "/elsewhere/list.csv"))


def test_a_table_has_the_same_bytes_however_it_was_put_together(tmp_path: Path) -> None:
    values = [f"caption {i}" for i in range(5000)]
    whole = pa.table({"a": values})
    write_table(whole, tmp_path / "whole.parquet")
    write_table(pa.concat_tables([whole.slice(0, 7), whole.slice(7)]), tmp_path / "parts.parquet")
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "parts.parquet").read_bytes()
    assert pq.read_table(tmp_path / "whole.parquet") == whole


def test_json_has_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    write_json({"b": 1, "a": {"d": "ä", "c": None}}, tmp_path / "1.json")
    write_json({"a": {"c": None, "d": "ä"}, "b": 1}, tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert json.loads((tmp_path / "1.json").read_text()) == {"b": 1, "a": {"d": "ä", "c": None}}


HOLD = (
    "import sys; from pathlib import Path; from pairmill.shards.commit import locked\n"
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
)


def test_a_second_run_is_refused_at_once_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    command, pipe = [sys.executable, "-c", HOLD, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match="another pairmill run is working in this folder") as caught,
            locked(tmp_path),
        ):
            pass
        assert caught.value.exit_code == 1
        other.kill()
        other.wait(60)
    with locked(tmp_path):
        assert names(tmp_path) == [".lock"]


def test_the_lock_makes_the_folder_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "a" / "b"):
            pass


def test_a_file_with_the_folders_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="a file bears the output folder's name"), locked(tmp_path / "out"):
        pass
    with (
        pytest.raises(OutputError, match="cannot be written: Not a directory"),
        locked(tmp_path / "out" / "in"),
    ):
        pass


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(commit.fcntl, "flock", fail)
    with pytest.raises(OutputError, match="this file system has no locks"), locked(tmp_path):
        pass


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_each_new_folder_is_synced_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        real(descriptor)

    monkeypatch.setattr(commit.os, "fsync", note)
    write_bytes(b"x", tmp_path / "a" / "b" / "c.bin")
    assert [name for name in synced if not name.endswith(".part")] == [".", "a", "a/b"]
    synced.clear()
    write_bytes(b"x", tmp_path / "a" / "b" / "d.bin")
    assert [name for name in synced if not name.endswith(".part")] == ["a/b"]


def test_what_is_committed_is_recorded_as_it_lies_on_disk_from_any_thread(tmp_path: Path) -> None:
    with recorded() as files, ThreadPoolExecutor(1) as pool:
        pool.submit(write_bytes, b"one", tmp_path / "1.bin").result()
        write_bytes(b"first", tmp_path / "2.bin")
        write_bytes(b"again", tmp_path / "2.bin")
    write_bytes(b"three", tmp_path / "3.bin")
    assert files == {tmp_path / f"{i}.bin": file_digest(tmp_path / f"{i}.bin") for i in (1, 2)}


def test_who_writes_first_decides_and_whoever_comes_later_records_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model" / "precision.json"
    with recorded() as first:
        assert write_once(b"one", path) == b"one"
    with recorded() as second:
        assert write_once(b"two", path) == b"one"
    assert first == second == {path: file_digest(path)}
    assert names(path.parent) == ["precision.json"]
