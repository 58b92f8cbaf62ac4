"""What a page says about its pictures, whichever archive it is in, and which of an element's URLs counts.

A lazy loader puts a placeholder into `src` and the picture's URL elsewhere. Of several sizes the largest is
taken. Relative URLs are resolved as WHATWG has it, against `<base>` where it is a base at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import ada_url

from .entities import decode_entities

# Where lazy loaders keep the URL and the sizes: lazysizes, jQuery Lazy Load, WP Rocket, a3, Jetpack, Shopify.
LAZY = (
    *("data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-hi-res-src"),
    *("data-full-src", "data-large-src", "data-image-src", "data-img-src", "data-echo", "data-url"),
    *("data-actualsrc", "data-orig-file", "data-large-file", "data-delayed-url", "data-src-retina"),
)
LAZY_SETS = ("data-srcset", "data-lazy-srcset", "data-original-set", "data-src-set")
SETS = ("srcset", *LAZY_SETS)
URLS = ("src", *LAZY)
WEB = ("https://", "http://")
INLINE = ("data:", "blob:", "about:", "javascript:")
# Of src that only hold a place, where a lazy attribute stands beside them.
PLACEHOLDER = re.compile(
    r"(^|[/_.-])(blank|spacer|placeholder|pixel|transparent|loading|loader|lazy|grey|gray|dot|clear|1x1|empty)"
    r"[\w-]*\.(gif|png|svg|jpe?g|webp)",
    re.IGNORECASE,
)
# A candidate of a srcset: a URL, which neither begins nor ends with a comma, and its descriptors.
_CANDIDATE = re.compile(r"[\s,]*+([^\s,]\S*)([^,]*+)")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d+)?)([wx])")
MAX_SET = 65_536  # characters of a srcset that are looked at
NO_BASE = ("data:", "javascript:")


@dataclass(slots=True)
class Page:
    """A page and its pictures."""

    url: str
    base: str  # what its relative URLs are resolved against
    title: str | None = None
    language: str | None = None  # as the page or its server says it
    date: str | None = None  # when it was crawled, ISO 8601
    signals: Mapping[str, str] = field(default_factory=dict)  # what it says about its use, as it says it
    images: list[tuple[str, str, str]] = field(default_factory=list)  # URL as written, text, its source
    n_without_text: int = 0  # pictures that no text stands for
    n_inline: int = 0  # with a text, and in the page itself: nothing to be fetched
    n_copies: int = 0  # said again, in the same words

    def __bool__(self) -> bool:
        """Whether the page has pictures at all."""
        return bool(self.images or self.n_without_text or self.n_inline)

    def add(self, url: str | None, texts: Iterable[tuple[str, str | None]]) -> None:
        """Take a picture with each of its distinct texts, given as (source, text)."""
        said: dict[str, str] = {}
        for source, text in texts:
            if text and (bare := text.strip()):
                said.setdefault(bare, source)
        if not said:
            self.n_without_text += 1
        elif not url or url.startswith(INLINE):
            self.n_inline += 1
        else:
            self.images += [(url, text, source) for text, source in said.items()]

    def add_image(self, url: str | None, alt: str | None, title: str | None) -> None:
        """As `add` takes an `img`, at once where it has an `alt` alone and a URL on the web."""
        if not title and alt and url and url.startswith(WEB) and (bare := alt.strip()):
            self.images.append((url, bare, "alt"))
        else:
            self.add(url, (("alt", alt), ("title", title)))


def best_url(get: Callable[[str], str | None]) -> str | None:
    """The URL of an `img` or `source`, whose attributes `get` knows: the largest, not a placeholder."""
    src = (get("src") or "").strip()
    lazy = _first(get, LAZY_SETS, LAZY) if not src or holds_place(src) else None
    if lazy:
        return lazy
    return largest(get("srcset") or "") or _first(get, LAZY_SETS, ()) or src or None


def holds_place(url: str) -> bool:
    """Whether a URL looks like that of a placeholder, for which a lazy loader puts another."""
    return url.startswith(INLINE) or PLACEHOLDER.search(url) is not None


def _first(get: Callable[[str], str | None], sets: Iterable[str], urls: Iterable[str]) -> str | None:
    """The largest of the first set that has one, else the first URL."""
    found = (largest(text) for name in sets if (text := get(name)))
    found_url = next((url for url in found if url), None)
    plain = ((get(name) or "").strip() for name in urls)
    return found_url or next((url for url in plain if url and not url.startswith((*INLINE, "{"))), None)


def largest(srcset: str) -> str | None:
    """The URL of a `srcset` (HTML, 4.8.4.3.10) that is the widest, else the densest; the first of equals."""
    best: tuple[float, float] = (-1.0, -1.0)
    found = None
    for url, descriptors in _candidates(srcset[:MAX_SET]):
        sizes = {unit: float(number) for number, unit in _DESCRIPTOR.findall(descriptors)}
        size = (sizes.get("w", 0.0), sizes.get("x", 1.0))
        if size > best and not url.startswith(INLINE):
            best, found = size, url
    return found


def _candidates(srcset: str) -> Iterator[tuple[str, str]]:
    at = 0
    while match := _CANDIDATE.match(srcset, at):
        url, descriptors = match.groups()
        if url.endswith(","):  # no descriptors, and the next candidate follows
            yield url.rstrip(","), ""
            at = match.end(1)
        else:
            yield url, descriptors
            at = match.end()


def base_of(page_url: str, href: str | None) -> str:
    """What relative URLs of a page are resolved against (HTML, 4.2.3): its URL, or its `<base>`.

    A base that is no URL, or one of data: or javascript:, is passed over.
    """
    if not href:
        return page_url
    joined = _join(href, page_url)
    return page_url if joined is None or joined.startswith(NO_BASE) else joined


def resolve(url: str, base: str) -> str | None:
    """The absolute URL that a page means, or None where there is none."""
    if url.startswith(WEB):
        return url
    return _join(url, base)


def _join(url: str, base: str) -> str | None:
    try:
        return ada_url.join_url(base, decode_entities(url))
    except ValueError:  # lone surrogates among them
        return None
