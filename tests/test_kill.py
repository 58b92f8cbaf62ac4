"""kill -9 of the whole process tree at random moments: the same command then ends with the same bytes."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DATA = ("pairs", "raw", "scores", "selection", "shards", "model")
SMALL = (
    "bootstrap.training.samples_seen=1500",
    "train.training.samples_seen=1000",
    "decide.max_noise=1",  # so few steps teach no scorer, and by its scores nothing would be kept
    "decide.rules.sets=[near_copies]",
    "fetch.urls_per_shard=100",
    "fetch.deadline_s=1.5",
    "fetch.retries=1",
    "write.samples_per_shard=50",
    "bootstrap.training.checkpoint_every_s=0.2",
    "train.training.checkpoint_every_s=0.2",
)
KILLS = {"here": 25, "ray": 25}


def command(out: Path, engine: str) -> list[str]:
    sets = [part for item in SMALL for part in ("--set", item)]
    run = ["from pairmill.cli import main; main()", "demo", "--out", str(out), "--pictures", "300"]
    return [sys.executable, "-c", *run, "--engine", engine, *sets]


def start(out: Path, engine: str) -> subprocess.Popen[bytes]:
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command(out, engine), stdout=log, stderr=log, start_new_session=True)


def finish(out: Path, engine: str) -> float:
    """Run to the end. Its bars may be missed at this size (exit 1); not ended or refused is a failure."""
    begun = time.perf_counter()
    code = start(out, engine).wait(timeout=900)
    log = out.with_suffix(".log")
    said = log.read_text()
    assert code in (0, 1), said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    assert (out / "report" / "truth.json").exists(), said[-3000:]
    return time.perf_counter() - begun


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    try:
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for victim in tree:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(tree, timeout=10)


def digests(out: Path) -> dict[str, str]:
    files = sorted(path for name in DATA for path in (out / name).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
