"""Flags that take several values, and answers to terminals of any encoding."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pairmill.arguments import one_set_each
from pairmill.commands import STAGE_COMMANDS, app, start
from pairmill.recipe import Decide, Fetch, Settings

PICKS = {int: ["80", "90"], str: ["one", "two"]}


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def list_flags(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Every setting of a stage that is a list of plain values, dotted, with two values for it."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield from list_flags(kind, f"{prefix}{name}.")
        for item, values in PICKS.items():
            if f"tuple[{item.__name__}, ...]" in str(kind):
                yield prefix + name, values


FLAGS = [
    (command, flag, values)
    for command, model in {
        **{name: model for name, (model, _) in STAGE_COMMANDS.items()},
        "fetch": Fetch,
        "decide": Decide,
    }.items()
    for flag, values in list_flags(model)
]


def test_the_flags_with_several_values_are_these() -> None:
    assert {(command, flag) for command, flag, _ in FLAGS} == {
        *(("ingest", name) for name in ("input", "against", "carry", "ports")),
        *(("fetch", name) for name in ("opt_outs", "allow_hosts")),
        *((name, "rules.sets") for name in ("language", "bootstrap", "decide")),
        ("language", "among"),
        *(("decontaminate", name) for name in ("against", "blocklist")),
        ("evaluate", "sets"),
    }


@pytest.mark.parametrize(("command", "flag", "values"), FLAGS)
@pytest.mark.parametrize("again", [False, True])
def test_a_list_is_given_at_once_or_one_by_one(
    command: str, flag: str, values: list[str], again: bool
) -> None:
    option = f"--{flag.replace('_', '-')}"
    tokens = [option, values[0], option, values[1]] if again else [option, *values]
    _, bound, _ = app.parse_args([command, "out", *tokens, "--engine", "here"], exit_on_error=False)
    found: Any = bound.arguments["flags"]
    for part in flag.split("."):
        found = getattr(found, part)
    assert [str(item) for item in found] == values
    assert bound.arguments["engine"] == "here"


@pytest.mark.parametrize("command", ["run", *STAGE_COMMANDS, "fetch", "demo"])
def test_several_settings_follow_one_set(command: str) -> None:
    name = [] if command == "demo" else ["name"]
    for tokens in (["--set", "a=1", "b=2", *name], [*name, "--set", "a=1", "--set", "b=2"]):
        _, bound, _ = app.parse_args(one_set_each([command, *tokens]), exit_on_error=False)
        assert bound.arguments["set"] == ("a=1", "b=2")


def test_inputs_of_a_run_follow_one_flag() -> None:
    _, bound, _ = app.parse_args(["run", "laion", "--input", "a", "b", "--out", "x"], exit_on_error=False)
    assert bound.arguments["input"] == ("a", "b")


def test_a_folder_behind_a_list_is_told_where_it_belongs(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["decide", "--rules.sets", "copies", "out"]) == 2
    said = capsys.readouterr().err
    assert "--folder requires an argument. It stands before flags that take several values." in said


def test_lists_that_a_glob_became_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    for path in paths:
        Path(path).write_text("url,caption\nhttp://a.com/1.jpg,one\n")
    assert start(["ingest", str(tmp_path / "out"), "--input", *paths, "--engine", "here"]) == 0
    assert '"counts": {"pair": 2}' in capsys.readouterr().out


def said_in(encoding: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command says on both streams of a terminal that knows this encoding alone."""
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding, write_through=True))
    assert start(arguments) in (0, 2)
    sys.stdout.flush()
    return written.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_text_is_shown_on_any_terminal(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "日本.csv").write_text(
        "url,caption\nhttp://a.com/1.jpg,日本 “one” …\nftp://a.com,x\n", "utf-8"
    )
    out = str(tmp_path / "out")
    said = said_in(encoding, ["ingest", out, "--input", str(tmp_path), "--engine", "here"], monkeypatch)
    assert "url_scheme" in said
    assert "####" in said
    story = said_in(encoding, ["explain", out, "http://a.com/1.jpg"], monkeypatch)
    assert "\\u65e5\\u672c" in story
    for arguments in (["recipes"], ["decide", "--help"], ["explain", out, "日本"], ["run", "日本"]):
        assert said_in(encoding, arguments, monkeypatch)


def test_an_output_folder_whose_name_is_no_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://a.com/1.jpg,one\n")
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert start(["ingest", folder, "--input", str(tmp_path / "a.csv"), "--engine", "here"]) == 2
    said = capsys.readouterr().err
    assert "\\xff: the folder's name is not utf-8: choose another --out" in said
    assert said.count("\n") == 1
    assert not Path(folder).exists()
