"""kill -9 of the whole process tree at random moments: the same command then ends with the same bytes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from s3 import BUCKET
from s3_server import s3_process
from whole_runs import digests, finish, kill_tree, start

from pairmill.shards.files import remove_folder
from pairmill.shards.store_path import open_path

KILLS = {"here": 25, "ray": 25}
KILLS_ON_S3 = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Digests of an undisturbed run in this process, and its seconds."""
    out = tmp_path_factory.mktemp("whole") / "out"
    seconds = finish(out, "here")
    return digests(out), seconds


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("engine", ["here", "ray"])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(
    whole: tuple[dict[str, str], float], tmp_path: Path, engine: str
) -> None:
    expected, seconds = whole
    folder = tmp_path / "undisturbed"
    seconds = max(seconds, finish(folder, engine))
    assert digests(folder) == expected
    kill_at_random(tmp_path / "killed", engine, KILLS[engine], seconds, expected)


@pytest.mark.slow
def test_a_run_into_a_store_that_is_killed_anywhere_ends_with_the_bytes_of_a_local_one(
    whole: tuple[dict[str, str], float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected, seconds = whole
    with s3_process() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        kill_at_random(open_path(f"s3://{BUCKET}/killed"), "here", KILLS_ON_S3, seconds, expected)


def kill_at_random(out: Path, engine: str, kills: int, seconds: float, expected: dict[str, str]) -> None:
    """Kill a run at a moment of its `seconds`, let the same command end, compare, and begin anew."""
    chance, done = random.Random(engine), 0
    while done < kills:
        running = start(out, engine)
        moment = chance.uniform(0, seconds)
        try:
            running.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            kill_tree(running)
            done += 1
        finish(out, engine)
        sys.stderr.write(f"{engine}: kill {done} after {moment:.2f} s\n")  # an hour passes: -s shows it
        assert digests(out) == expected
        remove_folder(out)
