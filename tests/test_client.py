"""The client against raw bytes: what a web server may say that no library lets one say."""

from __future__ import annotations

import asyncio

import pytest
from fetching import ask, page  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.client import Client
from pairmill.recipe import Fetch


@pytest.mark.parametrize(
    "location",
    [
        "/d\u00e9j\u00e0.jpg".encode(),
        "/d\u00e9j\u00e0.jpg".encode("latin-1"),
        "/写真.jpg".encode("shift-jis"),
    ],
)
def test_a_redirect_in_any_encoding_leads_to_its_bytes(location: bytes) -> None:
    place = b"".join(b"%%%02X" % byte if byte > 126 else bytes([byte]) for byte in location)
    answers = {b"/old": page("302 Found", b"Location: " + location), place: page("200 OK", body=b"picture")}
    (answer,) = ask(answers, "/old")
    assert (answer.outcome, answer.body) == ("ok", b"picture")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("500 Error", "server_error"),
        ("599 Error", "server_error"),
        ("600 Odd", "client_error"),
        ("999 Request denied", "client_error"),
        ("499 Odd", "client_error"),
        ("399 Odd", "bad_response"),
    ],
)
def test_only_five_hundreds_are_the_servers_failure(status: str, outcome: str) -> None:
    (answer,) = ask({b"/": page(status)}, "/")
    assert answer.outcome == outcome


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "bad_response"),
        (b"\xff\xd8\xff\xe0 a picture without a header", "bad_response"),
        (b"", "connection"),
        (page("200 OK", b"Content-Length: 7"), "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nx", "too_big"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n", "bad_response"),
        (page("200 OK", b"X-A: " + b"a" * 400_000), "bad_response"),
        (page("200 OK", *(b"X-A: b" for _ in range(50_000))), "bad_response"),
        (b"HTTP/2 103 Early Hints\r\n\r\n" * 20_000, "bad_response"),
        (b" \r\n" * 400_000, "bad_response"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nX-A: cut", "connection"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 99\r\n\r\nhalf", "connection"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 999999999999\r\n\r\nx", "too_big"),
        (b"HTTP/1.1 404 Not Found\r\nno colon\r\n\r\nx", "not_found"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n" + b"x" * 20_000_001, "too_big"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0xffffffff\r\n", "too_big"),
        (page("200 OK", b"Content-Encoding: br", body=b"x"), "bad_response"),
        (page("302 Found", b"Location: http://u:p@127.0.0.1/"), "bad_url"),
        (page("302 Found", b"Location: http://2130706433/"), "not_public"),
        (page("302 Found", b"Location: http://[::ffff:10.0.0.1]/"), "not_public"),
    ],
)
def test_an_odd_answer_has_its_word(raw: bytes, outcome: str) -> None:
    (answer,) = ask({b"/": raw}, "/")
    assert answer.outcome == outcome


def test_a_refused_connection_and_an_unknown_scheme_have_their_words() -> None:
    async def ask(*urls: str) -> list[str]:
        async with Client(Fetch(allow_hosts=("127.0.0.1:9",), deadline_s=5)) as client:
            return [(await client.get(url)).outcome for url in urls]

    urls = [
        "http://127.0.0.1:9/",
        "ftp://example.com/x",
        "http://127.0.0.1:10/",
        "http://[::1]/",
        "http://10.0.0.1/",
    ]
    assert asyncio.run(ask(*urls)) == ["connection", "bad_url", "not_public", "not_public", "not_public"]
