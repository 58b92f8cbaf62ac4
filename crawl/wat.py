"""The pictures of a page from its WAT record, Common Crawl's JSON extract of a page's links and head.

Most of a record are links to other pages, so that only what is needed is taken out of its bytes and parsed.
That is exact, not a guess: within a JSON string a quote bears a backslash, so that `{"` before a letter, or
`,"path":"`, stands nowhere but where an object or a key begins. Whatever does not fit is parsed as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from ..errors import RowError
from .images import SETS, URLS, Page, base_of, largest
from .page import MAX_TITLE, add_open_graph, language, signals, telling_metas

NEEDLE = b'"path":"IMG@/'
ALT, NO_ALT = b'"alt":"', b'"alt":""'
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_CLOSING = {
    b'"Metas":': b"}]",
    b'"Headers":': b"}",
}  # both hold strings alone: cut within one they are no JSON
_HEAD_KEYS = {name: f'"{name}":'.encode() for name in ("Title", "Base", "Metas")}
_HEADER_KEYS = {name: f'"{name}":'.encode() for name in ("WARC-Target-URI", "WARC-Date")}
_TOLD_IN_HEADERS = (b'"content-language"', b'"x-robots-tag"', b'"tdm-')
_URL_PATHS = {f"IMG@/{name}" for name in URLS}
_SET_PATHS = {f"IMG@/{name}" for name in SETS}


def wat_page(body: bytes) -> Page | None:
    """The page of a WAT record; None of a record that is no page's, or whose page has no pictures.

    Raises RowError with record_unreadable.
    """
    if b"IMG@" not in body and b"og:image" not in body:
        return None
    try:
        return _fast_page(body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return whole_page(body)


def whole_page(body: bytes) -> Page | None:
    """What `wat_page` gives, by its definition: from all of the JSON."""
    try:
        envelope = orjson.loads(body)["Envelope"]
        answer = envelope["Payload-Metadata"].get("HTTP-Response-Metadata")
        if not answer or "HTML-Metadata" not in answer:
            return None
        html = answer["HTML-Metadata"]
        head = html.get("Head") or {}
        page = _page(envelope["WARC-Header-Metadata"], answer.get("Headers"), head)
        links = [link for link in html.get("Links") or () if link.get("path", "").startswith("IMG@/")]
        said = {orjson.dumps(link): link for link in links}
        page.n_copies = len(links) - len(said)
        for link in said.values():
            _add_link(page, link)
        return page or None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RowError("record_unreadable") from error


def _fast_page(body: bytes) -> Page | None:
    """As `whole_page`. Raises ValueError or KeyError where a part does not stand where it usually does."""
    at = body.find(b'"HTML-Metadata":{')
    links_at, head_at = body.find(b'"Links":[', at), at + 17
    if not body.startswith(b'"Head":{', head_at):
        head_at = body.rfind(b'"Head":{', at)
    if not (0 <= at < links_at and at < head_at):
        raise ValueError("no page, or one that is spelled otherwise")
    header = {name: _value(body, key, 0, at) for name, key in _HEADER_KEYS.items()}
    answered = body[:at].lower()
    spoken = any(name in answered for name in _TOLD_IN_HEADERS)
    answered = _value(body, b'"Headers":', 0, at) if spoken else None
    page = _page(header, answered, _head(body, head_at, links_at if head_at < links_at else len(body)))
    links = _image_links(body, links_at)
    said = dict.fromkeys(links)
    page.n_copies = len(links) - len(said)
    told = [link for link in said if (ALT in link and NO_ALT not in link) or not _is_bare(link)]
    page.n_without_text += len(said) - len(told)
    parsed = orjson.loads(b"[%b]" % b",".join(told)) if told else ()
    if len(parsed) != len(told):
        raise ValueError("two links that are cut within strings, and are one between them")
    for link in parsed:
        _add_link(page, link)
    return page or None


def _head(body: bytes, begin: int, end: int) -> dict[str, Any]:
    return {name: _value(body, key, begin, end) for name, key in _HEAD_KEYS.items()}


def _is_bare(link: bytes) -> bool:
    """Whether a link without `alt` is a plain `src` without `title` too: it need not be parsed.

    Not one that may be cut within a string that holds a brace: parsing that fails, so that all is parsed.
    """
    if link.endswith((b'":"}', b'\\"}')) or link.startswith(b'{",'):
        return False
    return b'"IMG@/src"' in link and (b'"title":"' not in link or b'"title":""' in link)


def _image_links(body: bytes, at: int) -> list[bytes]:
    """The JSON of each link of an `img` element."""
    found: list[bytes] = []
    find, rfind = body.find, body.rfind
    at = find(NEEDLE, at)
    while at >= 0:
        end = find(b'"}', at) + 2
        if end < at:
            raise ValueError("a link without an end")
        found.append(body[rfind(b'{"', 0, at + 1) : end])
        at = find(NEEDLE, end)
    if not found and b"IMG@" in body:
        raise ValueError("images that are spelled otherwise")
    return found


def _value(body: bytes, key: bytes, begin: int, end: int) -> Any:
    """The value of a key between two places of a record, or None. Raises ValueError for a wrong cut."""
    at = body.find(key, begin, end)
    if at < 0:
        return None
    if body[at - 1] not in b",{":
        raise ValueError(f"{key!r} is no key")
    at += len(key)
    closing = _CLOSING.get(key)
    if closing:
        return orjson.loads(body[at : body.find(closing, at) + len(closing)])
    value = body[at : body.find(b'"', at + 1) + 1]
    if b"\\" in value:
        said = _TEXT.match(body, at)
        value = said.group() if said else b""
    return orjson.loads(value)


def _page(header: Any, answered: Any, head: Mapping[str, Any]) -> Page:
    """A page with the pictures that its head names."""
    headers = {name.lower(): said for name, said in (answered or {}).items() if isinstance(said, str)}
    metas = telling_metas(head.get("Metas") or ())
    url = header["WARC-Target-URI"]
    page = Page(
        url=url,
        base=base_of(url, head.get("Base")),
        title=" ".join((head.get("Title") or "")[:MAX_TITLE].split()) or None,
        language=language(metas, headers.get),
        date=header.get("WARC-Date"),
        signals=signals(metas, headers.get),
    )
    add_open_graph(page, metas)
    return page


def _add_link(page: Page, link: Mapping[str, Any]) -> None:
    path, url = link["path"], link.get("url")
    if path != "IMG@/src":
        if path in _SET_PATHS:
            url = largest(url or "")
        elif path not in _URL_PATHS:
            return
    page.add_image(url and url.strip(), link.get("alt"), link.get("title"))
