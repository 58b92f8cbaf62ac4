"""Pictures from the web into raw shards: each planned URL once, a row for each of its pairs, come what may.

What the web answered decides every byte of raw/; when and in which order it answered does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RowError, ShardError
from ..recipe import Fetch
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed, write_table
from ..shards.tar import TarWriter, read_at
from .client import RETRIED, Answer, Client
from .decode import decode_image, quiet_decoders
from .plan import Planner, plan_folder, plan_retry, planned_shards, wave_of
from .rawshard import Result, ShardPlan, make_log, make_sidecar, make_tally, write_pictures
from .resize import SUFFIX
from .salvage import salvaged

__all__ = ["fetch_stage", "fetch_tasks", "plan_fetch_stage", "plan_fetch_tasks", "plan_retry"]

WAITING = 4  # coroutines per slot: those that pause before another try hold none


def plan_fetch_tasks(out: Path) -> list[Task]:
    """One task, if there are pairs."""
    return [Task("plan-fetch", "all")] if any((out / "pairs").glob("*.parquet")) else []


def plan_fetch_stage(out: Path, settings: Fetch, memory_mb: int = MEMORY_MB) -> Stage:
    """Plan what is fetched, from pairs/ and selection/screen/."""
    return Stage("plan-fetch", Planner, (out, settings, memory_mb))


def fetch_tasks(out: Path, settings: Fetch) -> list[Task]:
    """One task per planned raw shard, those of later waves included."""
    return [Task("fetch", name) for name in planned_shards(out)]


def fetch_stage(out: Path, settings: Fetch, *, resolve: Mapping[str, str] | None = None) -> Stage:
    """Fetch every planned shard.

    resolve: host:port to the address:port that stands in for it, private or not.
    """
    return Stage("fetch", Fetcher, (out, settings, dict(resolve or {})), cpus=settings.cpus)


class Fetcher:
    """The worker: fetches and stores one raw shard at a time."""

    def __init__(self, out: Path, settings: Fetch, resolve: Mapping[str, str]) -> None:
        self.out, self.settings, self.resolve = out, settings, resolve
        quiet_decoders(settings)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def __call__(self, task: Task) -> Tally:
        """Counts pairs by outcome; facts: URLs and bytes. What lies there whole is not asked again."""
        plan = ShardPlan(plan_folder(self.out) / f"{task.name}.parquet")
        raw = self.out / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=raw) as spill:
            fetching = _Round(self.settings, self.resolve, spill, task)
            at_hand, jobs = salvaged(raw, task.name, plan, spill), plan.jobs()
            fetching.spilled = spill.tell()
            asked = [number for number in range(len(jobs)) if number not in at_hand]
            answers = asyncio.run(fetching.run([jobs[number] for number in asked])) if asked else []
            at_hand |= zip(asked, answers, strict=True)
            results = [at_hand[number] for number in range(len(jobs))]
            spill.flush()
            with committed(raw / f"{task.name}.tar") as path, TarWriter(path) as tar:
                write_pictures(tar, plan, results, spill, SUFFIX[self.settings.encode])
        write_table(make_sidecar(plan, results, wave_of(task.name)), raw / f"{task.name}.parquet")
        write_table(make_log(plan, results), self.out / "_log" / "fetch" / f"{task.name}.parquet")
        return make_tally(plan, results)


class _Round:
    """Fetches and decodes all URLs of one shard; pictures go to the spill file as they come.

    In memory at once: at most `concurrency` bodies of max_bytes, and one decoded picture per decoder.
    """

    def __init__(self, settings: Fetch, resolve: Mapping[str, str], spill: BinaryIO, task: Task) -> None:
        self.settings, self.resolve, self.spill, self.task = settings, resolve, spill, task
        self.spilled = self.done = self.good = 0
        self.slots = asyncio.Semaphore(settings.concurrency)

    async def run(self, jobs: list[dict[str, Any]]) -> list[Result]:
        results: list[Result] = [Result("")] * len(jobs)
        numbers = iter(range(len(jobs)))
        with ThreadPoolExecutor(max(1, round(self.settings.cpus)), "decode") as decoders:
            async with Client(self.settings, self.resolve) as client:

                async def work(numbers: Iterator[int]) -> None:
                    for number in numbers:
                        results[number] = await self._one(client, decoders, jobs[number])
                        self._tell(results[number], len(jobs))

                crew = min(len(jobs), WAITING * self.settings.concurrency)
                await asyncio.gather(*(work(numbers) for _ in range(crew)))
        return results

    def _tell(self, result: Result, total: int) -> None:
        self.done += 1
        self.good += result.outcome == "ok"
        beat(self.task, self.done, total, f"{self.good} of {self.done} ok")

    async def _one(self, client: Client, decoders: Executor, job: dict[str, Any]) -> Result:
        begun = time.perf_counter()
        for tries in range(1, self.settings.retries + 2):
            async with self.slots:
                if job["tar_path"] is not None:
                    answer = await _in(decoders, _read_from_tar, job, self.settings.max_bytes)
                else:
                    answer = await client.get(job["url"])
                if answer.outcome not in RETRIED or tries > self.settings.retries:
                    fetch_s = time.perf_counter() - begun
                    result = await self._decode(decoders, answer)
                    result.tries, result.fetch_s = tries, fetch_s
                    return result
            pause_s = self.settings.backoff_s * 2 ** (tries - 1) if answer.pause_s is None else answer.pause_s
            await asyncio.sleep(pause_s)
        raise AssertionError("the last try returns")

    async def _decode(self, decoders: Executor, answer: Answer) -> Result:
        if answer.outcome != "ok":
            return Result(answer.outcome, answer.status, answer.final_url, detail=answer.detail)
        begun = time.perf_counter()
        result, data = await _in(decoders, _examine, answer, self.settings)
        result.decode_s = time.perf_counter() - begun
        if data:
            self.spill.write(data)
            result.spilled = (self.spilled, len(data))
            self.spilled += len(data)
        return result


async def _in(threads: Executor, work: Any, *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *args)


def _read_from_tar(job: dict[str, Any], max_bytes: int) -> Answer:
    if job["tar_size"] > max_bytes:
        return Answer("too_big")
    try:
        with open(job["tar_path"], "rb") as file:
            return Answer("ok", read_at(file, job["tar_offset"], job["tar_size"]))
    except (OSError, ShardError) as error:
        return Answer("tar_unreadable", detail=str(error))


def _examine(answer: Answer, settings: Fetch) -> tuple[Result, bytes]:
    """The result for a body, and the stored picture's bytes, empty where it is no usable picture."""
    result = Result("ok", answer.status, answer.final_url, len(answer.body))
    result.sha256 = hashlib.sha256(answer.body).digest()
    try:
        picture = decode_image(answer.body, settings)
    except RowError as error:
        result.outcome, result.detail = error.reason, str(error.__cause__ or "")[:300]
        return result, b""
    data = picture.data
    picture.data = b""
    result.picture = picture
    return result, data
