"""Lists of hashes of pictures that must not be kept: read, and never shown.

The rule: no message, page or table holds a hash of a list, or a picture that is on one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ..errors import ConfigError

HASH = re.compile(r"[0-9a-fA-F]{32}(?:[0-9a-fA-F]{32})?")


@dataclass(frozen=True, slots=True)
class Blocklist:
    """Hashes by kind. A hash of 32 bytes may be a sha256 or a PDQ: by chance no sha256 is near any PDQ."""

    long: frozenset[bytes]  # 32 bytes
    short: frozenset[bytes]  # 16 bytes: md5

    @property
    def pdq(self) -> np.ndarray:
        """(N, 32) uint8, sorted."""
        return np.frombuffer(b"".join(sorted(self.long)), np.uint8).reshape(-1, 32)


def read_blocklists(paths: Sequence[str]) -> Blocklist:
    """The hashes of text files: the first word of each line, hexadecimal; `#` begins a comment.

    Raises ConfigError, which says the line and not what stands there.
    """
    found: set[bytes] = set()
    for path in paths:
        for number, word in _words(Path(path)):
            if not HASH.fullmatch(word):
                raise ConfigError(
                    f"decontaminate.blocklist: {path}: line {number}: no hash: expected 64 hex digits"
                    " (PDQ or sha256) or 32 (md5)"
                )
            found.add(bytes.fromhex(word))
    return Blocklist(
        frozenset(one for one in found if len(one) == 32), frozenset(one for one in found if len(one) == 16)
    )


def _words(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"decontaminate.blocklist: {path}: {error.strerror}: no list there") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"decontaminate.blocklist: {path}: not a text file of hashes") from error
    lines = [
        (number, re.split(r"[\s,;#]", line.strip(), maxsplit=1)[0])
        for number, line in enumerate(text.splitlines(), 1)
    ]
    return [(number, word) for number, word in lines if word]


def blocklists_digest(paths: Sequence[str]) -> str:
    """A digest of what the lists say."""
    digest = xxhash.xxh3_64()
    for path in paths:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()
