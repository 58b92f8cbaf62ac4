"""What every benchmark needs: where the real data is, what the machine is, how much memory is in use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import threading
from pathlib import Path
from typing import Any


def data_folder(needed: str) -> Path:
    """The folder in PAIRMILL_DATA, which must hold `needed`; without it the benchmark says so and ends."""
    folder = Path(os.environ.get("PAIRMILL_DATA", ""))
    if not os.environ.get("PAIRMILL_DATA") or not (folder / needed).exists():
        print(f"skipped: set PAIRMILL_DATA to a folder that holds {needed}/")
        sys.exit(0)
    return folder


def machine() -> dict[str, Any]:
    """Processor, cores and versions, for a result line."""
    names = ("pairmill", "torch", "duckdb", "pyarrow", "ray", "faiss-cpu", "open_clip_torch")
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "versions": {name: version for name in names if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def folder_mb(folder: Path) -> float:
    """Bytes of all files below a folder, in millions."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 2)


def process_memory_mb() -> list[float]:
    """Resident memory of this process and of each of its children, shared pages counted in each."""
    import psutil

    own = psutil.Process()
    found = []
    for process in [own, *own.children(recursive=True)]:
        try:
            found.append(process.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return found


class PeakMemory(threading.Thread):
    """Watches the resident memory of this process and its children: `peak` of all, `largest` of one, MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.largest, self._ended = 0.0, 0.0, threading.Event()

    def run(self) -> None:
        """Sample twice a second until stopped."""
        while not self._ended.wait(0.5):
            sizes = process_memory_mb()
            self.peak, self.largest = max(self.peak, sum(sizes)), max(self.largest, *sizes)

    def stop(self) -> float:
        """End the watch. Returns the peak."""
        self._ended.set()
        self.join()
        return self.peak
