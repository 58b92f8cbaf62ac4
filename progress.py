"""Progress on stderr: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from .runner import TaskReport

LINE_EVERY_S = 5.0


class Quiet:
    """Shows nothing: for tests and for use as a library."""

    def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
        """Ignored."""

    def report(self, report: TaskReport) -> None:
        """Ignored."""

    def live(self, task: str, beat: Mapping[str, Any]) -> None:
        """Ignored."""

    def say(self, line: str) -> None:
        """Ignored."""

    def end(self) -> None:
        """Ignored."""


class _Count:
    """What a stage has done so far, with its rate and the time left."""

    def __init__(self, stage: str, total: int, done: int, unit: str) -> None:
        self.stage, self.total, self.done, self.unit = stage, total, done, unit
        self.skipped, self.rows, self.failed = done, 0, 0
        self.begun = time.perf_counter()
        self.parts: dict[str, float] = {}
        self.note = ""

    def take(self, report: TaskReport) -> None:
        self.done += 1
        self.parts.pop(report.task, None)
        self.rows += report.tally.seen
        self.failed += report.status != "done"

    def hear(self, task: str, beat: Mapping[str, Any]) -> None:
        self.parts[task] = min(1.0, beat["done"] / max(beat["total"], 1e-9))
        self.note = str(beat.get("note", ""))

    @property
    def position(self) -> float:
        return min(self.done + sum(self.parts.values()), self.total)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @property
    def left_s(self) -> float | None:
        gone = self.position - self.skipped
        return None if gone <= 0 else self.seconds / gone * (self.total - self.position)

    def words(self) -> str:
        rate = f"  {self.rows / max(self.seconds, 1e-9):,.0f} {self.unit}/s" if self.rows else ""
        left = f"  {self.left_s:,.0f} s left" if self.left_s and self.done < self.total else ""
        bad = f"  {self.failed} failed" if self.failed else ""
        note = f"  {self.note}" if self.note and self.done < self.total else ""
        return f"{self.done}/{self.total}{rate}{note}{left}{bad}"


class Lines:
    """One plain line at most every five seconds, and one at each stage's end."""

    def __init__(self) -> None:
        self._count: _Count | None = None
        self._last = 0.0

    def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
        """Start a stage of `total` tasks, of which `done` were finished by an earlier run."""
        self._count = _Count(stage, total, done, unit)
        self._last = time.perf_counter()

    def report(self, report: TaskReport) -> None:
        """Count one ended task."""
        if self._count is not None:
            self._count.take(report)
            self._say()

    def live(self, task: str, beat: Mapping[str, Any]) -> None:
        """Note how far a running task is."""
        if self._count is not None:
            self._count.hear(task, beat)
            self._say()

    def say(self, line: str) -> None:
        """A line of its own, between two stages."""
        print(line, file=sys.stderr, flush=True)

    def _say(self, *, always: bool = False) -> None:
        count = self._count
        if count is None or not (always or time.perf_counter() - self._last > LINE_EVERY_S):
            return
        self._last = time.perf_counter()
        share = 100 * count.position / max(count.total, 1)
        print(f"{count.stage:<10} {share:3.0f} %  {count.words()}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Close the stage with its last line."""
        count = self._count
        if count is not None:
            skipped = f"  ({count.skipped} done before)" if count.skipped else ""
            print(
                f"{count.stage:<10} done  {count.words()}  in {count.seconds:.1f} s{skipped}",
                file=sys.stderr,
                flush=True,
            )
        self._count = None


class Bars:
    """A live bar for each stage."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
        )
        self._count: _Count | None = None
        self._bar: Any = None

    def begin(self, stage: str, *, total: int, done: int, unit: str) -> None:
        """Open a bar of `total` tasks, of which `done` were finished by an earlier run."""
        self._count = _Count(stage, total, done, unit)
        self._bars.start()
        self._bar = self._bars.add_task(stage, total=total, completed=done, words="")

    def report(self, report: TaskReport) -> None:
        """Count one ended task."""
        if self._count is not None:
            self._count.take(report)
            self._draw()

    def live(self, task: str, beat: Mapping[str, Any]) -> None:
        """Note how far a running task is."""
        if self._count is not None:
            self._count.hear(task, beat)
            self._draw()

    def say(self, line: str) -> None:
        """A line of its own, between two stages."""
        print(line, file=sys.stderr, flush=True)

    def _draw(self) -> None:
        assert self._count is not None
        self._bars.update(self._bar, completed=self._count.position, words=self._count.words())

    def end(self) -> None:
        """Leave the bar as it is and go on below it."""
        if self._count is not None:
            self._draw()
            self._bars.stop_task(self._bar)
        self._bars.stop()
        self._count = None


def note(line: str) -> None:
    """Say something that is no error and that nobody should miss."""
    print(line, file=sys.stderr, flush=True)


def make_progress() -> Lines | Bars:
    """Bars where stderr is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()
