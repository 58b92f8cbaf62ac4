"""What is said against the use of a picture, wherever it is said, and the reason that it is dropped for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import orjson
from multidict import MultiMapping

from ..recipe import Fetch
from .optout import heard, robots_fields
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

    text: the directives of the page's robots meta elements, and `tdm-reservation: 1`; a JSON list of such
    texts means all of them.
    """
    for field in _texts(text):
        if found := heard([field], settings.opt_outs, names):
            yield _directives("page", found)
        name, _, value = field.replace("=", ":").partition(":")
        if name.strip().lower() == HEADER and is_reserved(value):
            yield Signal("page", field.strip(), "tdm")


def _texts(text: str) -> list[str]:
    try:
        found = orjson.loads(text) if text[:1] in '["' else text
    except orjson.JSONDecodeError:
        found = text
    return [str(item) for item in found] if isinstance(found, list) else str(found).split(";")


def _directives(source: str, found: set[str]) -> Signal:
    reason = "noindex" if found <= INDEXING else "noai"
    return Signal(source, ", ".join(sorted(found)), reason)
