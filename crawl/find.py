"""Which files an input stands for: a path, a glob, `{00..99}`, a folder, any fsspec URL, chained ones too.

One rule: whatever a filesystem's own library raises becomes one line that says which input, and why.
"""

from __future__ import annotations

import glob
import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, BinaryIO

import fsspec

from ..errors import ConfigError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """What an input stands for: one file, or the files of a folder or glob by their names within it."""

    spelled: Callable[[str], str]  # a name as the user would spell it
    names: list[str]  # sorted
    named: bool  # the input is this very file


def find_files(text: str) -> Iterator[Found]:
    """The files that one input stands for. Raises ConfigError where there are none, or none can be listed."""
    text = os.path.expanduser(text)
    scheme, mark, bare = text.partition("://")
    if mark and scheme in ("file", "local") and (os.path.lexists(bare) or "::" not in bare):
        text = bare
    for one in [text] if os.path.lexists(text) else expand_braces(text):
        found = _find(one)
        if found is None:
            raise ConfigError(f"{readable(one)}: no such list, folder or glob")
        yield found


def expand_braces(text: str) -> list[str]:
    """`a{0..2}{b,c}` as the shell expands it: in order, numbers as wide as they are written."""
    pieces = _BRACES.split(text)
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        bounds = _RANGE.fullmatch(piece)
        if i % 2 == 0:
            choices.append([piece])
        elif bounds:
            first, last = bounds.groups()
            step = 1 if int(first) <= int(last) else -1
            numbers = range(int(first), int(last) + step, step)
            choices.append([str(number).zfill(len(first)) for number in numbers])
        else:
            choices.append(piece.split(",") if "," in piece else [f"{{{piece}}}"])
    return ["".join(chosen) for chosen in product(*choices)]


def _find(text: str) -> Found | None:
    if "://" not in text:
        return _find_local(text)
    before, body, behind = _links(text)

    def spelled(folder: str) -> Callable[[str], str]:
        return lambda name: f"{before}{folder}{name}{behind}"

    with _outside(text):
        fs, root = fsspec.url_to_fs(text)
        kind = _kind(fs, root)
        if kind == "file" and not (body.startswith("http") and body.endswith("/")):
            folder, name = body[: body.rfind("/") + 1], body.rpartition("/")[2]
            return Found(spelled(folder), [name], named=True)
        if kind is not None:
            paths, top, folder = fs.find(root), root, body if body.endswith("/") else f"{body}/"
        elif glob.has_magic(body):
            found: Any = fs.glob(root, detail=True)
            paths = [path for path, info in found.items() if info["type"] == "file"]
            paths += [
                path for path, info in found.items() if info["type"] != "file" for path in fs.find(path)
            ]
            top, folder = _before_magic(root), _before_magic(body)
        else:
            return None
        if not paths and glob.has_magic(body) and kind is None:
            return None
        names = {path.removeprefix(top).lstrip("/") for path in paths}
        return Found(spelled(folder), sorted(names), named=False)


def _kind(fs: Any, root: str) -> str | None:
    """file, directory, or None where there is neither. Raises what keeps one from knowing."""
    try:
        return fs.info(root)["type"]
    except FileNotFoundError as error:
        cause = error.__cause__  # over HTTP whatever went wrong is "not found"
        if type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", None) not in (404, 410):
            raise OSError(str(cause)) from error
        return None


def _links(text: str) -> tuple[str, str, str]:
    """What stands before and behind the link of a chained URL that holds the path."""
    links = text.split("::")
    at = next(i for i, link in enumerate(links) if "://" in link)
    return "".join(f"{link}::" for link in links[:at]), links[at], "".join(f"::{x}" for x in links[at + 1 :])


def _before_magic(path: str) -> str:
    first = min(path.find(sign) for sign in "*?[" if sign in path)
    return path[: path.rfind("/", 0, first) + 1]


def _find_local(text: str) -> Found | None:
    if os.path.isdir(text):
        folder = text.rstrip("/") + "/"
        return Found(folder.__add__, sorted(_walk(folder)), named=False)
    if os.path.lexists(text):
        return Found((text[: text.rfind("/") + 1]).__add__, [text.rpartition("/")[2]], named=True)
    pattern = _escape_existing(text)
    if not glob.has_magic(text):
        return None
    folder = _literal_folder(text)
    names: set[str] = set()
    for path in glob.iglob(pattern, recursive=True):
        name = path.removeprefix(folder)
        names |= {os.path.join(name, inner) for inner in _walk(path)} if os.path.isdir(path) else {name}
    return Found(folder.__add__, sorted(names), named=False) if names else None


def _literal_folder(text: str) -> str:
    """The folder that a glob begins with: as far as its components are there as they are spelled."""
    parts = text.split("/")
    for at in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:at]) + "/"
        if os.path.isdir(folder) or not glob.has_magic(folder):
            return folder
    return ""


def _escape_existing(text: str) -> str:
    folder = _literal_folder(text)
    return glob.escape(folder) + text[len(folder) :]


def _walk(top: str) -> Iterator[str]:
    """The files under a folder, links followed once, by their names within it."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.relpath(os.path.join(folder, name), top) for name in files)


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """The bytes of a local file or fsspec URL, as they are. Raises OSError, whatever the filesystem is."""
    if "://" not in path:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
            raise OSError(f"{readable(path)} is no regular file")
        with open(path, "rb") as file:
            yield file
        return
    with _foreign_as_os_error(), fsspec.open(path, "rb") as remote:
        yield from _seekable(remote)


def _seekable(remote: Any) -> Iterator[BinaryIO]:
    """The remote file, or a copy of it on disk where its server gives no ranges."""
    try:
        remote.seek(0, os.SEEK_END)
        remote.seek(0)
    except (ValueError, OSError, io.UnsupportedOperation):
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(remote, copy, 2**20)
            copy.seek(0)
            yield copy
    else:
        yield remote


@contextmanager
def _foreign_as_os_error() -> Iterator[None]:
    """Errors of a filesystem's own library (httpx, botocore, aiohttp) as OSError; others as they are."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("builtins", "pairmill", "pyarrow"):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _outside(text: str) -> Iterator[None]:
    try:
        with _foreign_as_os_error():
            yield
    except ConfigError:
        raise
    except (OSError, ImportError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{readable(text)}: cannot be listed: {said}") from error


def readable(text: str) -> str:
    """A path as text: the bytes of a name that is not UTF-8 are shown as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
