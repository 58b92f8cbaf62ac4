"""Whole runs of the small demo as processes: start one, kill it, compare what it left."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pairmill.shards.store_path import StorePath

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


def command(out: Path, engine: str, *further: str) -> list[str]:
    sets = [part for item in (*SMALL, *further) for part in ("--set", item)]
    run = ["from pairmill.cli import main; main()", "demo", "--out", str(out), "--pictures", "300"]
    return [sys.executable, "-c", *run, "--engine", engine, *sets]


def start(out: Path, engine: str, *further: str) -> subprocess.Popen[bytes]:
    """The demo in a process group of its own; further: settings, as for --set."""
    with open(log_of(out), "ab") as log:
        return subprocess.Popen(
            command(out, engine, *further),
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=log_of(out).parent,
        )


def log_of(out: Path) -> Path:
    """Where the runs of a folder talk; of one in a store, in the working folder of this process."""
    return Path.cwd() / f"{out.name}.log" if isinstance(out, StorePath) else out.with_suffix(".log")


def finish(out: Path, engine: str, *further: str) -> float:
    """Run to the end. Its bars may be missed at this size (exit 1); not ended or refused is a failure."""
    begun = time.perf_counter()
    wait(start(out, engine, *further), out)
    return time.perf_counter() - begun


def wait(process: subprocess.Popen[bytes], out: Path) -> None:
    """As `finish`, of a run that was started."""
    code = process.wait(timeout=900)
    said = log_of(out).read_text()
    assert code in (0, 1), said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    assert (out / "report" / "truth.json").exists(), said[-3000:]


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
