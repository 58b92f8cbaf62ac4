"""Lists of archives, such as Common Crawl's `wat.paths.gz`, and crawls by their name.

The list is read where the job begins; the archives are not looked at there, for a crawl has 90,000.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ConfigError, may_pass
from ..recipe import Ingest
from .encoding import open_bytes
from .find import find_files, open_input, readable
from .kinds import is_archive, suffixes

PATHS = ".paths"
CRAWL = re.compile(r"CC-MAIN-\d{4}-\d{2}(-\d{2})?", re.IGNORECASE)
MAX_LIST = 2**28  # bytes of a list of archives, unpacked: a crawl's has 12 MB


def crawl_list(text: str, settings: Ingest) -> str:
    """Where the list of a crawl's archives lies, for the name of a crawl; any other input as it is."""
    if CRAWL.fullmatch(text) is None or Path(text).exists():
        return text
    return _within(f"crawl-data/{text.upper()}/{settings.crawl_files}.paths.gz", settings)


def is_paths(text: str) -> bool:
    """Whether an input is a list of archives, by its name."""
    return suffixes(text)[0] == PATHS


def listed_archives(text: str, settings: Ingest) -> list[tuple[str, str]]:
    """(where to open it, its name in the list) of each archive in the lists that an input stands for.

    Raises ConfigError for a list that is not there or cannot be read, is empty, or names what is no archive.
    """
    found: list[tuple[str, str]] = []
    for lists in find_files(text):
        for name in lists.names:
            found += _archives(lists.spelled(name), settings)
    return found


def _archives(path: str, settings: Ingest) -> list[tuple[str, str]]:
    shown = readable(path)
    try:
        with open_input(path) as file:
            body = open_bytes(file, suffixes(path)[1]).read(MAX_LIST + 1)
    except OSError as error:
        cure = "try again later" if may_pass(error) else "fetch it again"
        raise ConfigError(f"{shown}: the list of archives cannot be read ({error}): {cure}") from error
    if len(body) > MAX_LIST:
        raise ConfigError(f"{shown}: over {MAX_LIST:,} bytes unpacked: no list of archives")
    lines = [line.strip() for line in body.decode("utf-8", "backslashreplace").splitlines()]
    found = [(n, line) for n, line in enumerate(lines, 1) if line]
    for n, line in found:
        if not is_archive(line):
            cure = "WET holds text alone" if suffixes(line)[0] == ".wet" else "one to a line"
            raise ConfigError(f"{shown}, line {n}: {line[:200]!r} is no WARC, WAT or ARC file: {cure}")
    if not found:
        raise ConfigError(f"{shown}: the list names no archives")
    return [(_within(line, settings), line) for _, line in found]


def _within(entry: str, settings: Ingest) -> str:
    """Where an entry of a list lies: within the base, unless it says so itself."""
    if "://" in entry or os.path.isabs(entry):
        return entry
    return f"{settings.archive_base.rstrip('/')}/{entry}"
