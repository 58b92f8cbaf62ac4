"""X-Robots-Tag: may this picture be used? Where a header can be read as an opt-out, it is one.

Grammar: words, however they are parted; `name:` before a directive addresses one crawler, and holds for what
follows in that field; a few directives have a value of their own. Only a field that plainly speaks to another
crawler is not for us.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from functools import lru_cache

from multidict import MultiMapping

from .when import read_date

OUR_NAME = "pairmill"
ROBOTS_FIELD = re.compile(
    r"(?:x[-_ ]*)?robots?[-_ ]*(?:tags?)?", re.IGNORECASE
)  # names of fields that are read

_VALUED = frozenset(
    {
        *("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after", "unavailable-after"),
        *("max-age", "rating", "expires", "license"),
    }
)
_KNOWN = _VALUED | {
    *("all", "index", "follow", "archive", "snippet", "cache", "none", "noindex", "nofollow", "noarchive"),
    *("nocache", "nosnippet", "notranslate", "noimageindex", "noai", "noimageai", "noml", "noodp", "noydir"),
    *("indexifembedded", "nositelinkssearchbox", "nopagereadaloud", "noimages", "notrain", "noaitraining"),
}
# names that address every crawler, though none of them stands in a specification but the first
_EVERYONE = frozenset(
    {
        *("*", "all", "any", "everyone", "default", "robot", "robots", "bot", "bots", "crawler", "crawlers"),
        *("x-robots-tag", "robots-tag", "user-agent", "useragent", "content", "directive", "directives"),
        *("policy", "ai", "ai-policy", "image", "images"),
    }
)
# products that stand in the User-Agent of half the web
_GENERIC = frozenset(
    {"mozilla", "compatible", "applewebkit", "khtml", "gecko", "chrome", "safari", "version", "mobile"}
    | {"windows", "linux", "x11", "macintosh", "like", "edg", "firefox", "opera", "http", "https"}
)
_WORD = re.compile(r"(?P<word>[a-z0-9_*][a-z0-9_*.+/@-]*)(?P<colon>[\"')\]>]*\s*:(?!//))?", re.IGNORECASE)
_VALUE = re.compile(r"[\s:=]*([\w-]+)")
_PRODUCT = re.compile(r"^\s*([a-z][\w.-]*)|([a-z][\w.-]*)/|[(;]\s*([a-z][\w.-]*)\s*(?=[;)])", re.IGNORECASE)


@lru_cache(maxsize=64)
def names_of(user_agent: str) -> frozenset[str]:
    """The names we answer to, lower case: our own, and the products that `user_agent` names."""
    text = re.sub(r"[a-z+]+://\S*", " ", user_agent.lower())
    found = {name for match in _PRODUCT.finditer(text) for name in match.groups() if name}
    return frozenset({OUR_NAME} | (found - _GENERIC))


def directives(
    field: str, names: Collection[str], obeyed: Collection[str] = (), now: float | None = None
) -> set[str]:
    """The directives of one X-Robots-Tag field that address everyone or one of `names`, lower case.

    `none` is written out as noindex and nofollow, and so is an unavailable_after that is past, or of which
    nobody can tell. obeyed: directives that are known besides the usual ones. now: seconds since 1970.
    """
    text = field.lower()
    known = _KNOWN.union(obeyed)
    found: set[str] = set()
    ours = True
    skipped = -1  # where the value of a directive ends
    words = list(_WORD.finditer(text))
    for number, match in enumerate(words):
        word = match["word"].strip("./+@-")
        following = words[number + 1]["word"].strip("./+@-") if number + 1 < len(words) else ""
        if match.start() < skipped:
            continue
        if match["colon"] and _opens(word, following, names, known):
            ours = word in _EVERYONE or _addresses(_phrase(text, match), names)
        elif ours:
            found |= _meaning(word, text[match.end() :], time.time() if now is None else now)
        if word in _VALUED and (value := _VALUE.match(text, match.end("word"))) and value[1] not in obeyed:
            skipped = value.end()
    return found | {"noindex", "nofollow"} if "none" in found else found


def _opens(word: str, following: str, names: Collection[str], known: Collection[str]) -> bool:
    """Whether `word`, before a colon, names a crawler: it is a known name, or a directive follows."""
    if word in _EVERYONE or _addresses(word, names):
        return True
    return word not in known and not word[:1].isdigit() and following in known


def _phrase(text: str, match: re.Match[str]) -> str:
    """What stands before the colon: a name, or a whole User-Agent."""
    start = max(text.rfind(mark, 0, match.start()) for mark in ",;|:")
    return text[start + 1 : match.end("word")]


def _addresses(phrase: str, names: Collection[str]) -> bool:
    """Whether a phrase names us: `mybot`, `mybot/1.0`, `mybot-images`; `mybot` also names mybot-images."""
    for word in re.findall(r"[a-z0-9_*][\w*.-]*", phrase):
        if "*" in word or any(_kin(word, name) or _kin(name, word) for name in names):
            return True
    return False


def _kin(name: str, other: str) -> bool:
    return other == name or other.startswith((f"{name}-", f"{name}_"))


def _meaning(word: str, rest: str, now: float) -> set[str]:
    """The directives that a word says: itself, its parts about a slash, without hyphens."""
    if word in ("unavailable_after", "unavailable-after"):
        then = read_date(rest[:80])
        return {"unavailable_after", "noindex", "nofollow"} if _is_past(rest, then, now) else set()
    parts = {part for part in re.split(r"[/+.@]", word) if part}
    return parts | {re.sub("[-_]", "", part) for part in parts if part.startswith("no")}


def _is_past(rest: str, then: float | None, now: float) -> bool:
    if then is not None:
        return then <= now
    year = re.search(r"\b(?:19|20|21)\d\d\b", rest[:80])  # of a date in no form that is known
    return year is None or int(year[0]) <= time.gmtime(now).tm_year


def robots_fields(headers: MultiMapping[str]) -> list[str]:
    """The values of every field that can be read as X-Robots-Tag."""
    return [value for name, value in headers.items() if ROBOTS_FIELD.fullmatch(name)]


def heard(
    fields: Iterable[str], obeyed: Iterable[str], names: Collection[str], now: float | None = None
) -> set[str]:
    """Which of the `obeyed` directives the X-Robots-Tag `fields` say to one of `names`, lower case."""
    wanted = {directive.lower() for directive in obeyed}
    return set().union(*(directives(field, names, wanted, now) & wanted for field in fields))


def opted_out(
    fields: Iterable[str], obeyed: Iterable[str], user_agent: str = "", now: float | None = None
) -> bool:
    """Whether any of the X-Robots-Tag `fields` says one of the `obeyed` directives to us.

    We answer to our own name and to the products that `user_agent` names.
    """
    return bool(heard(fields, obeyed, names_of(user_agent), now))
