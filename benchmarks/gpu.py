"""What a GPU does, in one command and nine minutes: every part writes its JSON as it ends.

    [PAIRMILL_DATA=folder] python benchmarks/gpu.py [--out DIR] [--wheels DIR] [--parts loader,step] [--cpu]

For a bare machine: torch, timm, pyarrow, cv2, xxhash are enough, with open_clip_torch, simplejpeg, ftfy,
tokenizers, pydantic, pyyaml, safetensors and webdataset, which `--wheels` installs from a folder, offline.
Neither ray nor duckdb nor faiss is needed, nor that pairmill is installed. Results go to `--out`, else
$OUT, else ./gpu-results. Each part runs in a process of its own with a deadline; one that fails or is late is
recorded with what it had found by then, and the next one runs. `--cpu` tries all of it on tiny sizes.
Exits with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deadlines import record, watched  # pyright: ignore[reportImplicitRelativeImport]

HERE = Path(__file__).resolve().parent
TOTAL_S = 530.0  # nine minutes, and some seconds left to bring the results home
# seconds that each part may take, in the order of running: what the others need, then what matters most
DEADLINES = {
    "shards": 60,
    "ceilings": 40,
    "step": 110,
    "fed": 90,
    "open_clip": 90,
    "loader": 80,
    "scoring": 60,
    "trace": 50,
    "resume": 50,
}


def main() -> None:
    """Run the parts, print one JSON line of what became of each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-results"))
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first, offline")
    parser.add_argument("--parts", default=",".join(DEADLINES), help="names of parts, by commas")
    parser.add_argument("--cpu", action="store_true", help="a trial on tiny sizes, without a GPU")
    given = parser.parse_args()
    parts = given.parts.split(",")
    unknown = sorted(set(parts) - set(DEADLINES))
    if unknown:
        sys.exit(f"--parts: there is no {unknown[0]!r}; expected some of {', '.join(DEADLINES)}")
    if given.wheels is not None:
        install(given.wheels)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        ended = run_parts(parts, Path(work), given.out.resolve(), cpu=given.cpu)
    print(json.dumps(ended))
    if any(what != "done" for what in ended.values()):
        sys.exit(1)


def install(wheels: Path) -> None:
    """Install the wheels of a folder, and nothing from elsewhere; a machine that has them changes nothing."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        sys.exit(f"--wheels {wheels}: no .whl file there")
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", *files], check=True)


def run_parts(parts: list[str], work: Path, out: Path, *, cpu: bool) -> dict[str, str]:
    """Each part in its own process; what became of each: done, failed, late or left out."""
    environment = dict(os.environ, PYTHONPATH=python_path(work))
    if cpu:
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    end, ended = time.monotonic() + TOTAL_S, {}
    for part in dict.fromkeys(["shards", *parts]):  # all others read them
        seconds = min(float(DEADLINES[part]), end - time.monotonic())
        path = out / f"{part}.json"
        path.unlink(missing_ok=True)
        if seconds <= 1:
            ended[part] = record(path, "left out", "no time was left")
            continue
        command = [sys.executable, str(HERE / "gpu_parts.py"), part, str(work), str(path)]
        begun = time.monotonic()
        status, said = watched([*command, "--cpu"] if cpu else command, environment, seconds)
        ended[part] = record(path, status, said, seconds=round(time.monotonic() - begun, 1))
        print(f"{part}: {ended[part]}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return ended


def python_path(work: Path) -> str:
    """A path on which `pairmill` is this checkout, whether it is installed or not."""
    packages = work / "packages"
    packages.mkdir()
    (packages / "pairmill").symlink_to(HERE.parent, target_is_directory=True)
    return os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))


if __name__ == "__main__":
    main()
