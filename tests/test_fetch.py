"""Fetching from a loopback server that misbehaves in every way a host can."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from fetching import fetch, picture, plan, serving, write_pairs  # pyright: ignore[reportImplicitRelativeImport]
from PIL import Image

from pairmill.crawl.attempts import SCHEMA as ATTEMPTS_SCHEMA
from pairmill.recipe import Fetch
from pairmill.shards.job import StageReport
from pairmill.shards.schema import RAW
from pairmill.shards.tar import members, read_at


def png_bomb(side: int) -> bytes:
    """A PNG of `side` squared black pixels that says so in its header and holds but a few of them."""
    size = side.to_bytes(4, "big") * 2
    chunks = ((b"IHDR", size + b"\x08\2\0\0\0"), (b"IDAT", zlib.compress(bytes(1_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


GZIP_BOMB = gzip.compress(bytes(20_000_000), compresslevel=1)


# name -> its fate, and what the host says each time: status, headers, body
SIMPLE: dict[str, tuple[str, int, dict[str, str], bytes]] = {
    "good-1": ("ok", 200, {}, picture(1)),
    "good-2": ("ok", 200, {}, picture(2)),
    "missing": ("not_found", 404, {}, b""),
    "forbidden": ("client_error", 403, {}, b""),
    "broken": ("server_error", 500, {}, b""),
    "later": ("server_error", 503, {}, b""),
    "once": ("ok", 500, {}, b""),  # a picture the second time
    "limited": ("ok", 429, {"Retry-After": "0"}, b""),  # as well
    "declared": ("too_big", 200, {}, bytes(1_500_000)),
    "loop": ("redirects", 302, {"Location": "/loop"}, b""),
    "hop": ("ok", 302, {"Location": "/good-6#fragment"}, b""),
    "inside": ("not_public", 302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
    "neighbour": ("not_public", 302, {"Location": "http://0x7f.1:1/admin"}, b""),
    "disk": ("bad_url", 302, {"Location": "file:///etc/passwd"}, b""),
    "nowhere": ("bad_response", 302, {}, b""),
    "page": ("not_image", 200, {"Content-Type": "image/jpeg"}, b"<!DOCTYPE html><title>gone</title>"),
    "cut": ("image_truncated", 200, {}, picture(7, (400, 300))[:3_000]),
    "bomb": ("too_many_pixels", 200, {}, png_bomb(19_000)),
    "hushed": ("noai", 200, {"X-Robots-Tag": "max-image-preview: large, noai"}, picture(8)),
    "moved": ("noindex", 302, {"X-Robots-Tag": "noindex", "Location": "/good-1"}, b""),
    "packed": ("ok", 200, {"Content-Encoding": "gzip"}, gzip.compress(picture(9))),
    "gzipbomb": ("too_big", 200, {"Content-Encoding": "gzip"}, GZIP_BOMB),
    "empty": ("empty", 200, {}, b""),
}
SAID = {name: simple[1:] for name, simple in SIMPLE.items()} | {"good-6": (200, {}, picture(6))}
FATES = {name: fate for name, (fate, *_) in SIMPLE.items()} | {
    **{"silent": "timeout", "endless": "timeout", "flood": "too_big", "short": "connection"}
}


class Host:
    """The misbehaving server: what it was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.port = 0
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked[name] += 1
        self.headers.append(dict(request.headers))
        if name in SAID:
            status, headers, body = SAID[name]
            if name in ("once", "limited") and self.asked[name] > 1:
                status, headers, body = 200, {}, picture(2)
            return web.Response(status=status, headers=headers, body=body)
        try:
            return await getattr(self, name)(request)
        except ConnectionError:  # the client left, as it should
            return web.Response()

    async def silent(self, request: web.Request) -> web.Response:
        await self.released.wait()
        return web.Response(body=picture(5))

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not self.released.is_set():
            await response.write(b"\xff\xd8\xff")
            await asyncio.wait([asyncio.ensure_future(self.released.wait())], timeout=0.05)
        return response

    async def flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(100):
            await response.write(bytes(100_000))
        return response

    async def short(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100000"})
        await response.prepare(request)
        await response.write(picture(1)[:100])
        assert request.transport is not None
        request.transport.close()
        return response


def settings_for(host: Host) -> Fetch:
    allowed = (f"127.0.0.1:{host.port}",)
    limits: dict[str, Any] = {"deadline_s": 4, "max_bytes": 1_000_000, "per_host": 32, "urls_per_shard": 10}
    return Fetch(allow_hosts=allowed, user_agent="pairmill-test/1", backoff_s=0, image_size=48, **limits)


def write_fates(out: Path, host: Host) -> None:
    """Two pairs for every way to end."""
    urls = [f"http://127.0.0.1:{host.port}/{name}" for name in FATES]
    write_pairs(out, [{"url": url, "caption": f"{word} picture"} for url in urls for word in ("a", "the")])


def read_raw(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / "raw").glob("*.parquet"))])


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
    with serving(Host()) as host:
        write_fates(out, host)
        settings = settings_for(host)
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
    tries = {"broken": 3, "later": 3, "short": 3, "once": 2, "limited": 2}
    tries |= {"good-1": 1, "missing": 1, "silent": 1}
    assert {name: run.host.asked[name] for name in tries} == tries
    assert run.host.asked["good-6"] == 1  # only through the redirect
    assert run.host.asked["loop"] == Fetch().max_redirects + 1


def test_requests_name_the_crawler_and_carry_nothing_else(run: Run) -> None:
    said = {name for headers in run.host.headers for name in headers}
    assert said <= {"Host", "User-Agent", "Accept", "Accept-Encoding"}
    assert {headers["User-Agent"] for headers in run.host.headers} == {"pairmill-test/1"}
    assert {headers["Accept-Encoding"] for headers in run.host.headers} == {"identity"}


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


def test_a_finished_run_asks_nothing_again(run: Run) -> None:
    asked, settings = run.host.asked.total(), settings_for(run.host)
    again = fetch(run.out, settings)
    assert (again.counts, again.skipped, again.rows) == (run.report.counts, 3, 0)
    assert run.host.asked.total() == asked


def test_every_try_has_a_row_in_the_log(run: Run) -> None:
    paths = sorted((run.out / "_log" / "attempts").glob("*.parquet"))
    log = pa.concat_tables([pq.read_table(path) for path in paths])
    assert log.schema.equals(ATTEMPTS_SCHEMA)
    names = {row["key"]: row["url"].rpartition("/")[2] for row in read_raw(run.out).to_pylist()}
    rows = log.to_pylist()
    tries = Counter(names[row["key"]] for row in rows)
    assert tries.keys() == FATES.keys()
    assert {name: n for name, n in tries.items() if n > 1} == dict.fromkeys(
        ("broken", "later", "short"), 3
    ) | {
        "once": 2,
        "limited": 2,
    }
    for row in rows:
        assert row["asked_ms"] >= 0
        assert row["waited_ms"] > -1
    of_once = [
        (row["attempt"], row["outcome"], row["http_status"]) for row in rows if names[row["key"]] == "once"
    ]
    assert of_once == [(1, "server_error", 500), (2, "ok", 200)]
    (hop,) = (row for row in rows if names[row["key"]] == "hop")
    assert (hop["redirects"], hop["bytes"]) == (1, len(picture(6)))
