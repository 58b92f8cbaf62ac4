"""Which entries a caption holds: one automaton for all entries, and the slow definition that it equals.

The rule (MetaCLIP's): punctuation is set apart by spaces, and an entry is held where it stands between
spaces, letters as they are. An entry with a character of a script that has no spaces between words (Chinese,
Japanese, Thai, …) is held wherever it stands, in any caption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ConfigError

APART = ",.;:?!`"  # set apart by spaces, as MetaCLIP's code does
NO_SPACES = re.compile(  # RE2 and Python name scripts differently: the blocks of text.NO_SPACES
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
AT_ONCE = 20_000  # captions in one search


def spaced(caption: str) -> str:
    """The caption between spaces, its punctuation set apart."""
    text = f" {caption} "
    for sign in APART:
        text = text.replace(sign, f" {sign} ")
    return text


def holds(caption: str, entry: str, match: str = "substring") -> bool:
    """The slow definition: whether a caption holds an entry."""
    if match == "word":
        return f" {entry.lower()} " in f" {caption.lower()} "
    return (entry if NO_SPACES.search(entry) else f" {entry} ") in spaced(caption)


class Matcher:
    """Finds every entry that a caption holds. Building takes 20 seconds for a million entries, and 700 MB."""

    def __init__(self, entries: Sequence[str], match: str = "substring") -> None:
        import ahocorasick_rs

        self.match = match
        if match == "word":
            entries = [entry.lower() for entry in entries]
        bare = [bool(match == "substring" and NO_SPACES.search(entry)) for entry in entries]
        patterns = [entry if one else f" {entry} " for entry, one in zip(entries, bare, strict=True)]
        self._automaton = ahocorasick_rs.BytesAhoCorasick(
            [pattern.encode() for pattern in patterns], matchkind=ahocorasick_rs.MatchKind.Standard
        )

    def find(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(N + 1,) int64 edges and (M,) int32 entries: those of caption n, each once, sorted.

        Captions are normalised: they hold no line break.
        """
        rows, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(captions), AT_ONCE):
            row, entry = self._search(captions[start : start + AT_ONCE])
            rows.append(row + start)
            found.append(entry)
        row, entry = np.concatenate(rows), np.concatenate(found)
        edges = np.searchsorted(row, np.arange(len(captions) + 1))
        return edges, entry.astype(np.int32)

    def _search(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(M,) rows and entries, by row and entry, each pair once."""
        whole = "\n".join(f" {caption} " for caption in captions)
        if self.match == "word":
            whole = whole.lower()
        else:
            for sign in APART:
                whole = whole.replace(sign, f" {sign} ")
        data = whole.encode("utf-8", "surrogatepass")
        hits = self._automaton.find_matches_as_indexes(data, overlapping=True)
        if not hits:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        table = np.array(hits, np.int64)
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        rows = np.searchsorted(ends, table[:, 1])
        pairs = np.unique(rows << 32 | table[:, 0])
        return pairs >> 32, pairs & 0xFFFFFFFF


def read_entries(path: Path) -> list[str]:
    """The entries of a text file, one a line, or of a JSON list, in order, each once.

    Raises ConfigError where it is missing, not UTF-8, no list, or empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"entries.file: {path}: {error.strerror}: expected entries, one a line") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"entries.file: {path}: line {line}: not UTF-8: save it as UTF-8") from error
    lines = text.split("\n") if path.suffix != ".json" else _json_list(path, text)
    entries = list(dict.fromkeys(entry for line in lines if (entry := " ".join(line.split()))))
    if not entries:
        raise ConfigError(f"entries.file: {path}: no entries there: expected one a line")
    return entries


def _json_list(path: Path, text: str) -> list[str]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"entries.file: {path}: not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ConfigError(f"entries.file: {path}: expected a JSON list of strings")
    return found


def entry_files(path: Path) -> dict[str, Path]:
    """By language the file of its entries; by '' one file for all. Raises ConfigError where there is none."""
    if not path.is_dir():
        return {"": path}
    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in (".txt", ".json")}
    if not files:
        raise ConfigError(f"entries.file: {path}: expected files named by language there, such as en.txt")
    return files
