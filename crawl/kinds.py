"""What kind of list a file is: by its name, and where the name says nothing, by its first bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from ..errors import ConfigError
from ..recipe import Ingest
from .columns import is_url
from .encoding import find_form, open_bytes
from .json_rows import json_table

CODECS = {
    ".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz", ".lzma": "xz", ".lz4": "lz4", ".br": "brotli",
}  # fmt: skip
LZ4 = b"\x04\x22\x4d\x18"
UNREAD = (".snappy", ".sz", ".lzo", ".z", ".7z", ".rar", ".zip")  # no library at hand reads these
TAR = ".tar"
PACKED_TARS = {".tgz": "gzip", ".tbz": "bz2", ".tbz2": "bz2", ".txz": "xz", ".tzst": "zstd"}
KINDS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "txt",
}  # fmt: skip
ARCHIVES = {".warc", ".wat", ".arc"}  # read by their content, whatever the name says
ARCHIVE_CODECS = (None, "gzip", "zstd", "lz4")
KNOWN = ", ".join(KINDS) + f" (each also {', '.join(CODECS)}), {TAR}, .warc, .wat, .arc (.gz)"
HEAD = 2**18  # bytes to judge a file by
SAMPLE = 100  # lines
_NO_SUFFIX = re.compile(r"\.(c?\d+|part|data|list|urls)?", re.IGNORECASE)  # part-0004, x.00, part-0.c000
_URL = re.compile(r"https?://[^\s\"]", re.IGNORECASE)
_BROKEN_RECORD = re.compile(r'"\w+"\s*:\s*[\[{]?\s*("\w+"\s*:\s*)?"(https?:)?//')


def base_name(path: str, *, lower: bool = True) -> str:
    """The last component of a path or URL, without the query, and of `zip://a.csv::x.zip` that of `a.csv`."""
    if "://" in path:
        path = next(link for link in path.split("::") if "://" in link)
    name = path.rpartition("/")[2]
    name = name.lower() if lower else name
    bare = name.partition("?")[0].partition("#")[0]
    return (
        bare
        if "?" in name and (path.startswith("http") or _cut(bare.lower())[0] in {*KINDS, *ARCHIVES, TAR})
        else name
    )


def suffixes(path: str) -> tuple[str, str | None]:
    """The kind suffix and the codec of a path: `a/b.csv.gz` is ('.csv', 'gzip')."""
    return _cut(base_name(path))


def _cut(name: str) -> tuple[str, str | None]:
    stem, dot, last = name.rpartition(".")
    if dot + last in PACKED_TARS:
        return TAR, PACKED_TARS[dot + last]
    codec = CODECS.get(dot + last)
    if codec is not None:
        _, dot, last = stem.rpartition(".")
    return dot + last if dot else "", codec


def is_archive(path: str) -> bool:
    """Whether a file is a web archive, by its name."""
    return suffixes(path)[0] in ARCHIVES


def refuse_other_archives(path: str) -> None:
    """Raises ConfigError for an archive that is not read: of text alone, or in another packing."""
    suffix, codec = suffixes(path)
    if suffix == ".wet":
        raise ConfigError(f"{path}: WET holds text alone, no pictures: give the WAT or WARC of the same name")
    if suffix in ARCHIVES and codec not in ARCHIVE_CODECS:
        raise ConfigError(f"{path}: web archives are read bare or as .gz, .zst, .lz4: pack it anew")


def packed_unread(path: str) -> bool:
    """Whether the name is that of a list in a packing that is not read, as `a.csv.zip` is."""
    stem, dot, last = base_name(path).rpartition(".")
    return dot + last in UNREAD and _cut(stem)[0] in {*KINDS, *ARCHIVES, TAR}


def kind_of(file: BinaryIO, path: str, settings: Ingest) -> tuple[str, str | None]:
    """The kind (parquet, csv, tsv, jsonl, txt, tar) and codec of a list. The file is left at its beginning.

    Raises ConfigError for what is no list.
    """
    suffix, codec = suffixes(path)
    if suffix in KINDS or suffix == TAR:
        return KINDS.get(suffix, "tar"), codec
    found = None if packed_unread(path) else _kind_by_content(file, settings)
    if found is None:
        cure = f"give zip://*::{path}" if base_name(path).endswith(".zip") else "unpack it, or write another"
        raise ConfigError(f"{path}: unknown kind of list; lists end in {KNOWN}: {cure}")
    return found


def _kind_by_content(file: BinaryIO, settings: Ingest) -> tuple[str, str | None] | None:
    head = _head(file)
    if head.startswith(b"PAR1"):
        return "parquet", None
    if head[257:262] == b"ustar":
        return "tar", None
    codec = "lz4" if head.startswith(LZ4) else None  # the others are known by open_bytes
    kind = _text_kind(_lines(file, codec, settings))
    return None if kind is None else (kind, codec)


def named_as_list(path: str) -> bool | None:
    """Whether a file in a folder is meant as a list by its name; None where its content says it."""
    suffix, _ = suffixes(path)
    if suffix in (".json", ".txt"):
        return None
    if suffix in KINDS or suffix in ARCHIVES or suffix == TAR or packed_unread(path):
        return True
    return None if _NO_SUFFIX.fullmatch(suffix or ".") else False


def holds_list(file: BinaryIO, path: str, settings: Ingest) -> bool:
    """Whether the content of a file, whose name leaves it open, is a list."""
    suffix, codec = suffixes(path)
    if suffix == ".json":
        return _is_json_list(_text(file, codec, settings), settings)
    if suffix == ".txt":
        lines = _lines(file, codec, settings)
        return 2 * sum(is_url(line) for line in lines) > len(lines)
    return _kind_by_content(file, settings) is not None


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    return head


def _text(file: BinaryIO, codec: str | None, settings: Ingest) -> str:
    """The first HEAD bytes of a list of text, unpacked as far as it goes; nothing where it is no text."""
    stream, body = open_bytes(file, codec), b""
    try:
        while len(body) < HEAD and (chunk := stream.read1(HEAD)):
            body += chunk
        encoding = find_form(body, "txt", "", settings.encoding).encoding
        text = body[:HEAD].decode(encoding, "replace")
    except (OSError, ConfigError) as error:  # its reader says what is wrong
        if isinstance(error, OSError) and not body:
            raise
        text = body[:HEAD].decode("utf-8-sig", "replace")
    file.seek(0)
    return "" if "\0" in text else text


def _lines(file: BinaryIO, codec: str | None, settings: Ingest) -> Sequence[str]:
    text = _text(file, codec, settings)
    lines = text.splitlines()[: -1 if len(text) > HEAD // 2 else None]
    return [line for line in lines if line.strip()][:SAMPLE]


def _text_kind(lines: Sequence[str]) -> str | None:
    """The kind of a list of text whose name does not say it: at least half of its lines must bear a URL."""
    if 2 * sum(_URL.search(line) is not None for line in lines) < max(len(lines), 1):
        return None
    if lines[-1].lstrip()[0] in "{[":
        return "jsonl"
    if _mostly("\t" in line for line in lines):
        return "txt" if all(is_url(line) for line in lines) else "tsv"
    return "csv" if _mostly("," in line or '"' in line for line in lines) else "txt"


def _mostly(said: Iterable[bool]) -> bool:
    known = list(said)
    return 2 * sum(known) > len(known)


def _is_json_list(text: str, settings: Ingest) -> bool:
    """Whether JSON holds records with URLs: as lines, as an array, column by column, or within an object."""
    lines = [_parsed(line) for line in text.splitlines()[:SAMPLE] if line.strip()]
    records: Any = [line for line in lines if isinstance(line, dict)]
    if len(records) < 2:
        whole = _parsed(text)
        if whole is None:  # cut by HEAD, or broken
            return _BROKEN_RECORD.search(text) is not None
        records = json_table(whole, settings) or []
        if isinstance(whole, dict) and records == [whole] and len(lines) != 1:
            return False  # one object over several lines: settings, or a card
    return any(_bears_url(record) for record in records[:SAMPLE])


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _bears_url(record: Any) -> bool:
    return isinstance(record, dict) and any(
        isinstance(value, str) and is_url(value) for value in record.values()
    )
