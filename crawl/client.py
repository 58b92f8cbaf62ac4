"""One polite HTTP request for one picture: bounded in time and bytes, to judged addresses only.

The client answers with an outcome, one stable word, and never raises for what the web does.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urljoin

import aiohttp
import yarl

from ..errors import RowError
from ..recipe import Fetch
from .address import Guard, NotPublicError, UnknownHostError
from .optout import opted_out
from .url import ANY_PORT, canonical_url

# worth another try at once, with a pause between; a host that timed out is left to --retry-failed
RETRIED = frozenset({"connection", "dns_failed", "server_error", "too_many_requests"})
PASSING = RETRIED | {"timeout"}  # what `plan_retry` asks for again
LONGEST_PAUSE_S = 30.0  # however long a Retry-After is
MAX_HEADER = 16_384  # bytes of one response header field
KEEP_ALIVE_S = 2.0  # most hosts are asked once: long-kept connections use up the file descriptors
MAX_CONNECT_S = 10.0
PRINTABLE = "".join(map(chr, range(32, 127)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    outcome: str  # 'ok' with a body, or why not
    body: bytes = b""
    status: int | None = None  # of the last response
    final_url: str | None = None  # of the last response
    pause_s: float | None = None  # Retry-After
    detail: str = ""  # for the log only


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Certificates are checked; the system's list is read once per process, for that takes 50 ms."""
    return ssl.create_default_context()


class _Ended(Exception):
    """The request is over with this outcome."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(outcome)
        self.outcome, self.detail = outcome, detail


class Client:
    """An HTTP session for one task: an async context manager."""

    def __init__(self, settings: Fetch, resolve: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.guard = Guard(settings.allow_hosts, resolve or {})
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(settings.per_host)
        )

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
            headers={
                "User-Agent": self.settings.user_agent,
                "Accept": "image/avif,image/webp,image/*;q=0.9,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=MAX_CONNECT_S),
            trust_env=False,
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self.guard.close()

    async def get(self, url: str) -> Answer:
        """Ask once for `url`, a canonical URL, following redirects, within deadline_s of network time.

        Waiting for a turn at a host does not count against the deadline.
        """
        left_s, answer = self.settings.deadline_s, Answer("redirects")
        loop = asyncio.get_running_loop()
        for _ in range(self.settings.max_redirects + 1):
            async with self._slots[_host_of(url)]:
                begun = loop.time()
                answer = await self._hop(url, left_s)
                left_s -= loop.time() - begun
            if answer.outcome != "redirect":
                return answer
            url = answer.final_url or ""
        return Answer("redirects", status=answer.status, final_url=url)

    async def _hop(self, url: str, left_s: float) -> Answer:
        """One request; of a redirect, `final_url` is the place that it points to."""
        seen: dict[str, Any] = {}
        try:
            async with asyncio.timeout(left_s):
                return await self._request(url, seen)
        except _Ended as error:
            return Answer(error.outcome, detail=error.detail, **seen)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(_outcome_of(error), detail=f"{type(error).__name__}: {error}"[:300], **seen)

    async def _request(self, url: str, seen: dict[str, Any]) -> Answer:
        target = yarl.URL(url, encoded=True)
        if target.scheme not in ("http", "https") or not target.raw_host or target.port is None:
            raise _Ended("bad_url", "neither http nor https, or no host")
        self.guard.check_literal(target.raw_host, target.port)
        async with self._session.get(target, allow_redirects=False) as response:
            seen.update(status=response.status, final_url=url)
            if 300 <= response.status < 400 or response.status == 200:
                fields = response.headers.getall("X-Robots-Tag", ())
                if opted_out(fields, self.settings.opt_outs, self.settings.user_agent):
                    raise _Ended("opted_out")
            if response.status in (301, 302, 303, 307, 308):
                return Answer("redirect", status=response.status, final_url=_redirect_of(url, response))
            refused = _refusal(response.status)
            if refused is not None:
                return Answer(refused, pause_s=_retry_after(response), **seen)
            return Answer("ok", await self._body(response), **seen)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        most = self.settings.max_bytes
        if (response.content_length or 0) > most:
            raise _Ended("too_big", f"Content-Length {response.content_length}")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > most:
                raise _Ended("too_big")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        return bytes(body) if encoding in ("", "identity") else _inflate(bytes(body), encoding, most)


def _host_of(url: str) -> str:
    return yarl.URL(url, encoded=True).raw_host or ""


def _redirect_of(url: str, response: aiohttp.ClientResponse) -> str:
    """The canonical URL that a redirect points to: http or https, without credentials."""
    said = response.headers.get("Location", "").strip()
    if not said:
        raise _Ended("bad_response", "redirect without Location")
    location = quote(
        said.encode("utf-8", "surrogateescape"), safe=PRINTABLE
    )  # bytes as they came: any encoding
    try:
        return canonical_url(urljoin(url, location), ports=(ANY_PORT,), max_bytes=MAX_HEADER)
    except (RowError, ValueError) as error:
        raise _Ended("bad_url", f"redirect to {location[:200]!r}") from error


def _refusal(status: int) -> str | None:
    """The outcome of a status that brings no picture, or None."""
    if 200 <= status < 300:
        return "empty" if status in (204, 205) else None
    if 500 <= status < 600:  # above, LinkedIn's 999 for one, is a refusal
        return "server_error"
    named = {404: "not_found", 410: "not_found", 408: "timeout", 429: "too_many_requests"}
    return named.get(status, "client_error" if status >= 400 else "bad_response")


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    said = response.headers.get("Retry-After", "").strip()
    return min(float(said), LONGEST_PAUSE_S) if said.isascii() and said.isdigit() else None


def _inflate(body: bytes, encoding: str, most: int) -> bytes:
    """Unpack a body that was compressed though nobody asked for it; stops at `most` bytes."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _Ended("bad_response", f"Content-Encoding {encoding[:40]!r}")
    try:
        plain = zlib.decompressobj(wbits=47).decompress(body, most + 1)  # 47: gzip or zlib, by its header
    except zlib.error as error:
        raise _Ended("bad_response", f"{encoding}: {error}") from error
    if len(plain) > most:
        raise _Ended("too_big", f"{encoding} of {len(body)} bytes")
    return plain


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
