"""kill -9 of the whole process tree at random moments: the same command then ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import digests, finish, kill_tree, start

KILLS = {"here": 25, "ray": 25}


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
    chance = random.Random(engine)
    folder = tmp_path / "undisturbed"
    seconds = max(seconds, finish(folder, engine))
    assert digests(folder) == expected
    kills = 0
    while kills < KILLS[engine]:
        out = tmp_path / "killed"
        running = start(out, engine)
        moment = chance.uniform(0, seconds)
        try:
            running.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            kill_tree(running)
            kills += 1
        finish(out, engine)
        sys.stderr.write(f"{engine}: kill {kills} after {moment:.2f} s\n")  # an hour passes: -s shows it
        assert digests(out) == expected
        shutil.rmtree(out)
