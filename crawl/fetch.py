"""Pictures from the web into raw shards: each planned URL once, a row for each of its pairs, come what may.

What the web answered decides every byte of raw/; when and in which order it answered does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import RowError, ShardError
from ..recipe import Fetch
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed, file_digest, write_table
from ..shards.files import spool_folder
from ..shards.ledger import records
from ..shards.tar import TarWriter, read_at
from .answer import RETRIED, Answer
from .client import Client
from .decode import decode_image, quiet_decoders
from .generations import plan_path, planned_shards, wave_of
from .plan import Planner
from .rawshard import Result, ShardPlan, make_log, make_sidecar, make_tally, write_pictures
from .resize import SUFFIX
from .salvage import salvaged
from .waves import plan_retry

__all__ = ["fetch_stage", "fetch_tasks", "plan_fetch_stage", "plan_fetch_tasks", "plan_retry"]

REFUSALS = 8  # of a URL by the rate of its host, that cost it one of its retries


def plan_fetch_tasks(out: Path) -> list[Task]:
    """One task, if there are pairs."""
    return [Task("plan-fetch", "all")] if any((out / "pairs").glob("*.parquet")) else []


def plan_fetch_stage(out: Path, settings: Fetch, memory_mb: int = MEMORY_MB) -> Stage:
    """Plan what is fetched, from pairs/ and selection/screen/."""
    return Stage("plan-fetch", Planner, (out, settings, memory_mb))


def fetch_tasks(out: Path, settings: Fetch) -> list[Task]:
    """One task per planned raw shard, those of later waves included."""
    return [Task("fetch", name) for name in planned_shards(out)]


def fetch_inputs(out: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """By task a digest of its plan: what other plans there are does not touch it."""
    digests = {
        Path(name).stem: str(said["xxh3"])
        for record in records(out, "plan-fetch")
        for name, said in record["files"].items()
        if name.startswith("_plan/fetch/") and name.endswith(".parquet")
    }
    return {
        task.name: digests.get(task.name) or file_digest(plan_path(out, task.name)).xxh3 for task in tasks
    }


def fetch_stage(
    out: Path,
    settings: Fetch,
    *,
    resolve: Mapping[str, str] | None = None,
    ports: Collection[int] = (),
) -> Stage:
    """Fetch every planned shard.

    resolve: host:port to the address:port that stands in for it, private or not.
    ports: that redirects may lead to, besides 80, 443 and that of their URL; 0 among them allows any.
    """
    arguments = (out, settings, dict(resolve or {}), tuple(ports))
    return Stage("fetch", Fetcher, arguments, cpus=settings.cpus)


class Fetcher:
    """The worker: fetches and stores one raw shard at a time."""

    def __init__(
        self, out: Path, settings: Fetch, resolve: Mapping[str, str], ports: Collection[int] = ()
    ) -> None:
        self.out, self.settings, self.resolve, self.ports = out, settings, resolve, ports
        quiet_decoders(settings)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def __call__(self, task: Task) -> Tally:
        """Counts pairs by outcome; facts: URLs and bytes. What lies there whole is not asked again."""
        plan = ShardPlan(plan_path(self.out, task.name))
        raw = self.out / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=spool_folder(raw)) as spill:
            at_hand, jobs = salvaged(raw, task.name, plan, spill), plan.jobs()
            asked = [number for number in range(len(jobs)) if number not in at_hand]
            answers = (
                asyncio.run(self._fetch([jobs[number] for number in asked], spill, task)) if asked else []
            )
            at_hand |= zip(asked, answers, strict=True)
            results = [at_hand[number] for number in range(len(jobs))]
            spill.flush()
            with committed(raw / f"{task.name}.tar") as path, TarWriter(path) as tar:
                write_pictures(tar, plan, results, spill, SUFFIX[self.settings.encode])
        write_table(make_sidecar(plan, results, wave_of(task.name)), raw / f"{task.name}.parquet")
        write_table(make_log(plan, results), self.out / "_log" / "fetch" / f"{task.name}.parquet")
        return make_tally(plan, results)

    async def _fetch(self, jobs: list[dict[str, Any]], spill: BinaryIO, task: Task) -> list[Result]:
        with ThreadPoolExecutor(max(1, round(self.settings.cpus)), "decode") as decoders:
            async with Client(self.settings, self.resolve, self.ports) as client:
                return await _Round(client, decoders, spill, task).run(jobs)


class _Round:
    """Fetches and decodes all URLs of one shard; pictures go to the spill file as they come.

    In memory at once: at most `concurrency` bodies of max_bytes, and one decoded picture per decoder.
    """

    def __init__(self, client: Client, decoders: Executor, spill: BinaryIO, task: Task) -> None:
        self.client, self.decoders, self.spill, self.task = client, decoders, spill, task
        self.settings = client.settings
        self.spilled, self.done, self.good = spill.tell(), 0, 0  # bytes there, URLs, pictures

    async def run(self, jobs: list[dict[str, Any]]) -> list[Result]:
        return await asyncio.gather(*(self._work(job, len(jobs)) for job in jobs))

    async def _work(self, job: dict[str, Any], total: int) -> Result:
        result = await (self._from_web(job) if job["tar_path"] is None else self._from_tar(job))
        self.done += 1
        self.good += result.outcome == "ok"
        beat(self.task, self.done, total, f"{self.good} of {self.done} ok")
        return result

    async def _from_tar(self, job: dict[str, Any]) -> Result:
        begun = time.perf_counter()
        async with self.client.slots:
            answer = await _in(self.decoders, _read_from_tar, job, self.settings.max_bytes)
            fetch_s = time.perf_counter() - begun
            result = await self._decode(answer)
        result.tries, result.fetch_s = 1, fetch_s
        return result

    async def _from_web(self, job: dict[str, Any]) -> Result:
        """Ask until there is an answer that is final, or no try is left.

        A pause holds no slot. A refusal by the host's rate costs a part of a retry: its pace delays the next.
        """
        begun = time.perf_counter()
        tries = failures = refusals = 0
        while True:
            visit, answer = self.client.visit(job["url"]), Answer("redirect")
            while answer.outcome == "redirect":
                async with self.client.asking(visit) as answer:
                    failures += answer.outcome in RETRIED and not answer.is_limited
                    refusals += answer.is_limited
                    tries += answer.asked and answer.outcome != "redirect"
                    if answer.outcome != "redirect" and self._is_last(answer, failures, refusals):
                        fetch_s = time.perf_counter() - begun
                        result = await self._decode(answer)
                        result.tries, result.fetch_s = tries, fetch_s
                        return result
            if not answer.is_limited:
                await asyncio.sleep(self._pause_s(answer, failures))

    def _is_last(self, answer: Answer, failures: int, refusals: int) -> bool:
        if answer.outcome not in RETRIED or not answer.asked:
            return True
        return (
            refusals > REFUSALS * self.settings.retries
            if answer.is_limited
            else failures > self.settings.retries
        )

    def _pause_s(self, answer: Answer, failures: int) -> float:
        if answer.pause_s is None:
            return self.settings.backoff_s * 2 ** (failures - 1)
        return min(answer.pause_s, self.settings.max_pause_s)

    async def _decode(self, answer: Answer) -> Result:
        if answer.outcome != "ok":
            return Result(answer.outcome, answer.status, answer.final_url, detail=answer.detail)
        begun = time.perf_counter()
        result, data = await _in(self.decoders, _examine, answer, self.settings)
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
