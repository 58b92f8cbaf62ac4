"""Answers that break the rules of HTTP: how many pairmill, urllib and curl get; -v lists who gets each.

The answers are those of tests/odd_answers.py, each around the same picture, from a server on loopback. Got is
a body that begins with the picture, and for curl the exit code 0; only pairmill unpacks what is packed.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pairmill.crawl.client import Client
from pairmill.recipe import Fetch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from odd_answers import CODINGS, HEADS, PICTURE  # pyright: ignore[reportMissingImports]

TIMEOUT_S = 5


@contextmanager
def serving(answers: list[bytes]) -> Iterator[str]:
    """A server in a thread that gives answers[n] to /n, byte for byte, and closes. Yields its host:port."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    places: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[int(head.split(b" ")[1][1:])])
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        places.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(run()), loop.run_forever()))
    thread.start()
    ready.wait()
    try:
        yield places[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def by_pairmill(url: str, place: str) -> bytes:
    async def run() -> bytes:
        async with Client(Fetch(allow_hosts=(place,), deadline_s=TIMEOUT_S)) as client:
            return (await client.get(url)).body

    return asyncio.run(run())


def by_urllib(url: str, _place: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read()
    except Exception:  # noqa: BLE001  # it has many ways to fail, all of them a miss
        return b""


def by_curl(url: str, _place: str) -> bytes:
    done = subprocess.run(["curl", "-s", "--max-time", str(TIMEOUT_S), url], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def main() -> None:
    clients = {"pairmill": by_pairmill, "urllib": by_urllib, "curl": by_curl}
    figures: dict[str, dict[str, int]] = {}
    for what, answers in (("heads", HEADS), ("codings", CODINGS)):
        got: Counter[str] = Counter(dict.fromkeys(clients, 0))
        with serving(list(answers.values())) as place:
            for number, name in enumerate(answers):
                url = f"http://{place}/{number}"
                got_by = [who for who, get in clients.items() if get(url, place)[: len(PICTURE)] == PICTURE]
                got.update(got_by)
                if "-v" in sys.argv:
                    print(f"{name:40} {' '.join(got_by) or 'nobody'}")
        figures[what] = {"answers": len(answers), **got}
    print(json.dumps({"what": "odd answers", **figures}))


if __name__ == "__main__":
    main()
