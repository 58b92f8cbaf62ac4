"""Fetching from a loopback server that misbehaves in every way a host can."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from PIL import Image

from pairmill.crawl.client import PASSING, Client
from pairmill.crawl.fetch import (
    fetch_stage,
    fetch_tasks,
    plan_fetch_stage,
    plan_fetch_tasks,
    plan_retry,
)
from pairmill.crawl.plan import PLAN, cut
from pairmill.errors import DataError
from pairmill.progress import Quiet
from pairmill.recipe import Fetch
from pairmill.runner import Here
from pairmill.shards.job import StageReport, inputs_digest, run_stage
from pairmill.shards.schema import PAIRS, RAW, SCREEN, make_uid, text_hash
from pairmill.shards.tar import TarWriter, members, read_at


def picture(number: int, size: tuple[int, int] = (80, 60), form: str = "JPEG") -> bytes:
    """Coloured noise, smooth enough for a JPEG, different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of `side` squared black pixels that says so in its header and holds but a few of them."""
    size = side.to_bytes(4, "big") * 2
    chunks = ((b"IHDR", size + b"\x08\2\0\0\0"), (b"IDAT", zlib.compress(bytes(1_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


GZIP_BOMB = gzip.compress(bytes(20_000_000), compresslevel=1)


class Host:
    """The misbehaving server: what it was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.healed = False
        self.busy = self.busiest = 0
        self.port = 0
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        self.headers.append(dict(request.headers))
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            return await getattr(self, name.split("-")[0])(request, name)
        except ConnectionError:  # the client left, as it should
            return web.Response()
        finally:
            self.busy -= 1

    async def good(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=picture(int(name.split("-")[1])))

    async def busyhost(self, request: web.Request, name: str) -> web.Response:
        await asyncio.sleep(0)
        return web.Response(body=picture(1))

    async def missing(self, request: web.Request, name: str) -> web.Response:
        return web.Response(status=404)

    async def forbidden(self, request: web.Request, name: str) -> web.Response:
        return web.Response(status=403)

    async def broken(self, request: web.Request, name: str) -> web.Response:
        return web.Response(status=500)

    async def once(self, request: web.Request, name: str) -> web.Response:
        if self.asked[name] == 1:
            return web.Response(status=500)
        return web.Response(body=picture(2))

    async def later(self, request: web.Request, name: str) -> web.Response:
        if not self.healed:
            return web.Response(status=503)
        return web.Response(body=picture(3))

    async def limited(self, request: web.Request, name: str) -> web.Response:
        if self.asked[name] == 1:
            return web.Response(status=429, headers={"Retry-After": "0"})
        return web.Response(body=picture(4))

    async def silent(self, request: web.Request, name: str) -> web.Response:
        await self.released.wait()
        return web.Response(body=picture(5))

    async def endless(self, request: web.Request, name: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.released.is_set():
            await response.write(b"\xff\xd8\xff")
            await asyncio.wait([asyncio.ensure_future(self.released.wait())], timeout=0.05)
        return response

    async def flood(self, request: web.Request, name: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(bytes(100_000))
        return response

    async def declared(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=bytes(1_500_000))

    async def loop(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound(f"/{name}")

    async def hop(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound("/good-6#fragment")

    async def inside(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")

    async def neighbour(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound("http://0x7f.1:1/admin")

    async def disk(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound("file:///etc/passwd")

    async def nowhere(self, request: web.Request, name: str) -> web.Response:
        return web.Response(status=302)

    async def page(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=b"<!DOCTYPE html><title>gone</title>", content_type="image/jpeg")

    async def cut(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=picture(7, (400, 300))[:3_000])

    async def bomb(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=png_bomb(19_000))

    async def hushed(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=picture(8), headers={"X-Robots-Tag": "max-image-preview: large, noai"})

    async def moved(self, request: web.Request, name: str) -> web.Response:
        raise web.HTTPFound("/good-1", headers={"X-Robots-Tag": "noindex"})

    async def packed(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=gzip.compress(picture(9)), headers={"Content-Encoding": "gzip"})

    async def gzipbomb(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=GZIP_BOMB, headers={"Content-Encoding": "gzip"})

    async def empty(self, request: web.Request, name: str) -> web.Response:
        return web.Response(body=b"")

    async def short(self, request: web.Request, name: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(picture(1)[:100])
        assert request.transport is not None
        request.transport.close()
        return response


FATES = {
    "good-1": "ok",
    "good-2": "ok",
    "missing": "not_found",
    "forbidden": "client_error",
    "broken": "server_error",
    "once": "ok",
    "later-1": "server_error",
    "limited": "ok",
    "silent": "timeout",
    "endless": "timeout",
    "flood": "too_big",
    "declared": "too_big",
    "loop": "redirects",
    "hop": "ok",
    "inside": "not_public",
    "neighbour": "not_public",
    "disk": "bad_url",
    "nowhere": "bad_response",
    "page": "not_image",
    "cut": "image_truncated",
    "bomb": "too_many_pixels",
    "hushed": "opted_out",
    "moved": "opted_out",
    "packed": "ok",
    "gzipbomb": "too_big",
    "empty": "empty",
    "short": "connection",
}


QUICK = ("good-1", "missing", "broken", "later-1", "short", "page", "hushed")


@pytest.fixture
def host() -> Iterator[Host]:
    """A server of this test alone."""
    with serving() as host:
        yield host


@contextmanager
def serving() -> Iterator[Host]:
    """A server on 127.0.0.1, port 0, in a thread of its own."""
    loop = asyncio.new_event_loop()
    ready, found = threading.Event(), []

    async def run() -> None:
        host = Host()
        app = web.Application()
        app.router.add_get("/{name}", host.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host.port = runner.addresses[0][1]
        found.append(host)
        ready.set()
        await stop.wait()
        host.released.set()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


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


def write_pairs(out: Path, rows: list[dict[str, Any]], reasons: list[str | None] | None = None) -> None:
    """One part of pairs/ with `rows` (url, caption, …) and its screen; every row is wanted by default."""
    for row in rows:
        row.setdefault("uid", make_uid(row["url"], row["caption"]))
        row.setdefault("url_hash", text_hash(row["url"]))
    full = [{name: row.get(name) for name in PAIRS.names} for row in rows]
    table = pa.Table.from_pylist(full, schema=PAIRS)
    screen = pa.table([table["uid"], pa.array(reasons or [None] * len(rows), pa.string())], schema=SCREEN)
    for folder, content in (("pairs", table), ("selection/screen", screen)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(content, out / folder / "0000-00000.parquet")


def write_fates(out: Path, host: Host, names: Iterable[str] = FATES) -> None:
    """Two pairs for every way to end that `names` has."""
    urls = [f"http://127.0.0.1:{host.port}/{name}" for name in names]
    write_pairs(out, [{"url": url, "caption": f"{word} picture"} for url in urls for word in ("a", "the")])


def plan(out: Path, settings: Fetch) -> StageReport:
    return run_stage(out, plan_fetch_stage(out, settings), plan_fetch_tasks(out), Here(retries=0), Quiet())


def fetch(out: Path, settings: Fetch) -> StageReport:
    tasks, stage = fetch_tasks(out, settings), fetch_stage(out, settings)
    report = run_stage(out, stage, tasks, Here(retries=0), Quiet(), inputs=inputs_digest(out, "plan-fetch"))
    assert not report.failed, report.failed
    return report


def read_raw(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / "raw").glob("*.parquet"))])


def all_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "raw").iterdir())}


def fates_of(table: pa.Table) -> dict[str, str]:
    urls, outcomes = table["url"].to_pylist(), table["outcome"].to_pylist()
    return {url.rpartition("/")[2]: outcome for url, outcome in zip(urls, outcomes, strict=True)}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run over all of FATES, 10 URLs per shard, two retries."""

    out: Path
    host: Host
    report: StageReport


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Read only: many tests look at it."""
    out = tmp_path_factory.mktemp("run")
    with serving() as host:
        write_fates(out, host)
        settings = settings_for(host, user_agent="pairmill-test/1")
        planned = plan(out, settings)
        assert planned.counts == {"wanted": 2 * len(FATES), "screened": 0}
        yield Run(out, host, fetch(out, settings))


def test_every_way_to_end_has_its_word_and_every_pair_is_counted_once(run: Run) -> None:
    table = read_raw(run.out)
    assert fates_of(table) == FATES
    assert run.report.counts == Counter({word: 2 * n for word, n in Counter(FATES.values()).items()})
    assert table.num_rows == 2 * len(FATES) == pc.count_distinct(table["uid"]).as_py()
    assert table.schema.equals(RAW)


def test_a_url_is_asked_once_and_again_only_for_a_passing_failure(run: Run) -> None:
    tries = {
        "broken": 3,
        "later-1": 3,
        "short": 3,
        "once": 2,
        "limited": 2,
        "good-1": 1,
        "missing": 1,
        "silent": 1,
    }
    assert {name: run.host.asked[name] for name in tries} == tries
    assert run.host.asked["good-6"] == 1  # only through the redirect
    assert run.host.asked["loop"] == Fetch().max_redirects + 1


def test_requests_name_the_crawler_and_carry_nothing_else(run: Run) -> None:
    said = {name for headers in run.host.headers for name in headers}
    assert said <= {"Host", "User-Agent", "Accept", "Accept-Encoding"}
    assert {headers["User-Agent"] for headers in run.host.headers} == {"pairmill-test/1"}
    assert {headers["Accept-Encoding"] for headers in run.host.headers} == {"identity"}


def test_one_host_gets_no_more_requests_at_once_than_the_recipe_says(host: Host, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{host.port}"
    write_pairs(tmp_path, [{"url": f"{base}/busyhost-{n}", "caption": "x"} for n in range(40)])
    settings = settings_for(host, per_host=3, urls_per_shard=100)
    plan(tmp_path, settings)
    assert fetch(tmp_path, settings).counts == {"ok": 40}
    assert 1 <= host.busiest <= 3


def test_the_tar_holds_each_picture_once_with_its_captions_in_order_of_key(run: Run) -> None:
    tar = max((run.out / "raw").glob("*.tar"), key=lambda path: path.stat().st_size)
    found = list(members(tar))
    rows = pq.read_table(tar.with_suffix(".parquet")).to_pylist()
    good = [row for row in rows if row["outcome"] == "ok"]
    assert good
    assert [member.stem for member in found][::3] == sorted({row["key"] for row in good})
    places = {member.name: member for member in found}
    with open(tar, "rb") as file:
        for row in good:
            data = read_at(file, row["offset"], row["size"])
            assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"]) == (64, 48)
            text = places[row["key"] + ".txt"]
            facts_at = places[row["key"] + ".json"]
            facts = json.loads(read_at(file, facts_at.offset, facts_at.size))
            assert read_at(file, text.offset, text.size).decode() == facts["captions"][0]
            assert (facts["url"], facts["sha256"]) == (row["url"], row["sha256"].hex())
            assert facts["uids"] == sorted(facts["uids"])
            assert row["uid"].hex() in facts["uids"]
            assert row["url_hash"].hex() == row["key"]


def test_a_failed_row_says_what_is_known(run: Run) -> None:
    rows = {row["url"].rpartition("/")[2]: row for row in read_raw(run.out).to_pylist()}
    assert (rows["missing"]["http_status"], rows["missing"]["sha256"]) == (404, None)
    assert rows["page"]["original_bytes"] == 34
    assert rows["hop"]["final_url"].endswith("/good-6")
    assert rows["silent"]["http_status"] is None
    assert all(rows[name]["offset"] is None for name, fate in FATES.items() if fate != "ok")
    log = pq.read_table(run.out / "_log" / "fetch" / "00000.parquet")
    assert log.column_names == ["key", "outcome", "tries", "fetch_s", "decode_s", "detail"]


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


def test_a_finished_run_asks_nothing_again(run: Run) -> None:
    asked, settings = run.host.asked.total(), settings_for(run.host)
    again = fetch(run.out, settings)
    assert (again.counts, again.skipped, again.rows) == (run.report.counts, 3, 0)
    assert run.host.asked.total() == asked


def test_a_retry_wave_asks_for_the_passing_failures_only(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host, QUICK)
    settings = settings_for(host, urls_per_shard=2, retries=0)
    plan(tmp_path, settings)
    assert plan_retry(tmp_path, settings) == 0  # the first wave is not fetched yet
    fetch(tmp_path, settings)
    before, first = all_bytes(tmp_path), host.asked.copy()
    passing = {name for name in QUICK if FATES[name] in PASSING}
    host.healed = True
    assert plan_retry(tmp_path, settings) == 2 * len(passing)
    assert plan_retry(tmp_path, settings) == 0  # nor is this one
    fetch(tmp_path, settings)
    table = read_raw(tmp_path)
    wave = table.filter(pc.equal(table["wave"], 1))
    assert fates_of(wave) == {name: "ok" if name == "later-1" else FATES[name] for name in passing}
    assert {name for name in host.asked if host.asked[name] > first[name]} == passing
    assert {name: all_bytes(tmp_path)[name] for name in before} == before
    assert [task.name for task in fetch_tasks(tmp_path, settings)][-2:] == ["w1-00000", "w1-00001"]


def test_a_wave_half_planned_is_planned_anew(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host, QUICK)
    settings = settings_for(host, urls_per_shard=2, retries=0)
    plan(tmp_path, settings)
    fetch(tmp_path, settings)
    rows = plan_retry(tmp_path, settings)
    (tmp_path / "_plan" / "fetch" / "w1.json").unlink()
    (tmp_path / "_plan" / "fetch" / "w1-00001.parquet").unlink()
    assert not [task for task in fetch_tasks(tmp_path, settings) if task.name.startswith("w")]
    assert plan_retry(tmp_path, settings) == rows


def test_a_picture_in_a_tar_is_read_from_there(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "other.tar"
    with TarWriter(source) as tar:
        places = [(tar.add(f"{n}.jpg", picture(n)), len(picture(n))) for n in range(3)]
    rows = [
        {
            "url": f"http://example.com/{n}",
            "caption": "x",
            "tar_path": str(source),
            "tar_offset": at,
            "tar_size": size,
        }
        for n, (at, size) in enumerate([*places, (10**6, 5), (0, 2_000_000)])
    ]
    rows.append({"url": "http://example.com/0", "caption": "of the same picture, from a list without it"})
    write_pairs(tmp_path, rows)
    plan(tmp_path, settings_for(host))
    assert fetch(tmp_path, settings_for(host)).counts == {"ok": 4, "tar_unreadable": 1, "too_big": 1}
    assert host.asked.total() == 0


def test_a_plan_takes_wanted_pairs_once_in_order_of_url_hash(host: Host, tmp_path: Path) -> None:
    rows = [{"url": f"http://example.com/{n % 20}", "caption": f"caption {n}"} for n in range(60)]
    rows.append(dict(rows[0]))  # a copy that nobody screened out
    reasons = ["caption_short" if n % 4 == 0 else None for n in range(60)] + [None]
    reasons[0] = None
    write_pairs(tmp_path, rows, reasons)
    settings = settings_for(host, urls_per_shard=8)
    report = plan(tmp_path, settings)
    assert report.counts == {"wanted": 47, "screened": 14}
    files = sorted((tmp_path / "_plan" / "fetch").glob("*.parquet"))
    tables = [pq.read_table(path) for path in files]
    urls = [pc.count_distinct(table["url"]).as_py() for table in tables]
    assert (len(urls), sum(urls), set(urls[:-1])) == (
        report.facts["all"]["shards"],
        report.facts["all"]["urls"],
        {8},
    )
    whole = pa.concat_tables(tables)
    assert whole.schema.equals(PLAN)
    order = list(zip(whole["url_hash"].to_pylist(), whole["uid"].to_pylist(), strict=True))
    wanted = {row["uid"] for row, reason in zip(rows, reasons, strict=True) if reason is None}
    assert order == sorted(order)
    assert sorted(uid for _, uid in order) == sorted(wanted)


@pytest.mark.parametrize("rows_per_batch", [1, 7, 1000])
def test_a_cut_does_not_depend_on_the_batches(rows_per_batch: int) -> None:
    rows = [(url, uid) for url in range(23) for uid in range(1 + url % 4)]
    names = [{"uid": bytes([url, uid]).ljust(16), "url_hash": bytes([url]).ljust(16)} for url, uid in rows]
    doubled = [name for name in names for _ in range(2)]
    table = pa.Table.from_pylist([{"url": "", "caption": ""} | name for name in doubled], schema=PLAN)
    cuts = list(cut(table.to_batches(rows_per_batch), 5))
    assert [pc.count_distinct(part["url_hash"]).as_py() for part in cuts] == [5, 5, 5, 5, 3]
    assert pa.concat_tables(cuts)["uid"].to_pylist() == [name["uid"] for name in names]


def test_a_new_plan_removes_the_raw_shards_that_it_does_not_know(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host, QUICK)
    plan(tmp_path, settings_for(host))
    fetch(tmp_path, settings_for(host))
    (tmp_path / "_done" / "plan-fetch" / "all.json").unlink()
    write_pairs(tmp_path, [{"url": f"http://127.0.0.1:{host.port}/good-1", "caption": "x"}])
    plan(tmp_path, settings_for(host))
    assert fetch(tmp_path, settings_for(host)).counts == {"ok": 1}
    assert sorted(all_bytes(tmp_path)) == ["00000.parquet", "00000.tar"]


def test_a_screen_of_other_pairs_is_refused(host: Host, tmp_path: Path) -> None:
    write_fates(tmp_path, host, QUICK)
    screen = tmp_path / "selection" / "screen" / "0000-00000.parquet"
    pq.write_table(pq.read_table(screen).slice(1), screen)
    assert (
        "its rows are not those of pairs/0000-00000.parquet"
        in plan(tmp_path, settings_for(host)).failed["all"]
    )


def test_nothing_worth_fetching_is_said(host: Host, tmp_path: Path) -> None:
    write_pairs(tmp_path, [{"url": "http://example.com/", "caption": "x"}], ["caption_short"])
    report = plan(tmp_path, settings_for(host))
    assert "no pair is worth fetching" in report.failed["all"]
    assert issubclass(DataError, Exception)


def test_a_stand_in_is_reached_in_place_of_the_named_host(host: Host, tmp_path: Path) -> None:
    write_pairs(tmp_path, [{"url": "http://photos.invalid/good-1", "caption": "x"}])
    settings = Fetch(deadline_s=5)
    plan(tmp_path, settings)
    stage = fetch_stage(tmp_path, settings, resolve={"photos.invalid:80": f"127.0.0.1:{host.port}"})
    report = run_stage(tmp_path, stage, fetch_tasks(tmp_path, settings), Here(), Quiet())
    assert report.counts == {"ok": 1}


def test_a_refused_connection_and_an_unknown_scheme_have_their_words(host: Host) -> None:
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
