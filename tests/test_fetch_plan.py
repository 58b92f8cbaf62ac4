"""The plan of what is fetched, and pictures that lie in a tar already: no host is asked for anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import fetch, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.crawl.plan import PLAN, cut
from pairmill.recipe import Fetch
from pairmill.shards.tar import TarWriter

SETTINGS = Fetch(deadline_s=4, max_bytes=1_000_000, retries=0, urls_per_shard=10, image_size=48)


def test_a_picture_in_a_tar_is_read_from_there(tmp_path: Path) -> None:
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
    plan(tmp_path, SETTINGS)
    assert fetch(tmp_path, SETTINGS).counts == {"ok": 4, "tar_unreadable": 1, "too_big": 1}


def test_a_plan_takes_wanted_pairs_once_in_order_of_url_hash(tmp_path: Path) -> None:
    rows = [{"url": f"http://example.com/{n % 20}", "caption": f"caption {n}"} for n in range(60)]
    rows.append(dict(rows[0]))  # a copy that nobody screened out
    reasons = ["caption_short" if n % 4 == 0 else None for n in range(60)] + [None]
    reasons[0] = None
    write_pairs(tmp_path, rows, reasons)
    settings = Fetch(urls_per_shard=8)
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


def test_a_screen_of_other_pairs_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, [{"url": f"http://example.com/{n}", "caption": "x"} for n in range(3)])
    screen = tmp_path / "selection" / "screen" / "0000-00000.parquet"
    pq.write_table(pq.read_table(screen).slice(1), screen)
    assert "its rows are not those of pairs/0000-00000.parquet" in plan(tmp_path, SETTINGS).failed["all"]


def test_nothing_worth_fetching_is_said(tmp_path: Path) -> None:
    write_pairs(tmp_path, [{"url": "http://example.com/", "caption": "x"}], ["caption_short"])
    report = plan(tmp_path, SETTINGS)
    assert "no pair is worth fetching" in report.failed["all"]


def test_bytes_that_a_host_shows_at_many_urls_are_counted_by_host(tmp_path: Path) -> None:
    class Host:
        answers_all, port, released = True, 0, asyncio.Event()

        async def answer(self, request: web.Request) -> web.Response:
            gone = "gone" in request.path
            return web.Response(body=picture(7 if gone else int(request.path.rpartition("/")[2] or 0)))

    urls = [f"http://{host}.test/gone/{n}" for host, size in (("a", 12), ("b", 3)) for n in range(size)]
    urls += [f"http://a.test/{n}" for n in range(7)]
    with serving(Host()) as host:
        place = f"127.0.0.1:{host.port}"
        write_pairs(tmp_path, [{"url": url, "caption": "x"} for url in [*urls, "http://c.test/x"]])
        settings = Fetch(signals=(), image_size=48, retries=0)
        plan(tmp_path, settings)
        fetch(tmp_path, settings, {"a.test:80": place, "b.test:80": place, "c.test:80": "127.0.0.1:9"})
    (raw,) = (tmp_path / "raw").glob("*.parquet")
    found = {row["url"]: row["host_copies_v1"] for row in pq.read_table(raw).to_pylist()}
    wanted = {url: 1 if "gone" not in url else 12 if "a.test" in url else 3 for url in urls}
    assert found == wanted | {"http://c.test/x": None}
