"""The commands as a shell sees them: exit codes, one line for each expected failure, help that fits."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pairmill.commands import start
from pairmill.recipe import shipped


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """`start` answers SIGTERM itself; the tests get their own answer back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def write_recipe(folder: Path, text: str = "") -> str:
    (folder / "mine.yaml").write_text(f"name: mine\n{text}")
    return str(folder / "mine.yaml")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["decide", "--max-noise", "2"], "max_noise: Input should be less than or equal to 1 (found '2')"),
        (["train", "--training.lr", "x"], "training.lr: Input should be a valid number, unable to parse"),
        (["decide", "--max-nois", "1"], "Unknown option: --max-nois. Did you mean --max-noise?"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(
    flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start([flags[0], str(tmp_path), *flags[1:]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {expected}".rstrip())
    assert said.err.count("\n") == 1


def test_the_recipes_fit_eighty_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert start(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == sorted(shipped())
    column = max(map(len, names)) + 2
    assert all(line.startswith(" " * column) for line in lines if line.startswith(" "))


def test_help_shows_what_stands_in_angle_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert start(["decide", "--help"]) == 0
    assert "selection/<name>.parquet" in capsys.readouterr().out


def test_a_run_that_stops_shows_its_funnel_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nftp://a.com/1,one\n,two\n")
    out = str(tmp_path / "out")
    flags = ["--input", str(tmp_path / "list.csv"), "--out", out, "--engine", "here"]
    assert start(["run", write_recipe(tmp_path), *flags]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["funnel"]["rows"] == 2
    assert "url_scheme" in said.err
    assert said.err.splitlines()[-1].startswith("error: stage dedup: no pair is left for it")


def test_training_that_is_asked_for_runs_though_the_recipe_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("train: {enabled: false}\n")
    assert start(["train", str(tmp_path), "--engine", "here"]) == 1  # for there is nothing to train on
    assert "error: stage train: " in capsys.readouterr().err


ENGINES = ["here", pytest.param("ray", marks=pytest.mark.ray)]

# a shell's background jobs, and all that they start, are deaf to Ctrl-C
HEARING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pairmill.cli import main
main()
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_run_with_one_line_and_its_exit_code(
    number: signal.Signals, code: int, engine: str, tmp_path: Path
) -> None:
    """The one request of the run is taken and never answered; it is then that the signal comes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        (tmp_path / "list.csv").write_text("url,caption\nhttp://a.test/1.jpg,one\n")
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        recipe = write_recipe(tmp_path, f'run: {{cpus: 1, resolve: {{"a.test:80": "{place}"}}}}\n')
        command = ["run", recipe, "--input", str(tmp_path / "list.csv"), "--out", str(tmp_path / "out")]
        with subprocess.Popen(
            [sys.executable, "-c", HEARING, *command, "--engine", engine],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            taken, _ = silent.accept()
            process.send_signal(number)
            out, said = process.communicate(timeout=60)
            taken.close()
    assert (process.returncode, out) == (code, "")
    assert said.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in said
    assert "SIGTERM received" not in said
