"""The text of a page: in the encoding that its first bytes, its server or itself names, else as it looks."""

from __future__ import annotations

import re

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_NAMED = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';,>/]+)", re.IGNORECASE)
_META = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?\s*([^\s\"';,>/]+)", re.IGNORECASE)
_NOT_ASCII = ("utf-16", "iso-2022", "iso2022")  # whose bytes may be UTF-8 by chance
META_BYTES = 4_096  # of a page's beginning: the standard says 1,024, and pages are late


def page_text(body: bytes, content_type: str | None) -> str:
    """The text of a page, U+FFFD for what cannot be decoded.

    In the order of the standard (HTML, 13.2.3.2): a byte order mark, the header, the page's own meta element,
    and then what the bytes look like. UTF-8 that is without fault is believed before a name that is not it.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, "replace")
    said = _NAMED.search(content_type or "")
    meta = None if said else _META.search(body[:META_BYTES])
    label = said.group(1) if said else meta.group(1).decode("ascii", "replace") if meta else ""
    name = map_encoding_to_html5(label, fallback_utf8=False) if label else None
    if meta and name and name.startswith("utf-16"):
        name = "utf-8"  # a meta element that could be read as ASCII is not UTF-16
    if name is None or not name.startswith(_NOT_ASCII):
        try:
            return body.decode("utf-8")
        except UnicodeDecodeError:
            pass
    if name == "utf-8" and _mostly_utf8(body):
        return body.decode("utf-8", "replace")
    if name is None or name == "utf-8":
        name = detect_encoding(body, html5_compatible=True) or "cp1252"
    return bytes_to_str(body, name, errors="replace", fallback_encodings=(), strip_bom=True)


def _mostly_utf8(body: bytes) -> bool:
    """Whether few of the characters outside ASCII are broken: a page that was cut, or has a bad byte."""
    text = body.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    return bad * 10 <= sum(map(len, re.findall(r"[^\x00-\x7f]+", text)))
