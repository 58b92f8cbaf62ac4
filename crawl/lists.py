"""Which files a recipe's inputs are, looked at before any work starts; then the rows of each.

Of a folder or glob, what is no list is passed over and counted; what looks like a list and is broken is
left to its task, which fails with the reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import aiohttp
import pyarrow as pa

from ..errors import ConfigError, DataError, PairmillError, RetryableError, may_pass
from ..recipe import Ingest
from ..shards.samples import PICTURES
from .archive_rows import read_archive_rows
from .columns import EmptyListError
from .crawls import crawl_list, is_paths, listed_archives
from .find import Found, find_files, open_input, readable
from .img2dataset import describe_tar, read_tar
from .kinds import (
    KNOWN,
    TAR,
    base_name,
    holds_list,
    is_archive,
    kind_of,
    named_as_list,
    refuse_other_archives,
    suffixes,
)
from .readers import describe, read_list

READ_ERRORS = (OSError, EOFError, pa.ArrowException, ValueError, aiohttp.ClientError)
BROKEN_LINES = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
NO_LISTS = ("readme", "license", "licence", "dataset_info", "croissant.json")  # how names of no lists begin
SHOWN = 3  # names of files passed over

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ListFile:
    """One input file."""

    path: str  # as the user spelled its folder: to be opened
    source: str  # its name within what the user gave: the same on every machine
    named: bool  # the user gave this very file, rather than a folder or glob
    size: int = 0  # bytes


def list_inputs(settings: Ingest, say: Say = lambda line: None) -> list[ListFile]:
    """The lists of a recipe, in the order given, those of a folder or glob sorted; their headers are read.

    `say` gets a line for each folder with files that are no lists.
    Raises ConfigError for what can be known beforehand: nothing found, a list that cannot be read or has no
    URL column. Of a folder or glob an unusable list is left to its task, which fails alone, as long as
    another is usable. An empty list is no error beside others.
    """
    if not settings.input:
        raise ConfigError("ingest.input is empty: give at least one list, folder or glob (--input PATH)")
    with ThreadPoolExecutor(16) as pool:
        files = (file for text in settings.input for file in _expand(text, settings, pool, say))
        found = list({file.path: file for file in files}.values())
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

    Raises DataError naming the list and the row where it breaks off, RetryableError where the network or
    the disk did; an empty list has no batches.
    """
    row = 0
    try:
        with open_input(path) as file:
            size = max(file.seek(0, os.SEEK_END), 1)
            for batch in _batches(file, path, settings):
                yield batch, min(1.0, file.tell() / size)
                row += len(batch)
    except EmptyListError:
        return
    except ConfigError as error:  # it is whole, and yet no list, or without the column that was asked for
        raise _kind(error.__cause__)(f"{source}: {error}") from error
    except DataError as error:
        raise _kind(error.__cause__)(f"{source}, after row {row}: {error}") from error
    except READ_ERRORS as error:
        said = f"{source}, after row {row}: the list breaks off ({error})"
        raise _kind(error)(f"{said}: fetch {readable(path)} again or leave it out") from error


def _batches(file: BinaryIO, path: str, settings: Ingest) -> Iterator[pa.RecordBatch]:
    if is_archive(path):
        return read_archive_rows(file, suffixes(path)[1], settings)
    if is_tar(file, path, settings):
        return read_tar(Path(path), settings)
    return read_list(file, readable(path), settings)


def _kind(error: BaseException | None) -> type[PairmillError]:
    """RetryableError where the network or the disk failed; else the list is broken."""
    passing = error is not None and (may_pass(error) or isinstance(error, BROKEN_LINES))
    return RetryableError if passing else DataError


def is_tar(file: BinaryIO, path: str, settings: Ingest) -> bool:
    return kind_of(file, path, settings)[0] == "tar"


def _look(file: ListFile, settings: Ingest) -> int | ConfigError:
    """The size of a list whose header was read, or what is wrong with it. Archives are not opened."""
    try:
        refuse_other_archives(readable(file.path))
        if is_archive(file.path):
            return 0 if "://" in file.path else os.path.getsize(file.path)
        with open_input(file.path) as opened:
            if not is_tar(opened, file.path, settings):
                describe(opened, readable(file.path), settings)
            elif "://" in file.path:
                raise ConfigError(
                    f"{file.path}: pictures in a tar are read in place: copy it to a local disk"
                )
            else:
                _refuse_unnamable(file.path)
                describe_tar(Path(file.path), settings)
            return opened.seek(0, os.SEEK_END)
    except ConfigError as error:
        return error
    except (*READ_ERRORS, DataError) as error:
        return ConfigError(f"{readable(file.path)}: cannot be read: {error}")


