"""Fetching again: a stopped run, a retry wave, another plan; and how many requests go to one host at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import fetch, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.client import PASSING
from pairmill.crawl.fetch import (
    fetch_stage,
    fetch_tasks,
    plan_retry,
)
from pairmill.progress import Quiet
from pairmill.recipe import Fetch
from pairmill.runner import Here
from pairmill.shards.job import run_stage

FATES = {
    "good-1": "ok",
    "missing": "not_found",
    "broken": "server_error",
    "later": "server_error",  # until the host is healed
    "limited": "too_many_requests",
    "hushed": "noai",
}


class Host:
    """A server that gives each name of FATES its fate, and a picture for good-<number>."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.healed = False
        self.busy = self.busiest = 0
        self.port = 0
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked[name] += 1
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        failures = {"missing": 404, "broken": 500, "limited": 429, "later": 200 if self.healed else 503}
        failure = failures.get(name, 200)
        if failure != 200:
            return web.Response(status=failure)
        headers = {"X-Robots-Tag": "noai"} if name == "hushed" else {}
        number = name.removeprefix("good-")
        return web.Response(body=picture(int(number) if number.isdigit() else 3), headers=headers)


@pytest.fixture
def host() -> Iterator[Host]:
    """A server of this test alone."""
    with serving(Host()) as host:
        yield host


def write_fates(out: Path, host: Host) -> None:
    """Two pairs for every fate."""
    urls = [f"http://127.0.0.1:{host.port}/{name}" for name in FATES]
    write_pairs(out, [{"url": url, "caption": f"{word} picture"} for url in urls for word in ("a", "the")])


def outcomes_of(out: Path, wave: int) -> dict[str, str]:
    table = pa.concat_tables([pq.read_table(path) for path in sorted((out / "raw").glob("*.parquet"))])
    rows = table.filter(pc.equal(table["wave"], wave)).to_pylist()
    return {row["url"].rpartition("/")[2]: row["outcome"] for row in rows}


def settings_for(host: Host, **over: Any) -> Fetch:
    usual: dict[str, Any] = {
        "allow_hosts": (f"127.0.0.1:{host.port}",),
        "deadline_s": 4.0,
        "max_bytes": 1_000_000,
        "per_host": 32,
        "backoff_s": 0.0,
        "urls_per_shard": 10,
        "image_size": 48,
    }
    return Fetch(**(usual | over))


def all_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "raw").iterdir())}


def test_one_host_gets_no_more_requests_at_once_than_the_recipe_says(host: Host, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{host.port}"
    write_pairs(tmp_path, [{"url": f"{base}/good-{n}", "caption": "x"} for n in range(40)])
    settings = settings_for(host, per_host=3, urls_per_shard=100)
    plan(tmp_path, settings)
    assert fetch(tmp_path, settings).counts == {"ok": 40}
    assert 1 <= host.busiest <= 3


@pytest.mark.parametrize("lost", ["tally", "tally and half a tar", "tally and sidecar"])
def test_a_stopped_run_ends_with_the_same_bytes(host: Host, tmp_path: Path, lost: str) -> None:
    write_pairs(
        tmp_path, [{"url": f"http://127.0.0.1:{host.port}/good-{n}", "caption": f"no {n}"} for n in range(25)]
    )
    settings = settings_for(host)
    plan(tmp_path, settings)
    expected, whole = fetch(tmp_path, settings), all_bytes(tmp_path)
    (tmp_path / "_done" / "fetch" / "00001.json").unlink()
    if "tar" in lost:
        (tmp_path / "raw" / "00001.tar").write_bytes(b"half")
    if "sidecar" in lost:
        (tmp_path / "raw" / "00001.parquet").unlink()
    again = fetch(tmp_path, settings_for(host, concurrency=1))
    assert (again.counts, again.facts, again.skipped) == (expected.counts, expected.facts, 2)
    assert all_bytes(tmp_path) == whole
    assert host.asked["good-3"] + host.asked["good-4"] >= 2


def test_a_retry_wave_asks_for_the_passing_failures_only(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host)
    settings = settings_for(host, urls_per_shard=2, retries=0)
    plan(tmp_path, settings)
    assert plan_retry(tmp_path, settings) == 0  # the first wave is not fetched yet
    fetch(tmp_path, settings)
    before, first = all_bytes(tmp_path), host.asked.copy()
    passing = {name for name in FATES if FATES[name] in PASSING}
    host.healed = True
    assert plan_retry(tmp_path, settings) == 2 * len(passing)
    assert plan_retry(tmp_path, settings) == 0  # nor is this one
    fetch(tmp_path, settings)
    assert outcomes_of(tmp_path, 0) == FATES
    assert outcomes_of(tmp_path, 1) == {name: "ok" if name == "later" else FATES[name] for name in passing}
    assert {name for name in host.asked if host.asked[name] > first[name]} == passing
    assert {name: all_bytes(tmp_path)[name] for name in before} == before
    assert [task.name for task in fetch_tasks(tmp_path, settings)][-2:] == ["w1-00000", "w1-00001"]


def test_a_wave_half_planned_is_planned_anew(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host)
    settings = settings_for(host, urls_per_shard=2, retries=0)
    plan(tmp_path, settings)
    fetch(tmp_path, settings)
    rows = plan_retry(tmp_path, settings)
    (tmp_path / "_plan" / "fetch" / "w1.json").unlink()
    (tmp_path / "_plan" / "fetch" / "w1-00001.parquet").unlink()
    assert not [task for task in fetch_tasks(tmp_path, settings) if task.name.startswith("w")]
    assert plan_retry(tmp_path, settings) == rows


def test_what_was_fetched_stays_when_it_is_planned_again_for_other_pairs(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host)
    plan(tmp_path, settings_for(host))
    before = fetch(tmp_path, settings_for(host)).counts
    raw = all_bytes(tmp_path)
    (tmp_path / "_done" / "plan-fetch" / "all.json").unlink()
    write_pairs(tmp_path, [{"url": f"http://127.0.0.1:{host.port}/good-99", "caption": "x"}])
    plan(tmp_path, settings_for(host))
    assert fetch(tmp_path, settings_for(host)).counts == before + Counter(ok=1)
    now = all_bytes(tmp_path)
    assert {name: now[name] for name in raw} == raw
    assert sorted(now.keys() - raw.keys()) == ["g1-00000.parquet", "g1-00000.tar"]


def test_a_new_plan_before_anything_was_fetched_leaves_nothing_of_the_old_one(
    host: Host, tmp_path: Path
) -> None:
    write_fates(tmp_path, host)
    plan(tmp_path, settings_for(host, urls_per_shard=2))
    (tmp_path / "_done" / "plan-fetch" / "all.json").unlink()
    write_pairs(tmp_path, [{"url": f"http://127.0.0.1:{host.port}/good-1", "caption": "x"}])
    plan(tmp_path, settings_for(host))
    assert fetch(tmp_path, settings_for(host)).counts == {"ok": 1}
    assert sorted(all_bytes(tmp_path)) == ["00000.parquet", "00000.tar"]


def test_a_stand_in_is_reached_in_place_of_the_named_host(host: Host, tmp_path: Path) -> None:
    write_pairs(tmp_path, [{"url": "http://photos.invalid/good-1", "caption": "x"}])
    settings = Fetch(deadline_s=5)
    plan(tmp_path, settings)
    stage = fetch_stage(tmp_path, settings, resolve={"photos.invalid:80": f"127.0.0.1:{host.port}"})
    report = run_stage(tmp_path, stage, fetch_tasks(tmp_path, settings), Here(), Quiet())
    assert report.counts == {"ok": 1}
