"""One try at a URL, over all its redirects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import aiohttp
import yarl
from multidict import CIMultiDict, CIMultiDictProxy

from .signal import Signal

Headers = CIMultiDict[str] | CIMultiDictProxy[str]


@dataclass(slots=True)
class Visit:
    """Where the redirects have led, their cookies, and the network time that is left."""

    url: str
    left_s: float
    ports: Collection[int]  # besides 80 and 443, that redirects may lead to
    max_redirects: int
    is_notice: bool = False  # of a file by which a site speaks to crawlers, and not of a picture
    redirects: int = 0
    cookies: aiohttp.CookieJar | None = None  # made when a redirect sets one
    signals: list[Signal] = field(default_factory=list)  # what was said on the way against using it

    def keep_cookies(self, headers: Headers, url: yarl.URL) -> None:
        """What a redirect sets is sent to where it leads, by the rules of cookies, and nowhere else."""
        said = headers.getall("Set-Cookie", [])
        if said:
            self.cookies = self.cookies or aiohttp.CookieJar(unsafe=True, quote_cookie=False)
            self.cookies.update_cookies_from_headers(said, url)

    def headers(self, url: yarl.URL) -> dict[str, str]:
        """The Cookie field, if there is one to send."""
        found = self.cookies.filter_cookies(url).values() if self.cookies is not None else ()
        pairs = "; ".join(f"{cookie.key}={cookie.coded_value}" for cookie in found)
        return {"Cookie": pairs} if pairs and pairs.isprintable() else {}
