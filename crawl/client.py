"""One polite HTTP request for one picture: bounded in time and bytes, to judged addresses only.

The client answers with an outcome, one stable word, and never raises for what the web does. aiohttp reads the
answers; those that its parser refuses are asked for once more and read leniently.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import aiohttp
import yarl

from ..recipe import Fetch
from .address import Guard, NotPublicError, UnknownHostError
from .answer import PASSING, RETRIED, Answer, Ended
from .body import unpack
from .lenient import ask_leniently
from .optout import opted_out, robots_fields
from .pace import HostPace
from .redirect import check_port, redirect_target
from .url import USUAL_PORTS
from .visit import Headers, Visit
from .when import read_pause

__all__ = ["PASSING", "RETRIED", "Answer", "Client", "Visit"]

MAX_HEADER = 16_384  # bytes of one response header field; longer ones are read leniently
KEEP_ALIVE_S = 2.0  # most hosts are asked once: long-kept connections use up the file descriptors
MAX_CONNECT_S = 10.0
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

    async def read(self, most: int) -> bytes: ...


class _OddAnswer(Exception):
    """One that may be read leniently."""


class _StrictResponse:
    """An answer that aiohttp reads."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response, self.status, self.headers = response, response.status, response.headers

    async def read(self, most: int) -> bytes:
        length = self._response.content_length or 0
        if length > most:
            raise Ended("too_big", f"Content-Length {length}")
        if not _CODING.fullmatch(self.headers.get("Transfer-Encoding", "chunked")):
            raise _OddAnswer  # aiohttp would take chunks for the body
        body = bytearray()
        try:
            async for chunk in self._response.content.iter_any():
                body += chunk
                if len(body) > most:
                    raise Ended("too_big")
        except aiohttp.ClientPayloadError as error:
            if self.headers.get("Transfer-Encoding"):  # chunks that lack but their end, perhaps
                raise _OddAnswer from error
            raise
        return bytes(body)


