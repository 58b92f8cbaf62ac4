"""What one host sees of a crawl with 1, 4 and 16 tasks at once, and of one that is killed and goes on.

A giant host, one of a middling size and 200 small ones, with budgets of requests at once and a second, on one
loopback server that counts. Each task is a process of its own; the tasks that run at a time are chosen as the
engines choose them. With --kill all processes get SIGKILL after so many seconds, and new ones go on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench_fetch import write_plan  # pyright: ignore[reportImplicitRelativeImport]
from common import machine  # pyright: ignore[reportImplicitRelativeImport]

GIANT, MIDDLING = "giant.web.test", "middling.web.test"
SMALL, LATENCY_S = 200, 0.02
BUDGETS = {GIANT: {"at_once": 4, "per_second": 40}}
AT_ONCE, PER_SECOND = 2, 20.0  # of all others


async def serve() -> None:
    """Count until stdin ends; then print for each host the most at once, and the most in any second."""
    from aiohttp import web

    begun: dict[str, list[float]] = {}
    busy: dict[str, int] = {}
    most: dict[str, int] = {}

    async def answer(request: web.BaseRequest) -> web.Response:
        host = request.headers["Host"]
        begun.setdefault(host, []).append(time.monotonic())
        busy[host] = busy.get(host, 0) + 1
        most[host] = max(most.get(host, 0), busy[host])
        try:
            await asyncio.sleep(LATENCY_S)
            return web.Response(status=404)
        finally:
            busy[host] -= 1

    runner = web.ServerRunner(web.Server(answer), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({host: (most[host], in_a_second(times), len(times)) for host, times in begun.items()}))


def in_a_second(times: Sequence[float]) -> int:
    """The most of the ascending `times` within any span of a second."""
    first = most = 0
    for at, last in enumerate(times):
        while last - times[first] >= 1:
            first += 1
        most = max(most, at - first + 1)
    return most


def fetch_one(out: Path, task: Any, settings: Any, resolve: dict[str, str]) -> None:
    """One raw shard, in this process."""
    from pairmill.crawl.fetch import Fetcher

    Fetcher(out, settings, resolve)(task)


def crawl(out: Path, settings: Any, resolve: dict[str, str], at_once: int, kill_s: float | None) -> int:
    """Fetch what is not fetched yet. Returns how many tasks were killed."""
    from pairmill.crawl.fetch import fetch_tasks
    from pairmill.runner import may_join

    spawn = multiprocessing.get_context("fork")
    waiting = [
        task
        for task in fetch_tasks(out, settings, resolve)
        if not (out / "raw" / f"{task.name}.parquet").exists()
    ]
    running: dict[BaseProcess, Any] = {}
    begun = time.monotonic()
    while waiting or running:
        if kill_s is not None and time.monotonic() - begun > kill_s:
            for process in running:
                process.kill()
                process.join()
            return len(running)
        task = next((task for task in waiting if may_join(task, running.values())), None)
        if task is not None and len(running) < at_once:
            waiting.remove(task)
            process = spawn.Process(target=fetch_one, args=(out, task, settings, resolve))
            process.start()
            running[process] = task
            continue
        time.sleep(0.02)
        running = {process: task for process, task in running.items() if process.is_alive()}
    return 0


def measure(at_once: int, kill_s: float | None, scale: int) -> dict[str, Any]:
    """One crawl: what the server counted, and the budgets."""
    import pairmill.crawl.fetch  # noqa: F401  before the fork
    from pairmill.crawl.fetch import plan_fetch_stage, plan_fetch_tasks
    from pairmill.progress import Quiet
    from pairmill.recipe import Fetch
    from pairmill.runner import Here
    from pairmill.shards.job import run_stage

    sizes = {GIANT: 60 * scale, MIDDLING: 20 * scale, **{f"s{n}.web.test": 3 for n in range(SMALL)}}
    settings = Fetch.model_validate(
        {"urls_per_shard": 5 * scale, "per_host": AT_ONCE, "per_host_rate": PER_SECOND, "hosts": BUDGETS}
    )
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        resolve = {f"{host}:80": f"127.0.0.1:{port}" for host in sizes}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            write_plan(out, [f"http://{host}/{n}" for host, size in sizes.items() for n in range(size)])
            run_stage(out, plan_fetch_stage(out, settings), plan_fetch_tasks(out), Here(), Quiet())
            begun = time.monotonic()
            killed = crawl(out, settings, resolve, at_once, kill_s)
            if killed:
                crawl(out, settings, resolve, at_once, None)
            seconds = time.monotonic() - begun
            shards = len(list((out / "raw").glob("*.parquet")))
        server.stdin.close()
        seen = json.loads(server.stdout.readline())
    others = [seen[host] for host in sizes if host != GIANT]
    return {
        "at_once": at_once,
        "killed": killed,
        "shards": shards,
        "seconds": round(seconds, 1),
        "giant": dict(zip(("most_at_once", "most_in_a_second", "requests"), seen[GIANT], strict=True)),
        "others": {
            "most_at_once": max(most for most, _, _ in others),
            "most_in_a_second": max(most for _, most, _ in others),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--kill", type=float, default=4.0)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
        return
    runs = [(1, None), (4, None), (16, None), (16, arguments.kill)]
    found = [measure(at_once, kill_s, arguments.scale) for at_once, kill_s in runs]
    budgets = {"giant": BUDGETS[GIANT], "others": {"at_once": AT_ONCE, "per_second": PER_SECOND}}
    print(json.dumps({"what": "budget", "budgets": budgets, "runs": found} | machine()))


if __name__ == "__main__":
    main()
