"""One polite HTTP request for one picture: bounded in time and bytes, to judged addresses only.

The client answers with an outcome, one stable word, and never raises for what the web does. aiohttp reads the
answers; those that its parser refuses are asked for once more and read leniently.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import aiohttp
import yarl

from ..recipe import Fetch
from .address import Guard
from .agent import user_agent
from .answer import PASSING, RETRIED, SILENCES, Answer, Ended
from .body import unpack
from .budget import own_hosts
from .consent import Consents, Known
from .lenient import ask_leniently
from .outcome import outcome_of, refusal
from .pace import HostPace
from .redirect import check_port, redirect_target
from .robots import MAX_BYTES as MAX_NOTICE
from .signal import decisive, header_signals
from .tries import Tries
from .turns import Shares, Turns
from .url import USUAL_PORTS
from .visit import Headers, Visit
from .when import read_pause

__all__ = ["PASSING", "RETRIED", "Answer", "Client", "Visit"]

MAX_HEADER = 16_384  # bytes of one response header field; longer ones are read leniently
KEEP_ALIVE_S = 2.0  # most hosts are asked once: long-kept connections use up the file descriptors
MAX_CONNECT_S = 10.0
MAX_UNPACKED = 8 * MAX_NOTICE  # of a robots.txt that was packed unasked
MIN_NOTICE_REDIRECTS = 5  # RFC 9309, section 2.3.1.2
_CODING = re.compile(r"\s*(?:[\w-]+\s*,\s*)*chunked\s*", re.IGNORECASE)


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Certificates are checked; the system's list is read once per process, for that takes 50 ms."""
    return ssl.create_default_context()


class _Response(Protocol):
    """What is asked of an answer, however its head was read."""

    status: int

    @property
    def headers(self) -> Headers: ...

    async def read(self, most: int, *, cut: bool = False) -> bytes: ...


class _OddAnswer(Exception):
    """One that may be read leniently."""


