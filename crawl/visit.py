"""One try at a URL, over all its redirects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import aiohttp
import yarl
from multidict import CIMultiDict, CIMultiDictProxy

Headers = CIMultiDict[str] | CIMultiDictProxy[str]


@dataclass(slots=True)
class Visit:
    """Where the redirects have led, their cookies, and the network time that is left."""

    url: str
    left_s: float
    ports: Collection[int]  # besides 80 and 443, that redirects may lead to
    redirects: int = 0
    cookies: aiohttp.CookieJar | None = None  # made when a redirect sets one

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
