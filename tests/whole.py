"""What the tests of whole runs share: two lists of pictures on loopback, and a recipe that takes them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web
from fetching import picture  # pyright: ignore[reportImplicitRelativeImport]

from pairmill.pipeline import Summary, run
from pairmill.progress import Quiet
from pairmill.recipe import Recipe, build_recipe
from pairmill.runner import Here

N = 24  # pairs in each list


class Pictures:
    """A server that gives a picture for every number, and 404 for those that end in 9."""

    def __init__(self) -> None:
        self.port = 0
        self.asked = 0
        self.released = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        number = int(request.match_info["name"])
        if number % 10 == 9:
            return web.Response(status=404)
        return web.Response(body=picture(number))


def url(number: int) -> str:
    return f"http://a.test/{number}"


def write_lists(folder: Path) -> None:
    """a.parquet holds pairs 0 to 23, b.parquet 24 to 47, in row groups of 6; row 0 of each has no caption."""
    for at, name in enumerate("ab"):
        numbers = range(at * N, at * N + N)
        captions = [None if number % N == 0 else f"picture number {number}" for number in numbers]
        table = pa.table({"url": [url(number) for number in numbers], "caption": captions})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=6, compression="none")


def recipe(folder: Path, port: int, **groups: dict[str, Any]) -> Recipe:
    """Small shards, no scores, no training; `groups` on top."""
    made: dict[str, dict[str, Any]] = {
        "ingest": {"input": [str(folder / "a.parquet"), str(folder / "b.parquet")], "rows_per_part": 10},
        "fetch": {"urls_per_shard": 12, "deadline_s": 5, "retries": 0},
        "write": {"samples_per_shard": 10},
        "decide": {"baseline": True},
        "train": {"enabled": False},
        "run": {"resolve": {"a.test:80": f"127.0.0.1:{port}"}, "engine": "here"},
    }
    for name, settings in groups.items():
        made[name] = {**made.get(name, {}), **settings}
    return build_recipe({"name": "whole", **made}, "whole.yaml")


def go(made: Recipe, out: Path, **how: Any) -> Summary:
    return run(made, out, engine=Here(retries=0), progress=Quiet(), **how)
