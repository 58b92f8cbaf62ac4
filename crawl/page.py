"""An HTML page's pictures: `img`, `picture`, figures, Open Graph, JSON-LD; and what it says about its use.

The parser is lexbor. It is fast on anything but elements that are nested thousands deep, or have thousands of
attributes, for it looks through all of them at each step: such pages are refused, so that none takes seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import orjson
from selectolax.lexbor import LexborDocumentOptions, LexborHTMLParser, LexborNode

from ..errors import RowError
from .charset import page_text
from .images import Page, base_of, best_url, holds_place

MAX_PAGE = 8 * 2**20  # bytes; Common Crawl cuts pages at 1 and, since 2025, at 5 MiB
MAX_ATTRIBUTES = 1_000  # of one element: 3 ms; 50,000 take a minute
MAX_DEPTH = 1_000  # of nested elements: browsers stop at 512
FEW_TAGS = 3_000  # however they nest, that takes milliseconds
MAX_TITLE = 1_000  # characters
MAX_SIGNAL = 500
MAX_LD_NODES = 100_000  # of one page's JSON-LD
MAX_FIGURE_DEPTH = 10  # elements between a figure and its picture
_TAG = re.compile(rb"<[a-zA-Z](?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+')?+)*+")
_QUOTED = re.compile(rb"=\s*+(?:\"[^\"]*+\"|'[^']*+')")
_NAME = re.compile(rb"<(/?)([a-zA-Z][^\s/>]*)")
# Elements that hold nothing, or whose end need not be written: they nest in others, which are counted.
_ENDLESS = frozenset(
    b"area base br col embed hr img input link meta param source track wbr p li dt dd option optgroup tr td "
    b"th tbody thead tfoot colgroup rt rp path circle rect line polygon polyline use stop "
    b"html head body".split()
)
_PLAIN = LexborDocumentOptions.WO_EVENTS.value
_BETWEEN = re.compile(rb"[\s/]+")
MAX_LANGUAGE = 35  # characters: any tag of RFC 5646 that is not private
_NAMES = ("property", "name", "http-equiv")  # attributes that name a meta element
_ABOUT_USE = ("robots", "tdm-reservation", "tdm-policy")
_USE_HEADERS = ("x-robots-tag", "tdm-reservation", "tdm-policy")
_LANGUAGES = ("content-language", "language")
_OPEN_GRAPH = ("og:image", "og:image:url", "og:image:secure_url", "og:image:alt")
_TELLING = {*_ABOUT_USE, *_LANGUAGES, *_OPEN_GRAPH}

Header = Callable[[str], str | None]  # the value of an HTTP header by its name in lower case
Metas = Sequence[tuple[str, str]]


def html_page(body: bytes, url: str, date: str | None, header: Header) -> Page:
    """The pictures of a page.

    Raises RowError with page_too_long, page_attributes or page_too_deep.
    """
    _refuse_slow(body, url)
    tree = LexborHTMLParser(page_text(body, header("content-type")), options=_PLAIN)
    metas = telling_metas(node.attributes for node in tree.css("meta"))
    bases = (node.attributes.get("href") for node in tree.css("base"))
    title = tree.css_first("head title")
    page = Page(
        url=url,
        base=base_of(url, next((href for href in bases if href), None)),
        title=" ".join(title.text()[:MAX_TITLE].split()) or None if title else None,
        language=_language(tree, metas, header),
        date=date,
        signals=signals(metas, header),
    )
    around = _Surroundings()
    for image in tree.css("img"):
        page.add(around.url(image), around.texts(image))
    add_open_graph(page, metas)
    for script in tree.css("script[type]"):
        if (script.attributes["type"] or "").strip().lower() == "application/ld+json":
            _add_linked_data(page, script.text())
    return page


def _refuse_slow(body: bytes, url: str) -> None:
    """Raises RowError for a page that the parser might spend seconds on."""
    if len(body) > MAX_PAGE:
        raise RowError("page_too_long", url)
    long = (tag.group() for tag in _TAG.finditer(body) if tag.end() - tag.start() > 2 * MAX_ATTRIBUTES)
    if any(len(_BETWEEN.split(_QUOTED.sub(b" ", tag))) > MAX_ATTRIBUTES for tag in long):
        raise RowError("page_attributes", url)
    if body.count(b"<") > FEW_TAGS:
        steps = (-1 if end else 1 for end, name in _NAME.findall(body) if name.lower() not in _ENDLESS)
        if max(accumulate(steps), default=0) > MAX_DEPTH:
            raise RowError("page_too_deep", url)


def telling_metas(metas: Iterable[Mapping[str, Any]]) -> Metas:
    """Of meta elements those that are looked at: their names in lower case, with what they say."""
    found = []
    for meta in metas:
        name = meta.get("property") or meta.get("name") or meta.get("http-equiv")
        if isinstance(name, str) and (name := name.strip().lower()) in _TELLING:
            content = meta.get("content")
            if isinstance(content, str) and content:
                found.append((name, content))
    return found


def _language(tree: LexborHTMLParser, metas: Metas, header: Header) -> str | None:
    root = tree.css_first("html")
    said = ((root.attributes.get("lang") if root else None) or "").strip()
    return said[:MAX_LANGUAGE] if said else language(metas, header)


def language(metas: Metas, header: Header) -> str | None:
    """The language that a page's meta elements or its server name."""
    said = next((content for name, content in metas if name in _LANGUAGES), header("content-language"))
    return said.strip()[:MAX_LANGUAGE] or None if said else None


