"""Every odd answer that holds a picture gives it, and what is odd about it decides nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from fetching import ask, page, raw_server  # pyright: ignore[reportImplicitRelativeImport]
from odd_answers import CODINGS, HEADS, LENGTH, NOBODYS, PICTURE, pieces, whole  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.client import Client
from pairmill.recipe import Fetch


def missed(answers: Mapping[str, bytes]) -> set[str]:
    """Names of the answers through which one client does not get the picture."""
    names = list(answers)
    got = ask(
        {b"/%d" % n: answers[name] for n, name in enumerate(names)}, *(f"/{n}" for n in range(len(names)))
    )
    return {
        name
        for name, answer in zip(names, got, strict=True)
        if (answer.outcome, answer.body[: len(PICTURE)]) != ("ok", PICTURE)
    }


def test_a_picture_is_got_through_every_odd_head() -> None:
    assert missed(HEADS) == NOBODYS


@pytest.mark.parametrize("name", sorted(HEADS.keys() - NOBODYS))
def test_a_client_that_has_met_nothing_odd_yet_gets_it_too(name: str) -> None:
    assert missed({name: HEADS[name]}) == set()


def test_a_picture_is_got_under_every_coding() -> None:
    assert missed(CODINGS) == set()


def test_a_host_that_has_answered_oddly_is_read_leniently_from_then_on() -> None:
    heads: list[bytes] = []
    good = whole(b"no colon", LENGTH)
    ask({b"/1": good, b"/2": good}, "/1", "/2", asked=heads)
    assert [head.split()[1] for head in heads] == [b"/1", b"/1", b"/2"]
    fields = [{line.partition(b":")[0] for line in head.split(b"\r\n")[1:] if line} for head in heads]
    assert fields[1] == fields[2] == fields[0] | {b"Connection"}


@pytest.mark.parametrize(
    "field",
    [
        b"X-Robots-Tag noai",
        b"X-Robots-Tag : noai",
        b" X-Robots-Tag: noai",
        b"X-Robots-Tag: a,\r\n noai",
        b"x_robots_tag=noai",
    ],
)
def test_an_opt_out_in_an_odd_head_is_heard(field: bytes) -> None:
    (answer,) = ask({b"/": whole(b"Server: x", field, b"no colon", LENGTH)}, "/")
    assert answer.outcome == "noai"


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "203 Other", "206 Partial Content", "226 IM Used"]
)
def test_an_opt_out_is_heard_with_every_status_that_brings_a_picture(status: str) -> None:
    hushed, plain = page(status, b"X-Robots-Tag: noai", body=PICTURE), page(status, body=PICTURE)
    assert [answer.outcome for answer in ask({b"/1": hushed, b"/2": plain}, "/1", "/2")] == [
        "noai",
        "ok",
    ]


def test_a_redirect_in_an_odd_head_is_judged_like_any_other() -> None:
    places = (
        b"http://169.254.169.254/",
        b"http://[::1]/",
        b"http://localhost.:%PORT%/",
        b"file:///etc/passwd",
        b"/2",
    )
    answers = {
        b"/%d" % n: whole(b"no colon", b"Location: " + place, first=b"HTTP/2 302")
        for n, place in enumerate(places, 3)
    }
    answers[b"/2"] = whole(LENGTH)
    got = [answer.outcome for answer in ask(answers, *(f"/{n}" for n in range(3, 8)))]
    assert got == ["not_public", "not_public", "not_public", "bad_url", "ok"]


def test_a_name_is_resolved_and_judged_anew_for_a_lenient_reading() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(b"no colon", b"Transfer-Encoding: chunked", body=pieces()))

    async def run() -> list[str]:
        async with (
            raw_server(answer) as place,
            Client(Fetch(deadline_s=5), {"photos.invalid:80": place}) as client,
        ):
            client._lenient.add("127.0.0.1:80")
            urls = ("http://photos.invalid/x", "http://127.0.0.1/x")
            return [(await client.get(url)).outcome for url in urls]

    assert asyncio.run(run()) == ["ok", "not_public"]


def test_a_head_that_drips_ends_at_the_deadline() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/2 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"a")
            await asyncio.sleep(0.01)

    async def run() -> str:
        async with (
            raw_server(answer) as place,
            Client(Fetch(deadline_s=0.2, allow_hosts=(place,), signals=())) as client,
        ):
            return (await asyncio.wait_for(client.get(f"http://{place}/"), 5)).outcome

    assert asyncio.run(run()) == "timeout"
