"""What the tests of fetching share: pictures, pairs, the two stages, and a server on loopback."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web
from PIL import Image

from pairmill.crawl.client import Answer, Client
from pairmill.crawl.fetch import fetch_stage, fetch_tasks, plan_fetch_stage, plan_fetch_tasks
from pairmill.progress import Quiet
from pairmill.recipe import Fetch
from pairmill.runner import Here
from pairmill.shards.job import StageReport, inputs_digest, run_stage
from pairmill.shards.schema import PAIRS, SCREEN, make_uid, text_hash


def ask(
    answers: Mapping[bytes, bytes], *paths: str, asked: list[bytes] | None = None, **settings: Any
) -> list[Answer]:
    """What one client makes of a server that answers by path, byte for byte, and 404 to any other path.

    asked: is given the heads of the requests. `%PORT%` in an answer becomes the server's port.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if asked is not None and head.split(b" ")[1].decode() not in NOTICES:
            asked.append(head)
        port = b"%d" % writer.get_extra_info("sockname")[1]
        writer.write(answers.get(head.split(b" ")[1], page("404 Not Found")).replace(b"%PORT%", port))
        await writer.drain()

    async def run() -> list[Answer]:
        async with raw_server(answer) as place:
            usual: dict[str, Any] = {"allow_hosts": (place,), "deadline_s": 10}
            async with Client(Fetch(**(usual | settings))) as client:
                return [await client.get(f"http://{place}{path}") for path in paths]

    return asyncio.run(run())


@asynccontextmanager
async def raw_server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server on loopback that closes each connection behind `answer`. Yields its host:port."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client left, as it may
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


def page(status: str, *headers: bytes, body: bytes = b"") -> bytes:
    fields = [
        f"HTTP/1.1 {status}".encode(),
        b"Content-Length: %d" % len(body),
        b"Connection: close",
        *headers,
    ]
    return b"\r\n".join(fields) + b"\r\n\r\n" + body


class Answering(Protocol):
    """What a test's server is: its port, how it answers, and an event at which it must stop to hold on."""

    port: int
    released: asyncio.Event

    async def answer(self, request: web.Request) -> web.StreamResponse: ...


NOTICES = ("/robots.txt", "/ai.txt", "/.well-known/tdmrep.json")  # what a crawler asks every site for
AnyHost = TypeVar("AnyHost", bound=Answering)


def picture(number: int, size: tuple[int, int] = (80, 60), form: str = "JPEG") -> bytes:
    """Coloured noise, smooth enough for a JPEG, different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


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


def plan(out: Path, settings: Fetch) -> StageReport:
    return run_stage(out, plan_fetch_stage(out, settings), plan_fetch_tasks(out), Here(retries=0), Quiet())


def fetch(out: Path, settings: Fetch, resolve: Mapping[str, str] | None = None) -> StageReport:
    tasks, stage = fetch_tasks(out, settings), fetch_stage(out, settings, resolve=resolve)
    report = run_stage(out, stage, tasks, Here(retries=0), Quiet(), inputs=inputs_digest(out, "plan-fetch"))
    assert not report.failed, report.failed
    return report


async def nothing(request: web.Request) -> web.Response:
    """A site that says nothing to crawlers."""
    return web.Response(status=404)


@contextmanager
def serving(host: AnyHost) -> Iterator[AnyHost]:
    """Let `host` answer on 127.0.0.1, port 0, in a thread of its own; its port is filled in."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def run() -> None:
        app = web.Application()
        if not getattr(host, "answers_all", False):
            for path in NOTICES:
                app.router.add_get(path, nothing)
        app.router.add_get("/{name:.*}", host.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host.port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        host.released.set()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield host
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
