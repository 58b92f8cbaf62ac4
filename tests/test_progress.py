"""Progress is told on stderr, and stdout stays clean."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pairmill import progress
from pairmill.progress import Bars, Lines, make_progress
from pairmill.runner import Progress, Tally, TaskReport


@pytest.mark.parametrize("make", [Lines, Bars])
def test_a_stage_is_told_on_stderr_alone(
    make: Callable[[], Progress], capfd: pytest.CaptureFixture[str]
) -> None:
    told = make()
    told.begin("fetch", total=4, done=1, unit="pictures")
    told.live("02", {"done": 5, "total": 10, "note": "half"})
    told.report(TaskReport("01", "done", Tally({"ok": 1000})))
    told.report(TaskReport("02", "failed", error="gone"))
    told.report(TaskReport("03", "done", Tally({"ok": 500})))
    told.end()
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"fetch.*4/4 .*pictures/s.*1 failed", err.replace("\n", " "))


def test_a_line_comes_when_it_is_due(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)
    told = Lines()
    told.begin("embed", total=4, done=0, unit="pairs")
    told.live("00", {"done": 5, "total": 10, "note": "on 2 threads"})
    told.report(TaskReport("00", "done", Tally({"ok": 10})))
    lines = capfd.readouterr().err.splitlines()
    assert re.match(r"embed +12 %  0/4  on 2 threads", lines[0])
    assert re.match(r"embed +25 %  1/4 ", lines[1])


def test_nothing_is_told_between_stages() -> None:
    for told in (Lines(), Bars()):
        told.live("00", {"done": 1, "total": 2})
        told.report(TaskReport("00", "done"))
        told.end()


def test_without_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_progress(), Lines)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert isinstance(make_progress(), Bars)
