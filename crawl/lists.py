"""Which files a recipe's inputs are: paths, globs, folders, fsspec URLs; looked at before any work starts."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import fsspec
import pyarrow as pa

from ..errors import ConfigError, DataError
from ..recipe import Ingest
from .columns import EmptyListError
from .img2dataset import describe_tar, read_tar
from .readers import CODECS, KINDS, describe, read_list, suffixes

TAR = ".tar"
KNOWN = ", ".join(KINDS) + f" (each also {' or '.join(CODECS)}), {TAR}"
READ_ERRORS = (OSError, EOFError, pa.ArrowException, ValueError)


@dataclass(frozen=True, slots=True)
class ListFile:
    """One input file."""

    path: str  # as the user spelled its folder: to be opened
    source: str  # its name within what the user gave: the same on every machine
    named: bool  # the user gave this very file, rather than a folder or glob
    size: int = 0  # bytes


def list_inputs(settings: Ingest) -> list[ListFile]:
    """The lists of a recipe, in the order given, those of a folder or glob sorted; their headers are read.

    Raises ConfigError for what can be known beforehand: nothing found, a list that cannot be read or has no
    URL column. Of a folder or glob an unusable list is left to its task, which fails alone, as long as
    another is usable. An empty list is no error beside others.
    """
    if not settings.input:
        raise ConfigError("ingest.input is empty: give at least one list, folder or glob (--input PATH)")
    found = list({file.path: file for text in settings.input for file in _expand(text)}.values())
    with ThreadPoolExecutor(16) as pool:
        looked = list(pool.map(lambda file: _look(file, settings), found))
    problems = [problem for problem in looked if isinstance(problem, ConfigError)]
    for file, problem in zip(found, looked, strict=True):
        if isinstance(problem, ConfigError) and (file.named or len(problems) == len(found)):
            raise problem
    sized = [
        file if isinstance(size, ConfigError) else replace(file, size=size)
        for file, size in zip(found, looked, strict=True)
    ]
    return _distinct(sized)


def read_input(path: str, settings: Ingest, *, source: str) -> Iterator[tuple[pa.RecordBatch, float]]:
    """ROWS batches of one input with the share of its bytes read so far, at most 1.

    Raises DataError naming the list and the row where it breaks off; an empty list has no batches.
    """
    row = 0
    try:
        with open_input(path) as file:
            size = max(file.seek(0, os.SEEK_END), 1)
            batches = read_tar(Path(path), settings) if is_tar(path) else read_list(file, path, settings)
            for batch in batches:
                yield batch, min(1.0, file.tell() / size)
                row += len(batch)
    except EmptyListError:
        return
    except DataError as error:
        raise DataError(f"{source}, after row {row}: {error}") from error
    except READ_ERRORS as error:
        raise DataError(
            f"{source}, after row {row}: the list breaks off ({error}): fetch {path} again or leave it out"
        ) from error


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """The bytes of a local file or fsspec URL, as they are."""
    if "://" not in path:
        with open(path, "rb") as file:
            yield file
    else:
        with fsspec.open(path, "rb") as remote:
            yield remote  # pyright: ignore[reportReturnType]


def is_tar(path: str) -> bool:
    return suffixes(path) == (TAR, None)


def _look(file: ListFile, settings: Ingest) -> int | ConfigError:
    """The size of a list whose header was read, or what is wrong with it."""
    try:
        if is_tar(file.path):
            if "://" in file.path:
                raise ConfigError(
                    f"{file.path}: pictures in a tar are read in place: copy it to a local disk"
                )
            describe_tar(Path(file.path), settings)
        with open_input(file.path) as opened:
            if not is_tar(file.path):
                describe(opened, file.path, settings)
            return opened.seek(0, os.SEEK_END)
    except ConfigError as error:
        return error
    except (*READ_ERRORS, DataError) as error:
        return ConfigError(f"{file.path}: cannot be read: {error}")


def _expand(text: str) -> list[ListFile]:
    """The lists that one input stands for."""
    text = os.path.expanduser(text)
    try:
        fs, root = fsspec.url_to_fs(text)
        if fs.isfile(root):
            return [_named(text)]
        if glob.has_magic(text):
            first = min(text.find(sign) for sign in "*?[" if sign in text)
            folder = text[: text.rfind("/", 0, first) + 1]
            paths = [path for path in fs.glob(root) if fs.isfile(path)]
        else:
            folder = text.rstrip("/") + "/"
            paths = fs.find(root) if fs.isdir(root) else None
        top = fs._strip_protocol(folder or "./")
    except ConfigError:
        raise
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"{text}: cannot be listed: {error}") from error
    if paths is None:
        raise ConfigError(f"{text}: no such list, folder or glob")
    names = _usable(sorted(path.removeprefix(top).lstrip("/") for path in paths))
    if not names:
        raise ConfigError(f"{text}: no lists among {len(paths)} files found; lists end in {KNOWN}")
    return [ListFile(folder + name, name, named=False) for name in names]


def _named(text: str) -> ListFile:
    if not is_tar(text) and suffixes(text)[0] not in KINDS:
        raise ConfigError(f"{text}: unknown kind of list; lists end in {KNOWN}")
    return ListFile(text, text.rpartition("/")[2], named=True)


def _usable(names: list[str]) -> list[str]:
    """The lists among sorted file names: nothing hidden, and of shards only the tars."""
    shards = {name.removesuffix(TAR) for name in names if is_tar(name)}
    beside = {stem + end for stem in shards for end in (".parquet", ".json", "_stats.json")}
    beside |= {stem[: stem.rfind("/") + 1] + "manifest.json" for stem in shards}
    return [
        name
        for name in names
        if (is_tar(name) or suffixes(name)[0] in KINDS)
        and name not in beside
        and not any(part[0] in "._" for part in name.split("/"))
    ]


def _distinct(files: list[ListFile]) -> list[ListFile]:
    """The same files; of those that would share a source name each gets its number added."""
    uses = Counter(file.source for file in files)
    return [
        replace(file, source=f"{file.source}#{i}") if uses[file.source] > 1 else file
        for i, file in enumerate(files)
    ]
