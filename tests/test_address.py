"""No connection to an address that is not public, whatever way leads there."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import can_ada
import pytest

from pairmill.crawl.address import Guard, NotPublicError, UnknownHostError, is_public
from pairmill.crawl.client import Client
from pairmill.errors import ConfigError
from pairmill.recipe import Fetch

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "172.15.255.255",
    "172.32.0.0", "223.255.255.255", "169.253.255.255", "192.0.3.0", "198.17.255.255", "198.20.0.0",
    "11.0.0.0", "126.255.255.255", "2606:4700::1111", "2a00:1450:4001::200e", "2400:cb00::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:4860:4860::8888",
]  # fmt: skip
NOT_PUBLIC = [
    "0.0.0.0", "0.255.255.255", "10.0.0.1", "10.255.255.255", "100.64.0.0", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "169.254.169.254", "169.254.0.0", "172.16.0.0", "172.31.255.255",
    "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.0",
    "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::8.8.8.8", "100::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2001:10::1", "2002:7f00:1::",
    "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
    "fec0::1", "ff02::1", "ff0e::1", "2606:4700::1111%1", "", "localhost", "127.1", "0x7f000001",
    "2130706433", "1.1.1.1.1",
]  # fmt: skip
SPELLINGS = [
    "http://127.0.0.1/", "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f000001/",
    "http://0x7f.1/", "http://0177.0.0.1/", "http://017700000001/", "http://0/", "http://0.0.0.0:80/",
    "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:a9fe:a9fe]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/",
    "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://169.254.169.254/latest/",
    "http://2852039166/", "http://0xa9fea9fe/", "http://0xA9.0xFE.0xA9.0xFE/",
    "http://0251.0376.0251.0376/", "http://１２７.0.0.1/", "http://127。0。0。1/", "http://①②⑦.0.0.1/",
    "http://127.0.0.1./", "http://%31%32%37.0.0.1/", "https://10.0.0.1/", "http://192.168.1.1:8080/",
    "http://100.64.0.1/", "http:127.0.0.1/", "http:\\\\127.0.0.1\\", "http://example.com@127.0.0.1/",
    "http://224.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_on_the_open_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_elsewhere_and_what_is_no_address_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Records every connection that is tried, and lets none through."""
    tried: list[object] = []

    async def refuse(_: object, sock: socket.socket, address: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    return tried


def outcome(url: str, settings: Fetch | None = None) -> str:
    async def ask() -> str:
        async with Client(settings or Fetch(deadline_s=5)) as client:
            return (await client.get(url)).outcome

    return asyncio.run(ask())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_an_inner_address_is_connected_to(spelling: str, no_sockets: list[object]) -> None:
    assert outcome(can_ada.parse(spelling).href) == "not_public"
    assert no_sockets == []


@pytest.mark.parametrize(
    "url", ["http://127.1/", "http://2130706433/", "http://[fe80::1%25eth0]/", "http://0x7f.1/"]
)
def test_a_url_that_is_not_canonical_is_not_connected_to_either(url: str, no_sockets: list[object]) -> None:
    assert outcome(url) != "ok"
    assert no_sockets == []


@pytest.mark.parametrize("scheme", ["file", "ftp", "gopher", "data", "ws", "unix", "jar"])
def test_another_scheme_is_refused_before_anything_is_opened(scheme: str, no_sockets: list[object]) -> None:
    assert outcome(f"{scheme}://example.com/x") == "bad_url"
    assert no_sockets == []


def test_a_name_of_an_inner_address_is_not_connected_to(no_sockets: list[object]) -> None:
    assert outcome("http://localhost/") == "not_public"
    assert outcome("http://localhost./") == "not_public"
    assert no_sockets == []


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name now has these addresses; returns the list of names that are looked up."""
    looked_up: list[str] = []

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        looked_up.append(name)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in a], socket.SOCK_STREAM, 6, "", (a, 0)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return looked_up


def test_of_a_names_addresses_only_the_public_ones_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = answering(monkeypatch, "10.0.0.1", "8.8.8.8", "::1", "127.0.0.1")

    async def ask() -> list[str]:
        guard = Guard()
        found = await guard.resolve("example.com", 80)
        again = await guard.resolve("example.com", 443)
        await guard.close()
        return [place["host"] for place in (*found, *again)]

    assert asyncio.run(ask()) == ["8.8.8.8", "8.8.8.8"]
    assert looked_up == ["example.com"]  # the answer is remembered: it cannot change between check and use


def test_the_socket_factory_refuses_what_was_not_judged() -> None:
    guard = Guard(("127.0.0.1:8123",))
    guard.check_literal("8.8.8.8", 80)
    guard.check_literal("127.0.0.1", 8123)
    for address, port in (("8.8.8.8", 80), ("127.0.0.1", 8123)):
        guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))).close()
    for address, port in (("8.8.8.8", 81), ("127.0.0.1", 80), ("1.1.1.1", 80)):
        with pytest.raises(NotPublicError):
            guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)))
    with pytest.raises(NotPublicError):
        guard.check_literal("127.0.0.1", 8124)


def test_an_allowed_host_does_not_open_its_address_to_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "127.0.0.1")

    async def ask() -> None:
        guard = Guard(("inner.example:8123",))
        assert [p["host"] for p in await guard.resolve("inner.example", 8123)] == ["127.0.0.1"]
        for name, port in (("evil.example", 8123), ("inner.example", 80)):
            with pytest.raises(NotPublicError):
                await guard.resolve(name, port)
        await guard.close()

    asyncio.run(ask())


def test_a_lookup_that_may_succeed_later_is_told_from_an_unknown_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [socket.gaierror(socket.EAI_AGAIN, "try again"), socket.gaierror(socket.EAI_NONAME, "unknown")]

    def fail(*_: object, **__: object) -> None:
        raise failures.pop(0)

    monkeypatch.setattr(socket, "getaddrinfo", fail)

    async def ask() -> None:
        guard = Guard()
        with pytest.raises(socket.gaierror):
            await guard.resolve("example.com", 80)
        for _ in range(2):  # and an unknown name is remembered
            with pytest.raises(UnknownHostError):
                await guard.resolve("example.com", 80)
        await guard.close()

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("errno", "expected"), [(socket.EAI_AGAIN, "dns_failed"), (socket.EAI_NONAME, "dns_unknown")]
)
def test_a_failed_lookup_has_its_word(monkeypatch: pytest.MonkeyPatch, errno: int, expected: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(errno, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert outcome("http://example.com/") == expected


def test_a_stand_in_must_be_an_address_and_a_port() -> None:
    assert Guard((), {"a.example:80": "127.0.0.1:8080", "b.example:80": "[::1]:80"}).stand_ins == {
        "a.example:80": ("127.0.0.1", 8080),
        "b.example:80": ("::1", 80),
    }
    with pytest.raises(ConfigError, match="not address:port"):
        Guard((), {"a.example:80": "localhost:8080"})


def test_the_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, no_sockets: list[object]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")
    answering(monkeypatch, "8.8.8.8")
    assert outcome("http://example.com/", Fetch(retries=0)) == "connection"
    assert no_sockets == [("8.8.8.8", 80)]
    assert aiohttp.__version__ >= "3.12"
