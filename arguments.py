"""What a command line says and how it is answered: settings given with --set, terminals of any encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

# lines, bars and signs as the nearest in ASCII, one for one: tables keep their shape
PLAIN = {
    ord(sign): plain
    for plain, signs in {
        "-": "─━╸╺╴╶−–—", "|": "│┃", "+": "╭╮╰╯┏┓┗┛┌┐└┘├┤┬┴┼", "#": "█▓▒", ".": "░…", "*": "•·", "v": "✓✔",
        "x": "✗✘×", ">": "→", "<": "←", "'": "‘’", '"': "“”",
    }.items()
    for sign in signs
}  # fmt: skip


def show_any_text() -> None:
    """What a terminal cannot show (ASCII, Latin-1) is shown plainly or escaped, and never an error."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end].translate(PLAIN)
    return bad.encode("ascii", "backslashreplace").decode(), error.end


def refuse_undecodable(folder: Path) -> None:
    """Raises ConfigError for an output folder whose name is no text: Arrow could not write there."""
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(str(folder)).decode("utf-8", "backslashreplace")
        encoding = sys.getfilesystemencoding()
        raise ConfigError(f"{shown}: the folder's name is not {encoding}: choose another --out") from error


def one_set_each(arguments: Sequence[str]) -> list[str]:
    """`--set a=1 b=2 laion` as `--set a=1 --set b=2 laion`: what bears no = is no setting."""
    made: list[str] = []
    in_sets = False
    for item in arguments:
        more = in_sets and "=" in item and not item.startswith("-")
        made += ["--set", item] if more and made[-1] != "--set" else [item]
        in_sets = item == "--set" or more
    return made


def overrides_of(sets: Sequence[str], engine: str | None = None) -> dict[str, Any]:
    """Dotted keys and their values, from `--set key=value`. Raises ConfigError for what is none."""
    found: dict[str, Any] = {} if engine is None else {"run.engine": engine}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item}: expected key=value, as in --set decide.max_noise=0.1")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {item}: the value is not YAML: {error}") from error
    return found
