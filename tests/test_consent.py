"""A small web of 100 sites that say no in every way: what was fetched of it, what not, and why."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import ask, fetch, page, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]

from pairmill import __version__
from pairmill.crawl.agent import agent_of, user_agent
from pairmill.crawl.client import Client
from pairmill.crawl.fetch import check_crawl, check_pairs
from pairmill.crawl.sitelog import SCHEMA
from pairmill.errors import ConfigError
from pairmill.recipe import Fetch

PATHS = ("/a.jpg", "/private/b.jpg", "/c.png")
ROBOTS, TDMREP, AI_TXT = "/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"
NO_JPEG = [
    {"location": "/*.jpg$", "tdm-reservation": 1},
    {"location": "/private/", "tdm-reservation": 0},
]


@dataclass(frozen=True)
class Kind:
    """A kind of site: its files, the headers of its pictures, and what must become of PATHS.

    files: path to (status, headers, body). asked: which of PATHS the site must see a request for.
    """

    fates: tuple[str, ...]  # one for each of PATHS
    asked: str = "abc"
    files: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    said: str | dict[str, str] | None = None  # page_signals of its rows
    consent: str | None = None  # of the first picture
    once: tuple[str, ...] = (ROBOTS, TDMREP, AI_TXT)  # what must be asked for exactly once


def robots(text: str) -> dict[str, tuple[int, dict[str, str], bytes]]:
    return {ROBOTS: (200, {}, text.encode())}


def hops(n: int) -> dict[str, tuple[int, dict[str, str], bytes]]:
    """A robots.txt that forbids everything, behind n redirects."""
    chain = [ROBOTS, *(f"/hop-{k}" for k in range(n))]
    moved = {a: (301, {"Location": b}, b"") for a, b in pairwise(chain)}
    return moved | {chain[-1]: (200, {}, b"User-agent: *\nDisallow: /")}


OK = ("ok",) * 3
KINDS: dict[str, Kind] = {
    "plain": Kind(OK),
    "empty": Kind(OK, files=robots("")),
    "private": Kind(
        ("ok", "robots", "ok"), "ac", robots("User-agent: *\nDisallow: /private/\nAllow: /private/x")
    ),
    "closed": Kind(("robots",) * 3, "", robots("User-agent: *\nDisallow: /"), consent="robots.txt: disallow"),
    "not-us": Kind(
        ("robots",) * 3, "", robots("User-agent: *\nAllow: /\nUser-agent: SmallWebBot\nDisallow: /")
    ),
    "just-us": Kind(OK, files=robots("User-agent: *\nDisallow: /\nUser-agent: smallwebbot\nAllow: /")),
    "not-pairmill": Kind(("robots",) * 3, "", robots("User-agent: pairmill\nDisallow: /")),
    "forbidden": Kind(OK, files={ROBOTS: (403, {}, b"User-agent: *\nDisallow: /")}),
    "failing": Kind(
        ("robots_unreachable",) * 3,
        "",
        {ROBOTS: (500, {}, b"")},
        consent="robots.txt: unreachable",
        once=(ROBOTS,),
    ),
    "silent": Kind(("robots_unreachable",) * 3, "", {ROBOTS: (0, {}, b"")}, once=(ROBOTS,)),
    "moved": Kind(("robots",) * 3, "", hops(5)),
    "lost": Kind(OK, files=hops(7)),
    "huge": Kind(
        ("ok", "robots", "ok"),
        "ac",
        robots("User-agent: *\nDisallow: /private\n" + "# 10 MB\n" * 1_200_000 + "Disallow: /"),
    ),
    "slow": Kind(("crawl_delay",) * 3, "", robots("User-agent: *\nCrawl-delay: 3600")),
    "signals": Kind(
        ("noai",) * 3, "", robots("User-Agent: *\nContent-Signal: search=yes, ai-train=no\nAllow: /")
    ),
    "reserved": Kind(
        ("tdm", "ok", "ok"),
        "bc",
        {TDMREP: (200, {}, json.dumps(NO_JPEG).encode())},
        consent="tdmrep.json: reserved",
    ),
    "ai-txt": Kind(
        ("ai_txt", "ai_txt", "ok"),
        "c",
        {AI_TXT: (200, {}, b"# Spawning AI\nUser-Agent: *\nDisallow: *.jpg\nAllow: *.png\nAllow: /")},
        consent="ai.txt: disallow",
    ),
    "page-for-all": Kind(OK, files={path: (200, {}, b"<!DOCTYPE html>x") for path in (TDMREP, AI_TXT)}),
    "noai": Kind(("noai",) * 3, headers={"X-Robots-Tag": "nofollow, noai"}, consent="x-robots-tag: noai"),
    "noindex": Kind(("noindex",) * 3, headers={"X-Robots-Tag": "noindex"}),
    "for-others": Kind(OK, headers={"X-Robots-Tag": "otherbot: noai", "tdm-reservation": "0"}),
    "tdm-header": Kind(("tdm",) * 3, headers={"TDM-Reservation": "1"}, consent="tdm-reservation: 1"),
    "usage": Kind(("noai",) * 3, headers={"Content-Usage": "train-ai=n"}),
    "page": Kind(("noai",) * 3, "", said="noimageai, nofollow", consent="page: noimageai"),
    "page-of-archive": Kind(("noai",) * 3, "", said={"robots": "max-snippet:-1, noai"}, consent="page: noai"),
    "page-tdm-of-archive": Kind(
        ("tdm",) * 3,
        "",
        said={"tdm-reservation": "1", "tdm-policy": "/p"},
        consent="page: tdm-reservation: 1",
    ),
    "page-of-others": Kind(OK, said={"robots": "otherbot: noai", "tdm-reservation": "0"}),
    "page-tdm": Kind(("tdm",) * 3, "", said="follow; tdm-reservation: 1"),
}
SITES = {f"s{n:03}-{kind}.sites.test": kind for n, kind in enumerate([*KINDS] * 4)}
DEAD = "nobody.sites.test"


class SmallWeb:
    """All sites on one server: what each was asked for, and what it says."""

    answers_all = True

    def __init__(self) -> None:
        self.asked: dict[str, Counter[str]] = {host: Counter() for host in SITES}
        self.agents: set[str] = set()
        self.port = 0
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        host = request.headers["Host"]
        self.asked[host][request.path] += 1
        self.agents.add(request.headers["User-Agent"])
        kind = KINDS[SITES[host]]
        if request.path in kind.files:
            status, headers, body = kind.files[request.path]
            if not status:
                await self.released.wait()
            return web.Response(status=status or 200, headers=headers, body=body)
        if request.path not in PATHS:
            return web.Response(status=404)
        return web.Response(body=picture(PATHS.index(request.path)), headers=kind.headers)


@dataclass(frozen=True)
class Crawl:
    web: SmallWeb
    out: Path
    rows: dict[str, dict[str, Any]]  # by URL
    counts: Counter[str]


def says_no_on_its_pages(kind: str) -> bool:
    """Whether nothing at all needs to be asked of such a site."""
    return KINDS[kind].said is not None and KINDS[kind].fates != OK


def crawl(out: Path, site: SmallWeb, **settings: Any) -> Crawl:
    """Fetch everything, and a picture of a host where nobody listens."""
    given = {host: json.dumps({"page_signals": KINDS[kind].said}) for host, kind in SITES.items()}
    rows = [
        {"url": f"http://{host}{path}", "caption": "x", "given": given[host]}
        for host in SITES
        for path in PATHS
    ]
    write_pairs(out, [*rows, {"url": f"http://{DEAD}/a.jpg", "caption": "x"}])
    usual = Fetch(
        agent="SmallWebBot", contact="bot@sites.test", deadline_s=3, retries=0, image_size=48, **settings
    )
    place = f"127.0.0.1:{site.port}"
    resolve = {f"{host}:80": place for host in SITES} | {f"{DEAD}:80": "127.0.0.1:9"}
    plan(out, usual)
    counts = fetch(out, usual, resolve).counts
    table = pa.concat_tables([pq.read_table(path) for path in (out / "raw").glob("*.parquet")])
    return Crawl(site, out, {row["url"]: row for row in table.to_pylist()}, counts)


@pytest.fixture(scope="module")
def respected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crawl]:
    """Read only: many tests look at it."""
    with serving(SmallWeb()) as site:
        yield crawl(tmp_path_factory.mktemp("respect"), site)


def test_what_was_fetched_and_what_not_and_why_equals_the_truth(respected: Crawl) -> None:
    truth = {
        f"http://{host}{path}": fate
        for host, kind in SITES.items()
        for path, fate in zip(PATHS, KINDS[kind].fates, strict=True)
    } | {f"http://{DEAD}/a.jpg": "connection"}
    assert {url: row["outcome"] for url, row in respected.rows.items()} == truth
    assert respected.counts == Counter(truth.values())


def test_who_says_no_beforehand_is_not_asked_for_a_picture(respected: Crawl) -> None:
    seen = {
        host: "".join(path.rpartition("/")[2][0] for path in PATHS if asked[path])
        for host, asked in respected.web.asked.items()
    }
    assert seen == {host: KINDS[kind].asked for host, kind in SITES.items()}
    assert all(max(asked[path] for path in PATHS) <= 1 for asked in respected.web.asked.values())


def test_each_file_of_a_site_is_asked_for_once(respected: Crawl) -> None:
    said_on_pages = {host for host, kind in SITES.items() if says_no_on_its_pages(kind)}
    for host, asked in respected.web.asked.items():
        wanted = () if host in said_on_pages else KINDS[SITES[host]].once
        assert {path: asked[path] for path in (ROBOTS, TDMREP, AI_TXT) if asked[path]} == dict.fromkeys(
            wanted, 1
        ), host
    assert respected.web.agents == {f"SmallWebBot/{__version__} (+bot@sites.test)"}


def test_what_was_said_stands_in_a_column_with_the_name_that_asked(respected: Crawl) -> None:
    for host, kind in SITES.items():
        row = respected.rows[f"http://{host}/a.jpg"]
        assert row["consent_agent_v1"] == "SmallWebBot"
        wanted = KINDS[kind].consent
        if wanted is not None:
            assert row["consent_v1"] == wanted, host
        assert (row["consent_v1"] is None) == (KINDS[kind].fates[0] == "ok"), host


def test_when_a_site_was_asked_stands_in_the_log(respected: Crawl) -> None:
    (log,) = (respected.out / "_log" / "sites").glob("*.parquet")
    table = pq.read_table(log)
    assert table.schema.equals(SCHEMA)
    rows = {row["origin"].removeprefix("http://"): row for row in table.to_pylist()}
    assert rows.keys() == {DEAD} | {host for host, kind in SITES.items() if not says_no_on_its_pages(kind)}
    assert all(abs(row["asked_at"].timestamp() - time.time()) < 600 for row in rows.values())
    failing = {host for host, row in rows.items() if row["unreachable_since"] is not None}
    assert {SITES[host] for host in failing} == {"failing", "silent"}


def test_a_policy_that_records_fetches_all_the_same_and_says_the_same(
    respected: Crawl, tmp_path: Path
) -> None:
    with serving(SmallWeb()) as site:
        recorded = crawl(tmp_path, site, consent="record", max_crawl_delay_s=1)
    assert recorded.counts == Counter(ok=len(SITES) * len(PATHS), connection=1)
    for url, row in respected.rows.items():
        said = recorded.rows[url]["consent_v1"]
        assert (said or "").split("; ")[0] == (row["consent_v1"] or "")


def test_signals_that_the_recipe_leaves_out_are_not_asked_for(tmp_path: Path) -> None:
    with serving(SmallWeb()) as site:
        crawl(tmp_path, site, signals=("header",))
    assert not any(asked[path] for asked in site.asked.values() for path in (ROBOTS, TDMREP, AI_TXT))
    row = pq.read_table(next((tmp_path / "raw").glob("*.parquet"))).to_pylist()
    fates = {entry["url"]: entry["outcome"] for entry in row}
    wanted = {"noai": "noai", "tdm-header": "ok", "closed": "ok", "page": "ok"}
    assert {kind: fates[f"http://{host}/a.jpg"] for host, kind in SITES.items() if kind in wanted} == wanted


def test_a_redirect_is_judged_by_the_site_that_it_leads_to() -> None:
    answers = {
        b"/old.jpg": page("302 Found", b"Location: /private/new.jpg"),
        b"/private/new.jpg": page("200 OK", body=picture(1)),
        b"/robots.txt": page("200 OK", body=b"User-agent: *\nDisallow: /private/"),
    }
    asked: list[bytes] = []
    (answer,) = ask(answers, "/old.jpg", asked=asked)
    assert answer.outcome == "robots"
    assert [head.split()[1] for head in asked] == [b"/old.jpg"]


def test_a_crawl_delay_keeps_requests_apart() -> None:
    answers = {
        b"/robots.txt": page("200 OK", body=b"User-agent: *\nCrawl-delay: 0.15"),
        **{b"/%d" % n: page("200 OK", body=b"x") for n in range(4)},
    }
    begun = time.monotonic()
    ask(answers, *(f"/{n}" for n in range(4)), signals=("robots",))
    assert time.monotonic() - begun >= 4 * 0.15


@pytest.mark.parametrize(
    ("days", "outcome"), [(None, "robots_unreachable"), (40, "robots_unreachable"), (30, "ok")]
)
def test_a_long_outage_of_robots_txt_counts_as_none_where_the_recipe_says_so(
    days: float | None, outcome: str
) -> None:
    class Host:
        answers_all, port, released = True, 0, asyncio.Event()

        async def answer(self, request: web.Request) -> web.Response:
            return web.Response(status=500) if request.path == ROBOTS else web.Response(body=picture(1))

    async def run(port: int) -> str:
        place = f"127.0.0.1:{port}"
        since = {f"http://{place}": time.time() - 35 * 86_400}
        settings = Fetch(allow_hosts=(place,), retries=0, robots_outage_days=days)
        async with Client(settings, since=since) as client:
            return (await client.get(f"http://{place}/x.jpg")).outcome

    with serving(Host()) as host:
        assert asyncio.run(run(host.port)) == outcome


NAMED: dict[str, Any] = {"agent": "MyBot", "contact": "https://example.org/bot"}


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "fetch.agent and fetch.contact: missing"),
        ({"agent": "MyBot"}, "fetch.contact: missing"),
        ({"contact": "me@example.org"}, "fetch.agent: missing"),
        ({"user_agent": "MyBot/1"}, "fetch.contact: missing"),
        ({**NAMED, "contact": "nobody"}, "fetch.contact: 'nobody' is neither a URL nor an e-mail address"),
        (NAMED, None),
        ({"user_agent": "MyBot/1 (+https://example.org/bot)"}, None),
        ({"user_agent": "MyBot/1 me@example.org"}, None),
    ],
)
def test_a_public_crawl_asks_for_a_name_and_a_contact(
    settings: dict[str, Any], missing: str | None, tmp_path: Path
) -> None:
    write_pairs(tmp_path, [{"url": "http://photos.example.org/x.jpg", "caption": "x"}])
    if missing is not None:
        with pytest.raises(ConfigError, match=missing):
            check_pairs(tmp_path, Fetch(**settings), {})
    plan(tmp_path, Fetch(**NAMED))
    if missing is None:
        check_crawl(tmp_path, Fetch(**settings), {})
    else:
        with pytest.raises(ConfigError, match=missing):
            check_crawl(tmp_path, Fetch(**settings), {})
    if "contact" not in settings:
        check_crawl(tmp_path, Fetch(**settings), {"photos.example.org:80": "127.0.0.1:9"})


def test_the_user_agent_is_made_of_the_name_and_the_contact() -> None:
    assert user_agent(Fetch(**NAMED)).startswith("MyBot/")
    assert user_agent(Fetch(**NAMED)).endswith(" (+https://example.org/bot)")
    assert user_agent(Fetch(user_agent="Own/2", **NAMED)) == "Own/2"
    assert [agent_of(Fetch(**NAMED)), agent_of(Fetch()), agent_of(Fetch(user_agent="Own/2"))] == [
        "MyBot",
        "pairmill",
        "own",
    ]
