"""What is said against the use of a picture, wherever it is said, and the reason that it is dropped for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import orjson
from multidict import MultiMapping

from ..recipe import Fetch
from .optout import ROBOTS_FIELD, heard, robots_fields
from .reservation import HEADER, is_reserved
from .robots import refuses_training

INDEXING = frozenset({"noindex", "noimageindex"})
USAGE_FIELDS = ("Content-Usage", "Content-Signal")
MAX_SAID = 200  # characters of one signal in its column


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that was said: where, what, and the outcome that it leads to where it is respected."""

    source: str
    said: str
    reason: str  # '': it is recorded, and decides nothing

    def __str__(self) -> str:
        return f"{self.source}: {self.said}"[:MAX_SAID]


def describe(signals: Iterable[Signal]) -> str | None:
    """All signals as `consent_v1` has them, in the order in which they were seen; None without any."""
    return "; ".join(dict.fromkeys(map(str, signals))) or None


def decisive(signals: Iterable[Signal]) -> Signal | None:
    """The first signal that drops a picture."""
    return next((signal for signal in signals if signal.reason), None)


def header_signals(headers: MultiMapping[str], settings: Fetch, names: Collection[str]) -> Iterator[Signal]:
    """X-Robots-Tag, Content-Usage and TDM reservation of an answer, as far as the recipe reads them."""
    if "header" in settings.signals:
        fields = robots_fields(headers)
        if fields and (found := heard(fields, settings.opt_outs, names)):
            yield _directives("x-robots-tag", found)
        for name in USAGE_FIELDS:
            if name in headers and refuses_training(headers[name]):
                yield Signal(name.lower(), headers[name], "noai")
    if "tdm" in settings.signals and is_reserved(headers.get(HEADER, "")):
        yield Signal(HEADER, headers[HEADER], "tdm")


def page_signals(text: str, settings: Fetch, names: Collection[str]) -> Iterator[Signal]:
    """What the page said on which a picture was found: `page_signals` of a list's row.

    text: a JSON object as ingest makes it of archives, `{"robots": "noai", "tdm-reservation": "1"}`; or the
    directives alone, parted by semicolons, with `tdm-reservation: 1` among them; or a JSON list of such.
    """
    for name, said in _said(text):
        if name == HEADER:
            if is_reserved(said):
                yield Signal("page", f"{HEADER}: {said.strip()}", "tdm")
        elif ROBOTS_FIELD.fullmatch(name) and (found := heard([said], settings.opt_outs, names)):
            yield _directives("page", found)


def _said(text: str) -> Iterator[tuple[str, str]]:
    """Names, lower case, and values; directives without a name are of `robots`."""
    try:
        found = orjson.loads(text) if text[:1] in '["{' else text
    except orjson.JSONDecodeError:
        found = text
    if isinstance(found, dict):
        yield from ((str(name).strip().lower(), str(said)) for name, said in found.items())
        return
    for field in found if isinstance(found, list) else str(found).split(";"):
        name, _, value = str(field).replace("=", ":").partition(":")
        named = name.strip().lower() == HEADER
        yield (HEADER, value) if named else ("robots", str(field))


def _directives(source: str, found: set[str]) -> Signal:
    reason = "noindex" if found <= INDEXING else "noai"
    return Signal(source, ", ".join(sorted(found)), reason)
