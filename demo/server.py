"""The site on loopback: `python -m pairmill.demo.server FOLDER` prints its ports and serves until stdin ends.

Its parent holds the other end of stdin: however the parent dies, the server goes with it.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
from aiohttp import web

from ..errors import PairmillError

HOSTS = ("pictures", "cdn", "shop", "blog", "media", "archive", "old", "static", "slow")
CHUNK = 65_536
HANG_S = 300.0


class Site:
    """Answers by (host, path) as site.parquet says; holds the index in memory, the bodies on disk."""

    def __init__(self, folder: Path) -> None:
        rows = pq.read_table(folder / "site.parquet").to_pylist()
        self.pages: dict[str, dict[str, Any]] = {row["url"]: row for row in rows}
        self.asked: set[str] = set()
        with open(folder / "site.bin", "rb") as file:
            self.bodies = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        url = f"http://{request.headers.get('Host', '').lower()}{request.raw_path}"
        page = self.pages.get(url)
        if page is None:
            return web.Response(status=404, text="no such page")
        first = url not in self.asked
        self.asked.add(url)
        if page["act"] == "hang":
            await asyncio.sleep(HANG_S)
        if page["act"] == "flaky" and first:
            return web.Response(status=503, headers={"Retry-After": "0"})
        headers = {"Content-Type": page["kind"], **json.loads(page["headers"])}
        body = self.bodies[page["offset"] : page["offset"] + page["size"]]
        if page["act"] in ("cut", "endless"):
            return await self._stream(request, page["act"], headers, body)
        return web.Response(status=page["status"], headers=headers, body=body)

    async def _stream(
        self, request: web.BaseRequest, act: str, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        if act == "cut":
            response.content_length = len(body)
        await response.prepare(request)
        with suppress(ConnectionError):  # the client may have had enough
            if act == "cut":
                await response.write(body[: len(body) // 2])
            while act == "endless":
                await response.write(body.ljust(CHUNK, b"\0"))
        if request.transport is not None:
            request.transport.close()
        return response


async def serve(folder: Path, parent: BinaryIO) -> None:
    """Serve until `parent` is at its end. Prints the port, and one on which nobody listens."""
    site = Site(folder)
    runner = web.ServerRunner(web.Server(site.answer), handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            print(runner.addresses[0][1], closed.getsockname()[1], flush=True)
            await asyncio.get_running_loop().run_in_executor(None, parent.read)
    finally:
        await runner.cleanup()


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """A server process for the made web in `folder`. Yields what `run.resolve` needs to find it."""
    command = [sys.executable, "-m", "pairmill.demo.server", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports = process.stdout.readline().split()
            if len(ports) != 2:
                raise PairmillError(f"{folder}: the demo's server did not start; its message stands above")
            port, closed = (f"127.0.0.1:{int(text)}" for text in ports)
            yield {f"{host}.demo.test:80": port for host in HOSTS} | {"closed.demo.test:80": closed}
        finally:
            process.stdin.close()
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.stdin.buffer))
