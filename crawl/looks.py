"""What a file is that bears a list's name and is none, by its first bytes."""

from __future__ import annotations

import re

from ..errors import ConfigError

_KINDS = (
    (re.compile(rb"PAR1"), "a Parquet file: name it .parquet"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive (or an Excel sheet): unpack it, or save it as CSV"),
    (re.compile(rb"\xd0\xcf\x11\xe0"), "an old Excel sheet: save it as CSV"),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database: write the table out as CSV"),
    (re.compile(rb"%PDF-"), "a PDF: save the list as CSV"),
    (re.compile(rb"ARROW1\0\0|\xff\xff\xff\xff.{3}\0"), "an Arrow file: write it as Parquet"),
    (re.compile(rb"version https://git-lfs\.github\.com"), "a Git LFS pointer, not the file: git lfs pull"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml)", re.I), "a page: fetch the list"),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), "a picture"),
)  # fmt: skip


def look(head: bytes) -> str | None:
    """What a file is and what to do with it, where that can be told and it is no text."""
    return next((said for begins, said in _KINDS if begins.match(head)), None)


def refuse_other_kind(head: bytes, path: str) -> None:
    """Raises ConfigError where `head` begins no text."""
    if (said := look(head)) is not None:
        raise ConfigError(f"{path}: is {said}")
