"""Is this still the picture that the list speaks of? Hashes that come with a list, held against what came.

A URL may lead elsewhere by the time it is asked for: who buys a domain poisons all lists with it (Carlini
et al. 2023, Poisoning Web-Scale Training Datasets is Practical, section 4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..settings_fetch import Expect

MATCH, NEAR, CHANGED, MALFORMED = "match", "near", "changed", "malformed"
BYTES = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64, "pdq": 32}  # of each kind of hash
PERCEPTUAL = "pdq"
MEANT = {
    CHANGED: "changed",
    NEAR: "changed_near",
    MALFORMED: "hash_malformed",
}  # outcomes where it is dropped
KEPT = {"match": {MATCH}, "near": {MATCH, NEAR}, "all": {MATCH, NEAR, CHANGED, MALFORMED}}


def read_expected(given: Mapping[str, Any], settings: Expect) -> str | None:
    """The hashes of a row as `kind:hex`, in order and parted by blanks; None where it has none.

    One that is not hexadecimal, or is of another length than its kind, becomes `kind:?`.
    """
    found = []
    for column, kind in sorted(settings.hashes.items()):
        value = given.get(column)
        if value is None or value == "":
            continue
        text = str(value).strip().lower().removeprefix("0x")
        found.append(f"{kind}:{text if _is_whole(text, BYTES[kind]) else '?'}")
    return " ".join(found) or None


def _is_whole(text: str, size: int) -> bool:
    try:
        return len(bytes.fromhex(text)) == size and len(text) == 2 * size
    except ValueError:
        return False


def is_hopeless(expected: Collection[str], settings: Expect) -> bool:
    """Whether no row of a URL has a hash that can be read, so that it need not be asked for."""
    readable = any(":?" not in said for said in expected)
    return bool(expected) and not readable and MALFORMED not in KEPT[settings.keep]


def judge(expected: Iterable[str], body: bytes, pdq: bytes | None, settings: Expect) -> str | None:
    """What became of a picture since its list was made: the best that any row of its URL is met by.

    expected: as `read_expected` gives them. pdq: of the picture that came, None where it is none.
    """
    verdicts = {_judge_row(said.split(" "), body, pdq, settings) for said in expected}
    return next((word for word in (MATCH, NEAR, CHANGED, MALFORMED) if word in verdicts), None)


def _judge_row(hashes: list[str], body: bytes, pdq: bytes | None, settings: Expect) -> str:
    pairs = [(kind, text) for kind, _, text in (said.partition(":") for said in hashes)]
    exact = [(kind, text) for kind, text in pairs if kind != PERCEPTUAL and text != "?"]
    if exact and all(hashlib.new(kind, body).hexdigest() == text for kind, text in exact):
        return MATCH
    looks = [bytes.fromhex(text) for kind, text in pairs if kind == PERCEPTUAL and text != "?"]
    if pdq is not None and looks:
        bits = min(_distance(pdq, look) for look in looks)
        if bits == 0 and not exact:
            return MATCH
        if bits <= settings.near_distance:
            return NEAR
    return CHANGED if exact or looks else MALFORMED


def _distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


def drop_reason(verdict: str | None, settings: Expect) -> str | None:
    """The outcome of a picture that the recipe does not keep, by what became of it; None where it does."""
    return None if verdict is None or verdict in KEPT[settings.keep] else MEANT[verdict]
