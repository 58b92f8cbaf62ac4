"""Politeness as a promise: what one host sees of the whole cluster, counted at the host."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.budget import Budget, budget_of, lanes_of
from pairmill.crawl.client import Client
from pairmill.crawl.fetch import Fetcher, fetch_tasks
from pairmill.crawl.generations import UNKNOWN, Generations
from pairmill.crawl.turns import Shares
from pairmill.recipe import Fetch
from pairmill.runner import Task, may_join

GIANT, OTHER = "giant.web.test", "other.web.test"


class Counting:
    """One server for all hosts: when each request for a picture came, and how many there were at once."""

    answers_all = True

    def __init__(self, latency_s: float = 0.02) -> None:
        self.begun: dict[str, list[float]] = {}
        self.busy: dict[str, int] = {}
        self.busiest: dict[str, int] = {}
        self.latency_s, self.port, self.released = latency_s, 0, asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        host = request.headers["Host"]
        self.begun.setdefault(host, []).append(time.monotonic())
        self.busy[host] = self.busy.get(host, 0) + 1
        self.busiest[host] = max(self.busiest.get(host, 0), self.busy[host])
        try:
            await asyncio.sleep(self.latency_s)
            known = request.path.startswith("/p")
            return web.Response(body=picture(1)) if known else web.Response(status=404)
        finally:
            self.busy[host] -= 1

    def most_in(self, host: str, seconds: float) -> int:
        """The most requests that came within any such span."""
        times, first, most = sorted(self.begun[host]), 0, 0
        for at, last in enumerate(times):
            while last - times[first] >= seconds:
                first += 1
            most = max(most, at - first + 1)
        return most


def web_of(out: Path, sizes: dict[str, int]) -> list[str]:
    """pairs/ of so many pictures of each host."""
    urls = [f"http://{host}/p{n}" for host, size in sizes.items() for n in range(size)]
    write_pairs(out, [{"url": url, "caption": "x"} for url in urls])
    return urls


def run_beside(
    out: Path,
    settings: Fetch,
    resolve: dict[str, str],
    at_once: int,
) -> None:
    """Run the tasks of fetching so many at a time, as an engine does: those that may join the others."""
    waiting = fetch_tasks(out, settings, resolve)
    waiting = [task for task in waiting if not (out / "raw" / f"{task.name}.parquet").exists()]
    running: dict[Future[Any], Task] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            while len(running) < at_once:
                task = next((task for task in waiting if may_join(task, running.values())), None)
                if task is None:
                    break
                waiting.remove(task)
                running[pool.submit(Fetcher(out, settings, resolve), task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                running.pop(future)


@pytest.fixture
def counting() -> Iterator[Counting]:
    """A server of this test alone."""
    with serving(Counting()) as host:
        yield host


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 4, 16])
def test_no_host_sees_more_than_its_budget_however_many_tasks_there_are(
    at_once: int, counting: Counting, tmp_path: Path
) -> None:
    sizes = {GIANT: 60, OTHER: 30, **{f"small-{n}.web.test": 3 for n in range(20)}}
    urls = web_of(tmp_path, sizes)
    settings = Fetch(
        urls_per_shard=10,
        per_host=3,
        per_host_rate=20,
        hosts={GIANT: {"at_once": 4, "per_second": 40}, "*.other.web.test": {}},  # pyright: ignore[reportArgumentType]
        image_size=16,
    )
    resolve = {f"{host}:80": f"127.0.0.1:{counting.port}" for host in sizes}
    plan(tmp_path, settings)
    run_beside(tmp_path, settings, resolve, at_once)
    raw = [pq.read_table(path, columns=["url", "outcome"]) for path in (tmp_path / "raw").glob("*.parquet")]
    assert sorted(url for table in raw for url in table["url"].to_pylist()) == sorted(urls)
    assert {outcome for table in raw for outcome in table["outcome"].to_pylist()} == {"ok"}
    for host in sizes:
        at_most, rate = (4, 40) if host == GIANT else (3, 20)
        assert counting.busiest[host] <= at_most
        # a request that a busy machine holds up may come beside the next
        assert counting.most_in(host, 1.0) <= rate + 1, host


def test_a_small_host_lies_in_one_shard_and_a_giant_says_in_which_lanes(tmp_path: Path) -> None:
    sizes = {GIANT: 45, OTHER: 11, **{f"small-{n}.web.test": n % 2 + 1 for n in range(40)}}
    web_of(tmp_path, sizes)
    settings = Fetch(urls_per_shard=10, per_host=4, hosts={GIANT: {"at_once": 3}})  # pyright: ignore[reportArgumentType]
    plan(tmp_path, settings)
    tasks = {
        task.name: task.data for task in fetch_tasks(tmp_path, settings, [f"{host}:80" for host in sizes])
    }
    shards: dict[str, set[str]] = {}
    for name in tasks:
        table = pq.read_table(tmp_path / "_plan" / "fetch" / f"{name}.parquet", columns=["url", "url_hash"])
        hashes = table["url_hash"].to_pylist()
        assert hashes == sorted(hashes)
        assert table.num_rows <= 12
        for url in table["url"].to_pylist():
            shards.setdefault(url.split("/")[2], set()).add(name)
    assert all(len(names) == 1 for host, names in shards.items() if host.startswith("small"))
    of_giants = shards[GIANT] | shards[OTHER]
    assert len(of_giants) == 6
    assert {tasks[name]["lanes"] for name in of_giants} == {3}
    assert len({tasks[name]["lane"] for name in of_giants}) == 3
    assert all("lane" not in said for name, said in tasks.items() if name not in of_giants)


def test_a_plan_whose_mark_is_lost_is_fetched_one_shard_after_the_other(tmp_path: Path) -> None:
    web_of(tmp_path, {GIANT: 30})
    settings = Fetch(urls_per_shard=10, user_agent="Bot (+http://bot.test/)")
    plan(tmp_path, settings)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "00000.parquet").write_bytes((tmp_path / "_plan/fetch/00000.parquet").read_bytes())
    (tmp_path / "_plan" / "fetch" / "g0.json").unlink()
    Generations(tmp_path).restore()
    lanes = {(task.data["lane"], task.data["lanes"]) for task in fetch_tasks(tmp_path, settings)}
    assert lanes == {(f"{UNKNOWN}.0", 1)}


def test_a_list_that_is_fetched_whole_in_one_shard_has_no_lanes(tmp_path: Path) -> None:
    web_of(tmp_path, {GIANT: 30})
    plan(tmp_path, Fetch())
    assert [task.data for task in fetch_tasks(tmp_path, Fetch())] == [{"turn": "0.0"}]


@pytest.mark.parametrize(
    ("other", "may"),
    [
        ({"turn": "0.0"}, True),
        ({"turn": "0.0", "lane": "0.1"}, True),
        ({"turn": "0.0", "lane": "0.0"}, False),
        ({"turn": "0.1"}, False),
        ({}, False),
    ],
)
def test_tasks_of_one_lane_or_of_two_turns_do_not_run_at_once(other: dict[str, str], may: bool) -> None:
    task = Task("fetch", "a", {"turn": "0.0", "lane": "0.0"})
    assert may_join(task, [Task("fetch", "b", other)]) is may
    assert may_join(task, [])
    assert may_join(Task("x", "a"), [Task("x", "b")])


def test_a_run_that_goes_on_after_a_kill_does_not_ask_beside_what_was_asked_before(
    counting: Counting, tmp_path: Path
) -> None:
    web_of(tmp_path, {GIANT: 30})
    settings = Fetch(urls_per_shard=10, per_host=2, per_host_rate=8, image_size=16)
    resolve = {f"{GIANT}:80": f"127.0.0.1:{counting.port}"}
    plan(tmp_path, settings)

    async def killed() -> None:
        """Ask until the process would be gone."""
        async with Client(settings, resolve) as client:
            tasks = [asyncio.ensure_future(client.get(f"http://{GIANT}/p{n}")) for n in range(30)]
            await asyncio.sleep(1.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(killed())
    run_beside(tmp_path, settings, resolve, 4)
    assert counting.busiest[GIANT] <= 2
    assert counting.most_in(GIANT, 1.0) <= 8 + 1
    assert len(list((tmp_path / "raw").glob("*.tar"))) == 3


@pytest.mark.parametrize(
    ("host", "budget"),
    [
        ("a.test", Budget(4, 10.0)),
        ("own.test", Budget(4, None)),
        ("cdn.example.com", Budget(9, 100.0)),
        ("example.com", Budget(9, 100.0)),
        ("img.cdn.example.com", Budget(9, 100.0)),
        ("slow.example.com", Budget(1, 0.5)),
        ("notexample.com", Budget(4, 10.0)),
    ],
)
def test_a_host_has_the_budget_of_the_most_exact_name_in_the_recipe(host: str, budget: Budget) -> None:
    settings = Fetch.model_validate(
        {
            "hosts": {
                "*.example.com": {"at_once": 9, "per_second": 100},
                "slow.example.com": {"at_once": 1, "per_second": 0.5},
            }
        }
    )
    assert budget_of(host, settings, {"own.test"}) == budget


@pytest.mark.parametrize(
    ("budget", "lanes"), [(Budget(4), 4), (Budget(8, 3.5), 3), (Budget(8, 0.5), 1), (Budget(2, 100), 2)]
)
def test_shares_of_a_budget_are_whole_requests_and_no_more_than_the_budget(
    budget: Budget, lanes: int
) -> None:
    assert budget.most_lanes == lanes
    for n in range(1, lanes + 1):
        share = budget.share(n)
        assert n * share.at_once <= budget.at_once
        assert share.at_once >= 1
        if budget.per_second:
            assert n / share.interval_s <= budget.per_second + 1e-9
    hosts = {"a.test": {"at_once": budget.at_once, "per_second": budget.per_second}}
    assert lanes_of(["a.test"], 99, Fetch.model_validate({"hosts": hosts}), {"a.test"}) == lanes


def test_a_host_that_only_a_redirect_leads_to_is_asked_one_at_a_time() -> None:
    shares = Shares(frozenset({"planned.test"}), 2)
    assert shares.of("planned.test", Budget(4, 10)) == Budget(2, 5)
    assert shares.of("elsewhere.test", Budget(4, 10)) == Budget(1, 10)


def test_a_host_that_dies_is_left_alone(tmp_path: Path) -> None:
    class Dying:
        answers_all, port, released, asked = True, 0, asyncio.Event(), 0

        async def answer(self, request: web.Request) -> web.StreamResponse:
            self.asked += request.path.startswith("/p")
            if not request.path.startswith("/p"):
                return web.Response(status=404)
            if self.asked <= 3:
                return web.Response(body=picture(1))
            assert request.transport is not None
            request.transport.close()
            return web.Response()

    with serving(Dying()) as host:
        resolve = {f"{GIANT}:80": f"127.0.0.1:{host.port}"}
        settings = Fetch(dead_after=5, retries=0, per_host=1, image_size=16)
        web_of(tmp_path, {GIANT: 40})
        plan(tmp_path, settings)
        run_beside(tmp_path, settings, resolve, 1)
        (raw,) = (tmp_path / "raw").glob("*.parquet")
        outcomes = pq.read_table(raw)["outcome"].to_pylist()
        assert (outcomes.count("ok"), outcomes.count("connection")) == (3, 37)
        assert host.asked <= 3 + 2 * 5  # aiohttp asks once more where a kept connection was closed


def test_a_proxy_gets_every_request_and_the_names_are_not_resolved_here() -> None:
    asked: list[str] = []

    class Proxy:
        answers_all, port, released = True, 0, asyncio.Event()

        async def answer(self, request: web.Request) -> web.Response:
            asked.append(request.raw_path)
            found = request.path.endswith("x.jpg")
            return web.Response(body=picture(1)) if found else web.Response(status=404)

    async def run(port: int) -> list[str]:
        settings = Fetch(proxy=f"http://127.0.0.1:{port}", signals=("robots",))
        async with Client(settings) as client:
            urls = ("http://no-such-host.test/x.jpg", "http://10.0.0.1/x.jpg")
            return [(await client.get(url)).outcome for url in urls]

    with serving(Proxy()) as proxy:
        assert asyncio.run(run(proxy.port)) == ["ok", "not_public"]
    assert asked == ["http://no-such-host.test/robots.txt", "http://no-such-host.test/x.jpg"]
    assert threading.active_count() < 200
