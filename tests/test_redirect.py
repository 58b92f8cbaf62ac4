"""Redirects: where they lead, through which ports, and what is carried along."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from fetching import ask, page  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.answer import Ended
from pairmill.crawl.redirect import check_port, redirect_target

BASE = "http://a.com/c/d.jpg?x=1"
TARGETS = {  # as browsers join them
    "\t5.jpg": "http://a.com/c/5.jpg",
    " 5.jpg\r\n": "http://a.com/c/5.jpg",
    "5\n.j\tpg": "http://a.com/c/5.jpg",
    "\x0c5.jpg\x00": "http://a.com/c/5.jpg",
    "http:///host/x": "http://host/x",
    "http:////host//x": "http://host//x",
    "http:/host/x": "http://a.com/host/x",
    "http:5.jpg": "http://a.com/c/5.jpg",
    "https:5.jpg": "https://5.jpg/",
    "https:/b.com/5.jpg": "https://b.com/5.jpg",
    "HTTP://B.com/X": "http://b.com/X",
    "\\\\b.com\\5.jpg": "http://b.com/5.jpg",
    "/\\b.com/5.jpg": "http://b.com/5.jpg",
    "\\5.jpg": "http://a.com/5.jpg",
    "//b.com/5.jpg": "http://b.com/5.jpg",
    "///b.com/5.jpg": "http://b.com/5.jpg",
    "//b.com:80/5.jpg": "http://b.com/5.jpg",
    "/5.jpg": "http://a.com/5.jpg",
    "?y=2": "http://a.com/c/d.jpg?y=2",
    "#top": BASE,
    ".": "http://a.com/c/",
    "..": "http://a.com/",
    "../../../5.jpg": "http://a.com/5.jpg",
    "./5.jpg": "http://a.com/c/5.jpg",
    "%2e%2e/5.jpg": "http://a.com/5.jpg",
    "x\\..\\5.jpg": "http://a.com/c/5.jpg",
    "5.jpg?a=b c#d": "http://a.com/c/5.jpg?a=b%20c",
    "a b.jpg": "http://a.com/c/a%20b.jpg",
    "1:5.jpg": "http://a.com/c/1:5.jpg",
    "./a:5.jpg": "http://a.com/c/a:5.jpg",
    "x/http://b.com/": "http://a.com/c/x/http://b.com/",
    "//b.com": "http://b.com/",
    "http://münchen.de/ü.jpg": "http://xn--mnchen-3ya.de/%C3%BC.jpg",
    "d\udce9j\udce0.jpg": "http://a.com/c/d%E9j%E0.jpg",
    "http://0x7f.1/": "http://127.0.0.1/",
    "5.jpg%": "http://a.com/c/5.jpg%",
    "&amp;5.jpg": "http://a.com/c/&amp;5.jpg",
}
REFUSED = {
    "": "bad_response",
    " \t": "bad_response",
    "ftp://b.com/": "bad_url",
    "file:///etc/passwd": "bad_url",
    "data:image/png;base64,x": "bad_url",
    "javascript:1": "bad_url",
    "a:5.jpg": "bad_url",
    "http://u:p@b.com/": "bad_url",
    "//u@b.com/": "bad_url",
    "http://[bad": "bad_url",
    "http://b.com:99999/": "bad_url",
    "http://": "bad_url",
    "http://b.com/" + "x" * 20_000: "bad_url",
}


@pytest.mark.parametrize("location", TARGETS)
def test_a_location_is_joined_as_browsers_do(location: str) -> None:
    assert redirect_target(BASE, location) == TARGETS[location]


@pytest.mark.parametrize("location", REFUSED)
def test_a_location_that_leads_nowhere_has_its_word(location: str) -> None:
    with pytest.raises(Ended) as caught:
        redirect_target(BASE, location)
    assert caught.value.outcome == REFUSED[location]


@pytest.mark.parametrize(
    ("url", "allowed", "good"),
    [
        ("http://a.com/", (), True),
        ("https://a.com/", (), True),
        ("http://a.com:443/", (), True),
        ("http://a.com:25/", (), False),
        ("https://a.com:8443/", (8080,), False),
        ("http://a.com:8080/", (8080,), True),
        ("http://a.com:25/", (0,), True),
    ],
)
def test_the_lists_rule_for_ports_holds_on_a_redirect(url: str, allowed: tuple[int, ...], good: bool) -> None:
    with nullcontext() if good else pytest.raises(Ended, match="bad_url"):
        check_port(url, allowed)


def test_a_redirect_goes_to_no_other_port_than_that_of_its_url() -> None:
    answers = {
        b"/1": page("302 Found", b"Location: http://93.184.215.14:25/"),
        b"/2": page("302 Found", b"Location: http://127.0.0.1:25/"),
        b"/3": page("302 Found", b"Location: http://127.0.0.1:%PORT%/good"),
        b"/good": page("200 OK", body=b"x"),
    }
    assert [answer.outcome for answer in ask(answers, "/1", "/2", "/3")] == ["bad_url", "not_public", "ok"]


def cookies_of(heads: list[bytes]) -> list[bytes]:
    """The Cookie fields of requests, empty where there is none."""
    fields = [[line for line in head.split(b"\r\n") if line.startswith(b"Cookie: ")] for head in heads]
    return [b"".join(found).removeprefix(b"Cookie: ") for found in fields]


def test_cookies_are_kept_within_a_chain_of_redirects_and_forgotten_behind_it() -> None:
    heads: list[bytes] = []
    answers = {
        b"/1": page("302 Found", b"Set-Cookie: a=1; Path=/; HttpOnly", b"Set-Cookie: b=2", b"Location: /2"),
        b"/2": page("302 Found", b"Set-Cookie: a=3; Path=/", b"Set-Cookie: c=4; Path=/5", b"Location: /3"),
        b"/3": page("200 OK", b"Set-Cookie: d=5", body=b"x"),
        b"/4": page("200 OK", body=b"x"),
    }
    assert [answer.outcome for answer in ask(answers, "/1", "/4", "/3", asked=heads)] == ["ok"] * 3
    assert cookies_of(heads) == [b"", b"a=1; b=2", b"a=3; b=2", b"", b""]


def test_a_gate_that_wants_its_cookie_back_opens_even_where_its_head_is_odd() -> None:
    heads: list[bytes] = []
    gate = b"HTTP/2 307 x\r\nno colon\r\nSet-Cookie: seen=yes\r\nLocation: /2\r\n\r\n"
    answers = {b"/1": gate, b"/2": page("200 OK", body=b"x")}
    assert [answer.outcome for answer in ask(answers, "/1", asked=heads)] == ["ok"]
    assert cookies_of(heads) == [b"", b"", b"seen=yes"]


@pytest.mark.parametrize(
    "cookie",
    [b"a=1; Secure", b"a=1; Domain=b.com", b"a=1; Max-Age=0", b"a=1; Path=/other", b"=", b"\x01\x02"],
)
def test_a_cookie_that_is_not_for_the_next_place_is_not_sent(cookie: bytes) -> None:
    heads: list[bytes] = []
    answers = {
        b"/1": page("302 Found", b"Set-Cookie: " + cookie, b"Location: /2"),
        b"/2": page("200 OK", body=b"x"),
    }
    ask(answers, "/1", asked=heads)
    assert cookies_of(heads) == [b"", b""]
