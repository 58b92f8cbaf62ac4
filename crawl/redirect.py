"""Where a redirect leads: Location joined to its URL by the WHATWG rules, as browsers do."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import quote, urlsplit

from ..errors import RowError
from .answer import Ended
from .url import ANY_PORT, web_url

MAX_LOCATION = 16_384  # bytes
_PRINTABLE = "".join(map(chr, range(127)))
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


def join(base: str, location: str) -> str:
    """The URL, not yet canonical, that `location` means on the page `base`, a canonical http or https URL.

    Tabs and line ends go, as do blanks about it; backslashes are slashes; `http:x.jpg` may be `x.jpg`.
    """
    text = re.sub(r"[\t\r\n]", "", location.strip("".join(map(chr, range(33)))))
    scheme, host, path, query, _ = urlsplit(base)
    named = _SCHEME.match(text)
    if named is not None:
        if named[1].lower() != scheme:
            return text
        text = text[named.end() :]
    if re.match(r"[/\\]{2}", text):
        return f"{scheme}:{text}"
    site = f"{scheme}://{host}"
    if text[:1] in ("/", "\\"):
        return site + text
    if not text or text[0] == "#":
        return f"{site}{path}?{query}" if query else site + path
    return f"{site}{path}{text}" if text[0] == "?" else f"{site}{path.rpartition('/')[0]}/{text}"


def redirect_target(base: str, location: str) -> str:
    """The canonical URL of a redirect: http or https, without credentials, any port.

    location: as aiohttp reads it, UTF-8 with other bytes as surrogates. Raises Ended.
    """
    if not location.strip():
        raise Ended("bad_response", "redirect without Location")
    ascii_only = quote(location.encode("utf-8", "surrogateescape"), safe=_PRINTABLE)  # bytes as they came
    try:
        return web_url(join(base, ascii_only), ports=(ANY_PORT,), max_bytes=MAX_LOCATION)
    except (RowError, ValueError) as error:
        raise Ended("bad_url", f"redirect to {ascii_only[:200]!r}") from error


def check_port(url: str, allowed: Collection[int]) -> None:
    """Hold the list's rule for ports on a redirect. allowed: besides 80 and 443; 0 among them allows any.

    Raises Ended.
    """
    try:
        web_url(url, ports=allowed, max_bytes=MAX_LOCATION)
    except RowError as error:
        raise Ended("bad_url", f"redirect to a port that the list may not name: {url[:200]!r}") from error
