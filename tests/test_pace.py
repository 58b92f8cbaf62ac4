"""The pace of one host, in a time that jumps; and a whole shard from hosts that refuse."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import ask, fetch, page, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.pace import HostPace
from pairmill.crawl.tries import REFUSALS
from pairmill.crawl.when import read_date, read_pause
from pairmill.recipe import Fetch


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still while there is work, and jumps to the next timer when there is none."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def in_jumping_time(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work())


def now() -> float:
    return asyncio.get_running_loop().time()


class Bucket:
    """Lets `rate` requests a second through, and as many at once."""

    def __init__(self, rate: float) -> None:
        self.rate, self.left, self.last = rate, rate, 0.0

    def lets_through(self) -> bool:
        self.left = min(self.rate, self.left + (now() - self.last) * self.rate)
        self.last = now()
        self.left -= self.left >= 1
        return self.left >= 0 and self.left != self.rate


class Window:
    """Lets `most` requests through in each span of `span_s` seconds."""

    def __init__(self, most: int, span_s: float) -> None:
        self.most, self.span_s = most, span_s
        self.seen: Counter[int] = Counter()

    def lets_through(self) -> bool:
        self.seen[int(now() / self.span_s)] += 1
        return self.seen[int(now() / self.span_s)] <= self.most


async def ask_all(
    host: Any, settings: Fetch, urls: int, pause_s: float | None = None
) -> tuple[list[int], float]:
    """How often each URL was refused, and the seconds that all took; an answer takes 20 ms."""
    pace = HostPace(settings)

    async def one() -> int:
        for refusals in range(1_000):
            async with pace.turn():
                begun = now()
                good = host.lets_through()
                await asyncio.sleep(0.02)
                if good:
                    pace.answered(begun)
                    return refusals
                pace.refused(begun, pause_s)
                assert not pace.left_alone
        raise AssertionError

    return list(await asyncio.gather(*(one() for _ in range(urls)))), now()


@pytest.mark.parametrize("pause_s", [None, 0.0, 1.0])
@pytest.mark.parametrize("backoff_s", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("host", "ideal_s"),
    [
        (lambda: Bucket(10), 40),
        (lambda: Bucket(3), 133),
        (lambda: Window(10, 1), 40),
        (lambda: Window(100, 60), 240),
    ],
)
def test_a_host_that_limits_its_rate_gives_everything_in_about_the_time_that_it_takes(
    host: Callable[[], Any], ideal_s: float, backoff_s: float, pause_s: float | None
) -> None:
    settings = Fetch(backoff_s=backoff_s)
    refusals, seconds = in_jumping_time(lambda: ask_all(host(), settings, 400, pause_s))
    assert seconds < 1.6 * ideal_s + 10
    if backoff_s:
        assert max(refusals) <= REFUSALS * settings.retries


def test_a_host_that_never_refuses_is_never_paced() -> None:
    refusals, seconds = in_jumping_time(lambda: ask_all(Window(10_000, 1), Fetch(per_host=4), 400))
    assert (sum(refusals), round(seconds, 3)) == (0, 400 / 4 * 0.02)


@pytest.mark.parametrize(("pause_s", "waits_s"), [(7.0, 7.0), (0.0, 0.0), (3_600.0, 60.0)])
def test_one_refusal_holds_all_requests_up_for_its_retry_after_within_the_bound(
    pause_s: float, waits_s: float
) -> None:
    async def run() -> list[float]:
        pace = HostPace(Fetch(per_host=4, backoff_s=0.5, patience_s=1_000))
        async with pace.turn():
            pace.refused(now(), pause_s)

        async def other() -> float:
            async with pace.turn():
                return now()

        return list(await asyncio.gather(*(other() for _ in range(3))))

    assert in_jumping_time(run) == [waits_s, waits_s + 0.5, waits_s + 1.0]


def test_requests_that_were_under_way_together_slow_the_host_once() -> None:
    async def run() -> float:
        pace = HostPace(Fetch(per_host=8, backoff_s=0.5))
        for _ in range(8):
            pace.refused(0.0, 0.0)
        await asyncio.sleep(1)
        async with pace.turn():
            pass
        begun = now()
        async with pace.turn():
            return now() - begun

    assert in_jumping_time(run) == 0.5


@pytest.mark.parametrize(
    ("has_answered", "times"), [(True, [0, 1, 3, 7, 15, 31, 63, 70, 70]), (False, [0, 1, 3, 7, 10, 10])]
)
def test_a_host_that_only_refuses_is_left_alone_when_patience_ends(
    has_answered: bool, times: list[float]
) -> None:
    async def run() -> list[float]:
        pace, asked = HostPace(Fetch(backoff_s=1, max_pause_s=60, patience_s=70)), []
        if has_answered:
            pace.answered(now())
        while not pace.left_alone:
            async with pace.turn():
                asked.append(now())
                pace.refused(now(), None)
        async with pace.turn():
            return [*asked, now()]

    assert in_jumping_time(run) == times


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("1.5", 1.5),
        ("10s", 10),
        ("10 seconds", 10),
        ("120, 120", 120),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37),
        ("Sun Nov  6 08:49:37 1994", 37),
        ("6 Nov 1994 08:49:37 +0000", 37),
        ("1994-11-06T08:49:37Z", 37),
        ("784111777", 784111777),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("Sun, 99 Foo 1994 08:49:37 GMT", None),
    ],
)
@pytest.mark.parametrize("date", ["Sun, 06 Nov 1994 08:49:00 GMT", "", "yesterday"])
def test_retry_after_is_read_in_all_its_forms(said: str, seconds: float | None, date: str) -> None:
    clock = read_date("Sun, 06 Nov 1994 08:49:00 GMT")
    assert clock == 784_111_740
    assert read_pause(said, date, clock if "1994" not in date else 0.0) == seconds


class Limited:
    """A host that gives each name by what it begins with; `odd` ones are refused every time."""

    def __init__(self, refuse: dict[str, Any]) -> None:
        self.asked: Counter[str] = Counter()
        self.refuse, self.port, self.released = refuse, 0, asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked[name] += 1
        return web.Response(**self.refuse) if name.startswith("odd") else web.Response(body=picture(1))


def run_shard(out: Path, host: Limited, names: list[str], **settings: Any) -> dict[str, tuple[str, int]]:
    """Outcome and tries of each URL."""
    write_pairs(out, [{"url": f"http://127.0.0.1:{host.port}/{name}", "caption": "x"} for name in names])
    usual = Fetch(allow_hosts=(f"127.0.0.1:{host.port}",), **settings)
    plan(out, usual)
    fetch(out, usual)
    (raw,) = (out / "raw").glob("*.parquet")
    rows = pq.read_table(raw, columns=["key", "url"]).to_pylist()
    log = {row["key"]: row for row in pq.read_table(out / "_log" / "fetch" / raw.name).to_pylist()}
    return {
        row["url"].rpartition("/")[2]: (log[row["key"]]["outcome"], log[row["key"]]["tries"]) for row in rows
    }


class Hasty(Limited):
    """A host that lets 60 requests a second through, and 5 at once."""

    left, last = 5.0, 0.0

    async def answer(self, request: web.Request) -> web.Response:
        clock = time.monotonic()
        self.left = min(5.0, self.left + (clock - self.last) * 60)
        self.last = clock
        if self.left < 1:
            self.asked["refused"] += 1
            return web.Response(**self.refuse)
        self.left -= 1
        return await super().answer(request)


@pytest.mark.parametrize("status", [429, 503])
def test_a_shard_loses_nothing_to_a_host_that_limits_its_rate(status: int, tmp_path: Path) -> None:
    with serving(Hasty({"status": status})) as host:
        fates = run_shard(tmp_path, host, [f"good-{n}" for n in range(40)], backoff_s=0.02, per_host=8)
        assert {outcome for outcome, _ in fates.values()} == {"ok"}
        assert 1 <= host.asked["refused"] < 40


def test_a_host_that_refuses_for_longer_than_patience_is_not_asked_for_the_rest(tmp_path: Path) -> None:
    with serving(Limited({"status": 429, "headers": {"Retry-After": "60"}})) as host:
        names = [f"odd-{n}" for n in range(50)]
        fates = run_shard(tmp_path, host, names, per_host=2, patience_s=0, backoff_s=0)
        assert {outcome for outcome, _ in fates.values()} == {"too_many_requests"}
        assert sum(tries for _, tries in fates.values()) == host.asked.total() <= 2


@pytest.mark.parametrize(("status", "tries"), [(429, 17), (503, 3), (500, 3)])
def test_one_url_that_is_always_refused_ends_and_costs_its_neighbours_nothing(
    status: int, tries: int, tmp_path: Path
) -> None:
    word = {429: "too_many_requests"}.get(status, "server_error")
    with serving(Limited({"status": status})) as host:
        fates = run_shard(tmp_path, host, ["odd", *(f"good-{n}" for n in range(10))], backoff_s=0, retries=2)
        assert fates.pop("odd") == (word, tries)
        assert set(fates.values()) == {("ok", 1)}


def test_a_refusal_through_a_redirect_or_an_odd_head_is_one_too() -> None:
    soon = formatdate(time.time() + 0.9, usegmt=True).encode()
    answers = {
        b"/1": page("302 Found", b"Location: /2"),
        b"/2": page("429 Slow Down", b"Retry-After: 7"),
        b"/3": b"HTTP/2 503 x\r\nno colon\r\nRetry-After: " + soon + b"\r\n\r\n",
    }
    first, second = ask(answers, "/1", "/3", max_pause_s=0)
    assert (first.outcome, first.pause_s, first.is_limited) == ("too_many_requests", 7, True)
    assert (second.outcome, second.is_limited) == ("server_error", True)