def signals(metas: Metas, header: Header) -> dict[str, str]:
    """What a page and its server say about its use, each by its name in lower case, as it is said."""
    found: dict[str, str] = {}
    said = [*((name, content) for name, content in metas if name in _ABOUT_USE)]
    said += [(name, value) for name in _USE_HEADERS if (value := header(name))]
    for name, content in said:
        found[name] = f"{found[name]}, {content}" if name in found else content
    return {name: content[:MAX_SIGNAL] for name, content in found.items()}


def add_open_graph(page: Page, metas: Metas) -> None:
    """Each `og:image` with the `og:image:alt` that follows it, before the next one."""
    pictures: list[list[str | None]] = []
    for name, content in metas:
        if name == "og:image" or (name == "og:image:url" and not (pictures and pictures[-1][0] == content)):
            pictures.append([content, None])
        elif name == "og:image:secure_url" and pictures:
            pictures[-1][0] = content
        elif name == "og:image:alt" and pictures:
            pictures[-1][1] = content
    for url, alt in pictures:
        page.add(url and url.strip(), (("og", alt),))


class _Surroundings:
    """What stands around a page's pictures, looked for once for each element that holds some."""

    def __init__(self) -> None:
        self._captions: dict[LexborNode, str | None] = {}
        self._sources: dict[LexborNode, str | None] = {}

    def url(self, image: LexborNode) -> str | None:
        """The URL of an `img`; in a `picture`, where it has none of its own, that of a `source`."""
        own = best_url(image.attributes.get)
        parent = image.parent
        if parent is None or parent.tag != "picture" or not (own is None or holds_place(own)):
            return own
        if parent not in self._sources:
            found = (best_url(node.attributes.get) for node in parent.css("source"))
            self._sources[parent] = next((url for url in found if url), None)
        return self._sources[parent] or own

    def texts(self, image: LexborNode) -> Iterator[tuple[str, str | None]]:
        """What an `img` and the figure around it say, with the name of where it is said."""
        said = image.attributes
        yield "alt", said.get("alt")
        yield "title", said.get("title")
        node = image.parent
        for _ in range(MAX_FIGURE_DEPTH):
            if node is None or node.tag == "figure":
                break
            node = node.parent
        if node is not None and node.tag == "figure":
            yield "figcaption", self._caption(node)

    def _caption(self, figure: LexborNode) -> str | None:
        if figure not in self._captions:
            node = figure.css_first("figcaption")
            self._captions[figure] = None if node is None else " ".join(node.text().split())
        return self._captions[figure]


def _add_linked_data(page: Page, text: str) -> None:
    """Every ImageObject of a JSON-LD script, however deep. What is no JSON is passed over."""
    try:
        waiting: list[Any] = [orjson.loads(text)]
    except ValueError:
        return
    for _ in range(MAX_LD_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(reversed(node))
        elif isinstance(node, dict):
            if _is_picture(node):
                _add_picture(page, node)
            waiting.extend(value for value in reversed(node.values()) if isinstance(value, dict | list))


def _is_picture(node: Mapping[str, Any]) -> bool:
    kind = node.get("@type")
    return kind == "ImageObject" or (isinstance(kind, list) and "ImageObject" in kind)


def _add_picture(page: Page, node: Mapping[str, Any]) -> None:
    url = next((node[key] for key in ("contentUrl", "url") if isinstance(node.get(key), str)), None)
    texts = (node.get(key) for key in ("caption", "description", "name"))
    page.add(url and url.strip(), [("jsonld", text) for text in texts if isinstance(text, str)])