def _refuse_unnamable(path: str) -> None:
    if readable(path) != path:
        raise ConfigError(f"{readable(path)}: the name is not UTF-8, and pairs name their tar: rename it")


def _expand(text: str, settings: Ingest, pool: ThreadPoolExecutor, say: Say) -> Iterator[ListFile]:
    """The lists that one input stands for."""
    text = crawl_list(text, settings)
    if is_paths(text):
        yield from (ListFile(path, name, named=True) for path, name in listed_archives(text, settings))
        return
    for found in find_files(text):
        if found.named:
            name = found.names[0]
            yield ListFile(found.spelled(name), readable(base_name(name, lower=False)), named=True)
            continue
        kept = _usable(found, settings, pool)
        over = [name for name, keep in zip(found.names, kept, strict=True) if not keep]
        if len(over) == len(found.names):
            raise ConfigError(
                f"{readable(text)}: no lists among {len(over)} files found; lists end in {KNOWN}"
            )
        if over:
            say(f"{readable(text)}: {_passed_over(over)}")
        for name, keep in zip(found.names, kept, strict=True):
            if keep:
                yield ListFile(found.spelled(name), readable(name), named=False)


def _passed_over(names: Sequence[str]) -> str:
    """The line about files that are no lists: how many of each suffix, and some names."""
    ends = Counter(os.path.splitext(name)[1] or "no suffix" for name in names)
    kinds = ", ".join(f"{n:,} {end}" for end, n in ends.most_common(5)) + (", …" if len(ends) > 5 else "")
    shown = ", ".join(readable(name) for name in names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
    files = "1 file is no list and is" if len(names) == 1 else f"{len(names):,} files are no lists and are"
    return f"{files} passed over: {kinds} ({shown})"


def _usable(found: Found, settings: Ingest, pool: ThreadPoolExecutor) -> list[bool]:
    """Whether each of the files found is a list: nothing hidden, and of shards only the tars."""
    beside = _beside(found.names)

    def is_list(name: str) -> bool:
        said = name not in beside and not _is_aside(name) and named_as_list(name)
        return _holds_list(found.spelled(name), settings) if said is None else said

    return list(pool.map(is_list, found.names))


def _is_aside(name: str) -> bool:
    """Spark's and Delta's own files and folders begin with _, hidden ones with a dot; `_c.csv` is a list."""
    *folders, base = name.split("/")
    if any(part[0] in "._" for part in folders) or base[0] == ".":
        return True
    return base.lower().startswith(NO_LISTS) or (base[0] == "_" and "." not in base)


def _holds_list(path: str, settings: Ingest) -> bool:
    try:
        with open_input(path) as file:
            return holds_list(file, path, settings)
    except (*READ_ERRORS, DataError):
        return True  # its task says what is wrong


def _beside(names: Sequence[str]) -> set[str]:
    """Files that describe others: tables beside tars, texts beside pictures, counts of a shard."""
    ends = {name: os.path.splitext(name) for name in names}
    shards = {stem for stem, end in ends.values() if end == TAR}
    found = {stem + end for stem in shards for end in (".parquet", ".json", "_stats.json")}
    folders = {stem[: stem.rfind("/") + 1] for stem in shards}
    found |= {folder + name for folder in folders for name in ("manifest.json", "sizes.json")}
    pictures = {stem for stem, end in ends.values() if end[1:].lower() in PICTURES}
    found |= {stem + end for stem in pictures for end in (".txt", ".json")}
    return found | {name for name in names if name.endswith("_stats.json")}


def _distinct(files: list[ListFile]) -> list[ListFile]:
    """The same files; of those that would share a source name all but the first get their number added.

    So a list behind the others gives none of them another name.
    """
    first = {file.source: i for i, file in reversed([*enumerate(files)])}
    return [
        file if first[file.source] == i else replace(file, source=f"{file.source}#{i}")
        for i, file in enumerate(files)
    ]
