"""The canonical form of a URL, as WHATWG defines it and browsers do it: one picture, one spelling.

Decided here: only http and https; the fragment goes, it never reaches a server; `//host/x` is taken as
https; a URL with a user name or password is refused, for it is either a leaked secret or a trick; a bare
`host/x` is invalid. A port other than 80 and 443 must be allowed by the recipe. HTML character references are
decoded first, however often they were escaped: the `#` of `&#038;` begins no fragment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import can_ada
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RowError
from .entities import ENTITY, decode_entities
from .patch import patch

USUAL_PORTS = {80, 443}
ANY_PORT = 0
WEB = {"http:", "https:"}

# URLs that are canonical already, by a part of the WHATWG grammar that RE2 can check: an ASCII lower-case
# host whose last label starts with a letter (so no IPv4), no double hyphen (so no "xn--"), no port, no
# credentials, no path segment that starts with "." or "%" (so no ".."), no ";" (so no "&amp;"), nothing to be
# percent-encoded.
_LABEL = "[a-z0-9]+(?:-[a-z0-9]+)*"
_SEGMENT = "[A-Za-z0-9!$&'()*+,:=@_~-][A-Za-z0-9!$%&'()*+,.:=@_~-]*"
_QUERY = "[A-Za-z0-9!$%&()*+,./:=?@_~-]*"
CANONICAL = rf"^https?://(?:{_LABEL}\.)+[a-z](?:-?[a-z0-9]+)*(?:/(?:{_SEGMENT})?)+(?:\?{_QUERY})?$"


def canonical_url(text: str | None, *, ports: Collection[int] = (), max_bytes: int = 2_048) -> str:
    """The canonical URL of a listed one: ASCII, no fragment, default port or upper-case host; idempotent.

    ports: allowed besides 80 and 443; 0 among them allows any.
    max_bytes: of the canonical form.
    Raises RowError with url_missing, url_invalid, url_scheme, url_credentials, url_port or url_too_long.
    """
    text = (text or "").strip()
    while (decoded := decode_entities(text)) != text:
        text = decoded.strip()
    if not text:
        raise RowError("url_missing")
    canonical = web_url(text, ports=ports, max_bytes=max_bytes)
    if decode_entities(canonical) != canonical:  # a tab stood in its middle
        return canonical_url(canonical, ports=ports, max_bytes=max_bytes)
    return canonical


def web_url(text: str, *, ports: Collection[int], max_bytes: int) -> str:
    """As `canonical_url`, of a URL that comes out of no markup: `&amp;` in a redirect is what it says."""
    try:
        url = can_ada.parse(f"https:{text}" if text.startswith("//") else text)
    except (ValueError, TypeError) as error:  # TypeError: a lone surrogate
        raise RowError("url_invalid") from error
    if url.protocol not in WEB:
        raise RowError("url_scheme")
    if url.has_credentials():
        raise RowError("url_credentials")
    if url.port and ANY_PORT not in ports and int(url.port) not in {*USUAL_PORTS, *ports}:
        raise RowError("url_port")
    canonical = url.href.partition("#")[0]  # every other "#" is percent-encoded
    if len(canonical) > max_bytes:
        raise RowError("url_too_long")
    return canonical


def bears_entity(column: pa.Array) -> pa.Array:
    """(N,) whether a string has what may be a character reference; NULL where it is NULL."""
    return pc.match_substring_regex(column, ENTITY)


def canonical_urls(
    column: pa.Array, *, ports: Collection[int] = (), max_bytes: int = 2_048
) -> tuple[pa.Array, pa.Array]:
    """`canonical_url` of (N,) strings: the URLs, NULL where refused, and the reasons, NULL where not."""
    is_fine = pc.and_(
        pc.match_substring_regex(column, CANONICAL),
        pc.less_equal(pc.binary_length(column), max_bytes),
    )
    slow: Callable[[str | None], str] = partial(canonical_url, ports=ports, max_bytes=max_bytes)
    return patch(column, is_fine, slow)
