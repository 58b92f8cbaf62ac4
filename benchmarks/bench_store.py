"""The demo into a local folder and into an object store on loopback: the same bytes, and the ratio of times.

python benchmarks/bench_store.py [--pictures 1500] [--engine ray] [--quick] [--set KEY=VALUE]
    [--refused .05] [--cut .01]

The server (moto, Python) is a process of its own on the same cores, so its time is in the ratio too:
`server_cpu_s` says how much. `ratio` is wall clock, `cpu_ratio` that of the two runs' own CPU seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import machine  # pyright: ignore[reportImplicitRelativeImport]
from s3_server import s3_process  # pyright: ignore[reportMissingImports]
from whole_runs import SMALL  # pyright: ignore[reportMissingImports]

from pairmill.demo.run import SEED, ready_web
from pairmill.shards.layout import DATA
from pairmill.shards.store_path import open_path

OUT = "s3://bucket/demo/out"


def main() -> None:
    """Run both, compare, print one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--engine", default="ray")
    parser.add_argument("--set", action="append", default=[], help="a setting, as in --set fetch.retries=1")
    parser.add_argument("--quick", action="store_true", help="the settings of the tests of whole runs")
    parser.add_argument("--refused", default="0")
    parser.add_argument("--cut", default="0")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        ready_web(folder / "demo-web", asked.pictures, SEED)
        shutil.copytree(folder / "demo-web", folder / "out" / "web")
        local = demo(folder, str(folder / "out"), asked)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with s3_process("--refused", asked.refused, "--cut", asked.cut) as environment:
            remote = demo(folder, OUT, asked, environment)
            with mock.patch.dict(os.environ, environment):
                there = digests(OUT)
        here = digests(str(folder / "out"))
        server = cpu_s(before) - remote["cpu_s"]
    differ = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    assert here, "no data"
    assert not differ, f"{len(differ)} of {len(here)} files differ: {differ[:5]}"
    line = {"what": "store", "pictures": asked.pictures, "engine": asked.engine, "files": len(here)}
    line |= {"refused": float(asked.refused), "cut": float(asked.cut)}
    line |= {"local": local, "s3": remote, "server_cpu_s": round(server, 1)}
    line |= {"ratio": round(remote["seconds"] / local["seconds"], 3)}
    line |= {"cpu_ratio": round(remote["cpu_s"] / local["cpu_s"], 3)}
    print(json.dumps(line | machine()))


def demo(folder: Path, out: str, asked: argparse.Namespace, environment: dict[str, str] | None = None) -> Any:
    """Seconds of a demo whose own process starts in `folder`."""
    command = ["from pairmill.cli import main; main()", "demo", "--out", out, "--engine", asked.engine]
    command += ["--pictures", str(asked.pictures)]
    settings = [*(SMALL if asked.quick else ()), *asked.set]
    command += [part for item in settings for part in ("--set", item)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", *command],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]  # 1: a bar is missed at this size
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return {"seconds": round(time.perf_counter() - begun, 1), "cpu_s": round(cpu_s(before), 1)}


def cpu_s(before: resource.struct_rusage) -> float:
    """CPU seconds of processes that ended since."""
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime


def digests(place: str) -> dict[str, str]:
    """sha256 of every file of data, by name."""
    out = open_path(place)
    files = (path for name in DATA for path in sorted((out / name).rglob("*")) if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