class Client:
    """An HTTP session for one task: an async context manager."""

    def __init__(
        self, settings: Fetch, resolve: Mapping[str, str] | None = None, ports: Collection[int] = ()
    ) -> None:
        """ports: those of the list's rule, besides 80 and 443."""
        self.settings, self.ports = settings, ports
        self.guard = Guard(settings.allow_hosts, resolve or {})
        self.slots = asyncio.Semaphore(settings.concurrency)  # requests in flight, and bodies in memory
        self._hosts: dict[str, HostPace] = {}
        self._lenient: set[str] = set()  # host:port of those that the strict parser has refused
        self._headers = {
            "User-Agent": settings.user_agent,
            "Accept": "image/avif,image/webp,image/*;q=0.9,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }

    async def __aenter__(self) -> Client:
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
        await self._session.close()
        await self.guard.close()

    def visit(self, url: str) -> Visit:
        """A try at `url`, a canonical URL of the list, within deadline_s of network time."""
        own = yarl.URL(url, encoded=True).explicit_port  # of the list's URL, so by its rule
        return Visit(url, self.settings.deadline_s, {*self.ports, own or 80})

    async def get(self, url: str) -> Answer:
        """Ask once for `url`, following redirects."""
        visit = self.visit(url)
        while True:
            async with self.asking(visit) as answer:
                if answer.outcome != "redirect":
                    return answer

    @asynccontextmanager
    async def asking(self, visit: Visit) -> AsyncIterator[Answer]:
        """One request of a visit; a slot is held while its answer is in use. `redirect`: the visit goes on.

        Waiting for a turn at the host or for a slot does not count against the deadline.
        """
        host = _host_of(visit.url)
        pace = self._hosts.get(host)
        if pace is None:
            pace = self._hosts[host] = HostPace(self.settings)
        async with AsyncExitStack() as held:
            async with pace.turn():
                await held.enter_async_context(self.slots)
                answer = await self._paced(pace, visit)
            yield answer

    async def _paced(self, pace: HostPace, visit: Visit) -> Answer:
        if pace.left_alone:
            return Answer("too_many_requests", detail="not asked: its host refused for too long", asked=False)
        begun = asyncio.get_running_loop().time()
        answer = await self._hop(visit)
        visit.left_s -= asyncio.get_running_loop().time() - begun
        if answer.status in (429, 503):
            bare = visit.url if answer.status == 503 and answer.pause_s is None else None
            return replace(answer, is_limited=pace.refused(begun, answer.pause_s, bare))
        if answer.status is not None:
            pace.answered(begun)
        return answer

    async def _hop(self, visit: Visit) -> Answer:
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(visit.left_s):
                return await self._request(visit, seen)
        except Ended as error:
            return Answer(error.outcome, detail=error.detail, **seen)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(_outcome_of(error), detail=f"{type(error).__name__}: {error}"[:300], **seen)

    async def _request(self, visit: Visit, seen: dict[str, Any]) -> Answer:
        target = yarl.URL(visit.url, encoded=True)
        if target.scheme not in ("http", "https") or not target.raw_host or target.port is None:
            raise Ended("bad_url", "neither http nor https, or no host")
        self.guard.check_literal(target.raw_host, target.port)
        place, cookie = f"{target.raw_host}:{target.port}", visit.headers(target)
        if place not in self._lenient:
            try:
                async with self._session.get(target, allow_redirects=False, headers=cookie) as response:
                    return await self._read(_StrictResponse(response), visit, seen)
            except (aiohttp.ClientResponseError, _OddAnswer):  # a head or chunks that the parser refuses
                self._lenient.add(place)
            seen.clear()
        asked = ask_leniently(target, self._headers | cookie, self.guard, _trusted())
        async with asked as response:
            return await self._read(response, visit, seen)

    async def _read(self, response: _Response, visit: Visit, seen: dict[str, Any]) -> Answer:
        status, headers = response.status, response.headers
        seen.update(status=status, final_url=visit.url)
        if 200 <= status < 400 and self._is_opted_out(headers):
            raise Ended("opted_out")
        if status in (301, 302, 303, 307, 308):
            return self._redirect(headers, visit, status)
        refused = _refusal(status)
        if refused is not None:
            pause_s = read_pause(headers.get("Retry-After", ""), headers.get("Date", ""), time.time())
            return Answer(refused, pause_s=pause_s, **seen)
        most = self.settings.max_bytes
        return Answer("ok", unpack(await response.read(most), headers, most), **seen)

    def _is_opted_out(self, headers: Headers) -> bool:
        fields = robots_fields(headers)
        return bool(fields) and opted_out(fields, self.settings.opt_outs, self.settings.user_agent)

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
        return (
            going_on
            if visit.redirects <= self.settings.max_redirects
            else replace(going_on, outcome="redirects")
        )


def _host_of(url: str) -> str:
    return yarl.URL(url, encoded=True).raw_host or ""


def _refusal(status: int) -> str | None:
    """The outcome of a status that brings no picture, or None."""
    if 200 <= status < 300:
        return "empty" if status in (204, 205) else None
    if 500 <= status < 600:  # above, LinkedIn's 999 for one, is a refusal
        return "server_error"
    named = {404: "not_found", 410: "not_found", 408: "timeout", 429: "too_many_requests"}
    return named.get(status, "client_error" if status >= 400 else "bad_response")


def _outcome_of(error: Exception) -> str:
    """The word for what the network did. A specific class stands before those that it is one of."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    for kind, outcome in (
        (NotPublicError, "not_public"),
        (UnknownHostError, "dns_unknown"),
    ):
        if isinstance(cause, kind):
            return outcome
    for kind, outcome in (
        (aiohttp.ClientConnectorDNSError, "dns_failed"),
        (socket.gaierror, "dns_failed"),
        (ssl.SSLError, "tls"),
        (ssl.CertificateError, "tls"),
        (aiohttp.ClientSSLError, "tls"),
        (TimeoutError, "timeout"),
        (aiohttp.InvalidURL, "bad_url"),
        (aiohttp.ClientResponseError, "bad_response"),
        (aiohttp.ClientPayloadError, "connection"),
        (aiohttp.ClientConnectionError, "connection"),
        (OSError, "connection"),
    ):
        if isinstance(error, kind):
            return outcome
    return "bad_response"
