"""Which addresses may be connected to: public ones, and those that the recipe names.

A name is resolved, every address of it is judged, and only judged addresses reach the socket: the
socket factory refuses any other, so that no path through the HTTP library goes round the check.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from ..errors import ConfigError

RESOLVER_THREADS = 64  # getaddrinfo blocks; a dead name server blocks it for ten seconds

_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local: cloud metadata lives here
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocols, among them Teredo, which hides an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4 hides one too
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotPublicError(OSError):
    """A host none of whose addresses may be connected to."""


class UnknownHostError(OSError):
    """A name that does not exist."""


def is_public(address: str) -> bool:
    """Whether an IP address is one on the open internet.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged itself; 6to4, Teredo, a zone id and
    whatever is no IP address at all are not public.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _NOT_PUBLIC_4)
    if ip.scope_id is not None:
        return False
    if ip.ipv4_mapped is not None:
        return is_public(str(ip.ipv4_mapped))
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip in _GLOBAL_6 and not any(ip in network for network in _NOT_PUBLIC_6)


def _found(host: str, address: str, port: int, family: int) -> ResolveResult:
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)


def _parse_place(name: str, place: str) -> tuple[str, int]:
    address, _, port = place.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare)), int(port)
    except ValueError as error:
        raise ConfigError(
            f"run.resolve, {name}: {place!r} is not address:port, such as 127.0.0.1:8080"
        ) from error


def check_places(allow_hosts: Iterable[str], stand_ins: Mapping[str, str]) -> None:
    """Raises ConfigError for what can name no place, before anything is fetched."""
    named = [("fetch.allow_hosts", name) for name in allow_hosts] + [
        ("run.resolve", name) for name in stand_ins
    ]
    for setting, name in named:
        host, _, port = name.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ConfigError(f"{setting}: {name!r} is not host:port, such as example.com:443")
    for name, place in stand_ins.items():
        _parse_place(name, place)


class Guard(AbstractResolver):
    """Resolves names for one task, remembers the answers, and passes judged addresses only.

    allow_hosts: host:port pairs that may be reached though their address is not public.
    stand_ins: host:port of a name to the address:port that is connected to in its place, public or not.
    """

    def __init__(self, allow_hosts: Iterable[str] = (), stand_ins: Mapping[str, str] | None = None) -> None:
        self.allow_hosts = frozenset(allow_hosts)
        self.stand_ins = {name: _parse_place(name, place) for name, place in (stand_ins or {}).items()}
        self._judged: set[tuple[str, int]] = set()
        self._lookups: dict[str, asyncio.Task[list[tuple[int, str]]]] = {}
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="dns")

    def judge(self, host: str, port: int, address: str) -> bool:
        """Whether `host:port` may be reached at `address`; if so, the socket factory lets it through."""
        good = is_public(address) or f"{host}:{port}" in self.allow_hosts
        if good:
            self._judged.add((address, port))
        return good

    def is_named(self, host: str, port: int) -> bool:
        """Whether the recipe itself names `host:port`."""
        return f"{host}:{port}" in self.allow_hosts or f"{host}:{port}" in self.stand_ins

    def check_literal(self, host: str, port: int) -> None:
        """Judge a host that is an IP address itself, which the HTTP library does not resolve.

        Raises NotPublicError. A name passes: it is judged when it is resolved.
        """
        bare = host.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(bare)
        except ValueError:
            return
        if not self.judge(host, port, bare):
            raise NotPublicError(f"{host} is not a public address")

    async def places(self, host: str, port: int) -> list[ResolveResult]:
        """The judged addresses of a host that is a name or an address itself. Raises as `resolve` does."""
        bare = host.removeprefix("[").removesuffix("]")
        try:
            version = ipaddress.ip_address(bare).version
        except ValueError:
            return await self.resolve(host, port)
        self.check_literal(host, port)
        return [_found(host, bare, port, socket.AF_INET if version == 4 else socket.AF_INET6)]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The judged addresses of `host`.

        Raises UnknownHostError, NotPublicError where none is left, and OSError for a lookup that may
        succeed another time.
        """
        name = host.removesuffix(".")
        place = self.stand_ins.get(f"{name}:{port}")
        if place is not None:
            self._judged.add(place)
            kind = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
            return [_found(host, *place, kind)]
        found = [
            _found(host, address, port, kind)
            for kind, address in await self._addresses(name)
            if family in (socket.AF_UNSPEC, kind) and self.judge(name, port, address)
        ]
        if not found:
            raise NotPublicError(f"{host} has no public address")
        return found

    async def _addresses(self, name: str) -> list[tuple[int, str]]:
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = self._lookups[name] = asyncio.ensure_future(self._look_up(name))
            lookup.add_done_callback(
                lambda done: done.cancelled() or done.exception()
            )  # nobody may be waiting
        try:
            # shielded: the request that asked first may time out, others wait for the same answer
            return await asyncio.shield(lookup)
        except (NotPublicError, UnknownHostError):
            raise
        except OSError:
            self._lookups.pop(name, None)  # a passing failure is not remembered
            raise

    async def _look_up(self, name: str) -> list[tuple[int, str]]:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            )
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
                raise UnknownHostError(f"{name}: {error.strerror}") from error
            raise
        except UnicodeError as error:  # a label over 63 characters
            raise UnknownHostError(f"{name}: {error}") from error
        # addresses with a scope id are of a link, never public
        return [(family, str(address[0])) for family, _, _, _, address in infos]

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Socket factory of the connector: refuses an address that was not judged.

        address: (family, type, proto, canonical name, (host, port, …)).
        """
        family, kind, proto, _, place = address
        if (place[0], place[1]) not in self._judged:
            raise NotPublicError(f"{place[0]} port {place[1]} was not judged")
        return socket.socket(family, kind, proto)

    async def close(self) -> None:
        """Give the threads back without waiting for name servers that do not answer."""
        for lookup in self._lookups.values():
            lookup.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
