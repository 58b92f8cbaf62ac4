"""What is seen of a run: a line of JSON every some seconds, and where asked for TensorBoard and a profile.

`_log/train/<name>.jsonl` has the lines of all sessions of a run; where one goes on from a checkpoint, later
lines of the one before are dropped, as its steps are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..recipe import Training
from ..shards.commit import committed, write_bytes

WRITE_EVERY_S = 5.0  # at most, for the file is written whole
BEFORE_PROFILE = 10  # steps that warm caches and compile


class RunLog:
    """The lines of one run."""

    def __init__(self, folder: Path, name: str, training: Training, *, since: int = 0) -> None:
        """since: steps that are done. Raises ConfigError where TensorBoard is asked for and not installed."""
        self.path, self.watch = folder / f"{name}.jsonl", training.watch
        self.lines = [line for line in _lines(self.path) if line["step"] <= since]
        self.noted = self.written = time.perf_counter()
        self._board = _open_board(folder / f"{name}.board", since) if self.watch.tensorboard else None
        self._trace = folder / f"{name}.trace.json"

    @property
    def due(self) -> bool:
        """Whether it is time for a line."""
        return time.perf_counter() - self.noted >= self.watch.log_every_s

    def note(self, step: int, values: dict[str, Any], group: str = "train") -> None:
        """Keep what was seen after `step` steps; numbers also for TensorBoard, below `group`."""
        self.noted = time.perf_counter()
        self.lines.append({"step": step, **values})
        if self._board is not None:
            for name, value in _numbers(values):
                self._board.add_scalar(f"{group}/{name}", value, step)
        if self.noted - self.written >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        self.written = time.perf_counter()
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.lines)
        write_bytes(text.encode(), self.path)

    def close(self) -> None:
        """The same, and let TensorBoard's file end."""
        self.write()
        if self._board is not None:
            self._board.close()

    @contextmanager
    def profiled(self) -> Iterator[Callable[[], None]]:
        """Yield what is to be called after each step: some of them are recorded where that is asked for."""
        if not self.watch.profile_steps:
            yield lambda: None
            return
        from torch.profiler import profile, schedule

        plan = schedule(wait=BEFORE_PROFILE, warmup=1, active=self.watch.profile_steps, repeat=1)
        with profile(schedule=plan, on_trace_ready=self._write_trace) as recorder:
            yield recorder.step

    def _write_trace(self, recorder: Any) -> None:
        with committed(self._trace) as temporary:
            recorder.export_chrome_trace(str(temporary))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none of one that is not there or was cut."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _open_board(folder: Path, since: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"training.watch.tensorboard: {error}: install it with `pip install tensorboard`, or leave it"
            " out: the same numbers are in the .jsonl"
        ) from error
    return SummaryWriter(str(folder), purge_step=since)


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


class Pace:
    """Rates since they were last asked for."""

    def __init__(self, step: int) -> None:
        """step: how many are done."""
        self.at, self.step, self.waited = time.perf_counter(), step, 0.0

    def since(self, step: int, batch: int, waited: float) -> dict[str, float]:
        """Samples per second, and the share of the time that was spent waiting for data.

        waited: seconds, from the start on. Call it when the device has done all it was given.
        """
        now = time.perf_counter()
        seconds = max(now - self.at, 1e-9)
        found = {
            "samples_per_s": round((step - self.step) * batch / seconds, 1),
            "waiting": round(min(1.0, (waited - self.waited) / seconds), 4),
        }
        self.at, self.step, self.waited = now, step, waited
        return found

    def skip(self, seconds: float) -> None:
        """Leave out time that no step took."""
        self.at += seconds