class _StrictResponse:
    """An answer that aiohttp reads."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response, self.status, self.headers = response, response.status, response.headers

    async def read(self, most: int, *, cut: bool = False) -> bytes:
        """The body, or of a longer one its beginning where `cut`. Raises Ended too_big, _OddAnswer."""
        length = self._response.content_length or 0
        if length > most and not cut:
            raise Ended("too_big", f"Content-Length {length}")
        if not _CODING.fullmatch(self.headers.get("Transfer-Encoding", "chunked")):
            raise _OddAnswer  # aiohttp would take chunks for the body
        body = bytearray()
        try:
            async for chunk in self._response.content.iter_any():
                body += chunk
                if len(body) > most:
                    if cut:
                        return bytes(body[: most + 1])
                    raise Ended("too_big")
        except aiohttp.ClientPayloadError as error:
            if self.headers.get("Transfer-Encoding"):  # chunks that lack but their end, perhaps
                raise _OddAnswer from error
            raise
        return bytes(body)


class Client:
    """An HTTP session for one task: an async context manager."""

    def __init__(
        self,
        settings: Fetch,
        resolve: Mapping[str, str] | None = None,
        ports: Collection[int] = (),
        *,
        known: Known | None = None,
        since: Mapping[str, float] | None = None,
        shares: Shares | None = None,
    ) -> None:
        """ports: those of the list's rule, besides 80 and 443. known, since: as `Consents` has them."""
        self.settings, self.ports = settings, ports
        self.turns = Turns(settings, own_hosts(settings, resolve or {}), shares or Shares())
        self.consents = Consents(
            settings, self._notice, self.turns.keep_apart, {} if known is None else known, since
        )
        proxy = yarl.URL(settings.proxy or "")
        through = (f"{proxy.raw_host}:{proxy.port}",) if proxy.raw_host and proxy.port else ()
        self.guard = Guard((*settings.allow_hosts, *through), resolve or {})
        if proxy.raw_host and proxy.port:
            self.guard.check_literal(proxy.raw_host, proxy.port)
        self._lenient: set[str] = set()  # host:port of those that the strict parser has refused
        self._headers = {
            "User-Agent": user_agent(settings),
            "Accept": "image/avif,image/webp,image/*;q=0.9,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }

    async def __aenter__(self) -> Client:
        self.turns.begin()
        connector = aiohttp.TCPConnector(
            limit=0,  # the task's own slots are the limit
            resolver=self.guard,
            use_dns_cache=False,  # the guard remembers
            keepalive_timeout=KEEP_ALIVE_S,
            socket_factory=self.guard.open_socket,
            ssl=_trusted(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # a compressed body is unpacked here, under the byte cap
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=MAX_CONNECT_S),
            trust_env=False,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.consents.close()
        await self._session.close()
        await self.guard.close()

    def visit(self, url: str, said: Iterable[str] = (), *, is_notice: bool = False) -> Visit:
        """A try at `url`, a canonical URL of the list, within deadline_s of network time.

        said: the page_signals of its pairs.
        """
        own = yarl.URL(url, encoded=True).explicit_port  # of the list's URL, so by its rule
        redirects = self.settings.max_redirects
        if is_notice:
            redirects = max(redirects, MIN_NOTICE_REDIRECTS)
        visit = Visit(url, self.settings.deadline_s, {*self.ports, own or 80}, redirects, is_notice)
        visit.signals += self.consents.of_pages(said)
        return visit

    async def get(self, url: str) -> Answer:
        """Ask once for `url`, following redirects."""
        visit = self.visit(url)
        while True:
            async with self.asking(visit) as answer:
                if answer.outcome != "redirect":
                    return answer

    async def _notice(self, url: str) -> Answer:
        """Ask for a file by which a site speaks to crawlers, as often as for a picture."""
        tries = Tries(self.settings)
        while True:
            visit, answer = self.visit(url, is_notice=True), Answer("redirect")
            while answer.outcome == "redirect":
                async with self._turn(visit) as answer:
                    pass
            if tries.is_last(answer):
                return answer
            await asyncio.sleep(tries.pause_s(answer))

    @asynccontextmanager
    async def asking(self, visit: Visit) -> AsyncIterator[Answer]:
        """One request of a visit; a slot is held while its answer is in use. `redirect`: the visit goes on.

        Nothing is asked where the site's own files forbid it. Waiting for them, for a turn at the host or for
        a slot does not count against the deadline.
        """
        refused = await self.consents.judge(visit)
        if refused is not None:
            yield refused
            return
        async with self._turn(visit) as answer:
            yield answer

    @asynccontextmanager
    async def _turn(self, visit: Visit) -> AsyncIterator[Answer]:
        async with AsyncExitStack() as held:
            async with self.turns.take(visit.url) as pace:
                held.callback(self.turns.slots.release)
                answer = await self._paced(pace, visit)
            yield answer

    async def _paced(self, pace: HostPace, visit: Visit) -> Answer:
        if pace.left_alone:
            return Answer(pace.left_alone, detail="not asked: its host is left alone", asked=False)
        begun = asyncio.get_running_loop().time()
        answer = await self._hop(visit)
        visit.left_s -= asyncio.get_running_loop().time() - begun
        if answer.status in (429, 503):
            bare = visit.url if answer.status == 503 and answer.pause_s is None else None
            return replace(answer, is_limited=pace.refused(begun, answer.pause_s, bare))
        if answer.status is not None:
            pace.answered(begun)
        elif answer.outcome in SILENCES:
            pace.failed(answer.outcome)
        return answer

    async def _hop(self, visit: Visit) -> Answer:
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(visit.left_s):
                return await self._request(visit, seen)
        except Ended as error:
            return Answer(error.outcome, detail=error.detail, **seen)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            reached = not isinstance(error, aiohttp.ConnectionTimeoutError)
            said = f"{type(error).__name__}: {error}"[:300]
            return Answer(outcome_of(error), detail=said, is_reached=reached, **seen)

    async def _request(self, visit: Visit, seen: dict[str, Any]) -> Answer:
        target = yarl.URL(visit.url, encoded=True)
        if target.scheme not in ("http", "https") or not target.raw_host or target.port is None:
            raise Ended("bad_url", "neither http nor https, or no host")
        self.guard.check_literal(target.raw_host, target.port)
        place, cookie = f"{target.raw_host}:{target.port}", visit.headers(target)
        if place not in self._lenient:
            try:
                async with self._session.get(
                    target, allow_redirects=False, headers=cookie, proxy=self.settings.proxy
                ) as response:
                    return await self._read(_StrictResponse(response), visit, seen)
            except (aiohttp.ClientResponseError, _OddAnswer) as error:  # that the parser refuses
                if self.settings.proxy:  # a lenient reading would go round it
                    refused = isinstance(error, aiohttp.ClientHttpProxyError)
                    raise Ended("connection" if refused else "bad_response", f"proxy: {error}") from error
                self._lenient.add(place)
            seen.clear()
        asked = ask_leniently(target, self._headers | cookie, self.guard, _trusted())
        async with asked as response:
            return await self._read(response, visit, seen)

    async def _read(self, response: _Response, visit: Visit, seen: dict[str, Any]) -> Answer:
        status, headers = response.status, response.headers
        seen.update(status=status, final_url=visit.url)
        seen.update(etag=headers.get("ETag"), last_modified=headers.get("Last-Modified"))
        if 200 <= status < 400 and not visit.is_notice:
            self._heed(headers, visit)
        if status in (301, 302, 303, 307, 308):
            return self._redirect(headers, visit, status)
        word = refusal(status)
        if word is not None:
            pause_s = read_pause(headers.get("Retry-After", ""), headers.get("Date", ""), time.time())
            return Answer(word, pause_s=pause_s, **seen)
        if visit.is_notice:
            body = await response.read(MAX_NOTICE, cut=True)
            return Answer("ok", unpack(body, headers, MAX_UNPACKED), **seen)
        most = self.settings.max_bytes
        return Answer("ok", unpack(await response.read(most), headers, most), **seen)

    def _heed(self, headers: Headers, visit: Visit) -> None:
        """Note what an answer says against its use. Raises Ended where that is respected."""
        found = list(header_signals(headers, self.settings, self.consents.names))
        visit.signals += found
        signal = decisive(found)
        if signal is not None and self.settings.consent == "respect":
            raise Ended(signal.reason, str(signal))

    def _redirect(self, headers: Headers, visit: Visit, status: int) -> Answer:
        """Move the visit on. Raises Ended, and NotPublicError for an address that is not."""
        url = redirect_target(visit.url, headers.get("Location", ""))
        target = yarl.URL(url, encoded=True)
        assert target.raw_host is not None
        assert target.port is not None
        self.guard.check_literal(target.raw_host, target.port)
        if target.port not in USUAL_PORTS and not self.guard.is_named(target.raw_host, target.port):
            check_port(url, visit.ports)
        visit.keep_cookies(headers, yarl.URL(visit.url, encoded=True))
        visit.url, visit.redirects = url, visit.redirects + 1
        going_on = Answer("redirect", status=status, final_url=url)
        return going_on if visit.redirects <= visit.max_redirects else replace(going_on, outcome="redirects")
