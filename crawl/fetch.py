"""Pictures from the web into raw shards: each planned URL once, a row for each of its pairs, come what may.

What the web answered decides every byte of raw/; when and in which order it answered does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import RowError, ShardError
from ..recipe import Fetch
from ..runner import Stage, Tally, Task, beat
from ..settings import MEMORY_MB
from ..shards.commit import committed, file_digest, write_table
from ..shards.files import readable, spool_folder
from ..shards.ledger import records
from ..shards.tar import TarWriter, read_at
from .agent import agent_of, check_agent
from .answer import Answer
from .attempts import ATTEMPTS, Attempts
from .client import Client
from .consent import Site
from .decode import decode_image, quiet_decoders
from .expected import MALFORMED, drop_reason, is_hopeless, judge
from .generations import plan_path, planned_shards, wave_of
from .lanes import fetch_tasks
from .listed import EXPECTED, SIGNALS
from .plan import Planner
from .rawshard import Result, ShardPlan, make_log, make_sidecar, make_tally, write_pictures
from .resize import SUFFIX
from .salvage import salvaged
from .signal import describe
from .sitelog import SITES, outages, site_log
from .tries import Tries
from .turns import Shares, host_of
from .waves import plan_retry

__all__ = ["fetch_stage", "fetch_tasks", "plan_fetch_stage", "plan_fetch_tasks", "plan_retry"]


LOOKED_AT = 10_000  # pairs, before there is a plan


def plan_fetch_tasks(out: Path) -> list[Task]:
    """One task, if there are pairs."""
    return [Task("plan-fetch", "all")] if any((out / "pairs").glob("*.parquet")) else []


def plan_fetch_stage(out: Path, settings: Fetch, memory_mb: int = MEMORY_MB) -> Stage:
    """Plan what is fetched, from pairs/ and selection/screen/."""
    return Stage("plan-fetch", Planner, (out, settings, memory_mb))


def check_pairs(out: Path, settings: Fetch, resolve: Iterable[str]) -> None:
    """Ask for a name and a contact before there is a plan, which would pin the recipe as it is.

    Looks at the first pairs. Raises ConfigError.
    """
    for part in sorted((out / "pairs").glob("*.parquet"))[:1]:
        pairs = pq.read_table(readable(part), columns=["url", "tar_path"]).slice(0, LOOKED_AT)
        at_hand = pc.field("tar_path").is_valid()
        urls = set(pairs.filter(~at_hand)["url"].to_pylist())
        urls -= set(pairs.filter(at_hand)["url"].to_pylist())
        check_agent(settings, sorted(urls), {*settings.allow_hosts, *resolve})


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


def check_crawl(out: Path, settings: Fetch, resolve: Mapping[str, str]) -> None:
    """Ask for a name and a contact before the first of the planned shards. Raises ConfigError."""
    for name in planned_shards(out)[:1]:
        jobs = ShardPlan(plan_path(out, name)).jobs()
        urls = [job["url"] for job in jobs if job["tar_path"] is None]
        check_agent(settings, urls, {*settings.allow_hosts, *resolve})


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
    Raises ConfigError as `check_crawl` does.
    """
    check_crawl(out, settings, resolve or {})
    arguments = (out, settings, dict(resolve or {}), tuple(ports))
    return Stage("fetch", Fetcher, arguments, cpus=settings.cpus)


class Fetcher:
    """The worker: fetches and stores one raw shard at a time."""

    def __init__(
        self, out: Path, settings: Fetch, resolve: Mapping[str, str], ports: Collection[int] = ()
    ) -> None:
        self.out, self.settings, self.resolve, self.ports = out, settings, resolve, ports
        self.sites: dict[str, Site] = {}  # what they say, from one shard to the next
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
            urls = [jobs[number]["url"] for number in asked if jobs[number]["tar_path"] is None]
            check_agent(self.settings, urls, {*self.settings.allow_hosts, *self.resolve})
            answers = (
                asyncio.run(self._fetch([jobs[number] for number in asked], spill, task)) if asked else []
            )
            at_hand |= zip(asked, answers, strict=True)
            results = [at_hand[number] for number in range(len(jobs))]
            spill.flush()
            with committed(raw / f"{task.name}.tar") as path, TarWriter(path) as tar:
                write_pictures(tar, plan, results, spill, SUFFIX[self.settings.encode])
        sidecar = make_sidecar(plan, results, wave_of(task.name), agent_of(self.settings))
        write_table(sidecar, raw / f"{task.name}.parquet")
        write_table(make_log(plan, results), self.out / "_log" / "fetch" / f"{task.name}.parquet")
        return make_tally(plan, results)

    async def _fetch(self, jobs: list[dict[str, Any]], spill: BinaryIO, task: Task) -> list[Result]:
        with ThreadPoolExecutor(max(1, round(self.settings.cpus)), "decode") as decoders:
            since = outages(self.out) if self.settings.robots_outage_days is not None else {}
            planned = frozenset(host_of(job["url"]) for job in jobs)
            shares = Shares(planned, task.data.get("lanes", 1))
            async with Client(
                self.settings, self.resolve, self.ports, known=self.sites, since=since, shares=shares
            ) as client:
                shard = _Round(client, decoders, spill, task)
                results = await shard.run(jobs)
                write_table(shard.attempts.table(), self.out / ATTEMPTS / f"{task.name}.parquet")
                write_table(site_log(client.consents), self.out / SITES / f"{task.name}.parquet")
                return results


class _Round:
    """Fetches and decodes all URLs of one shard; pictures go to the spill file as they come.

    In memory at once: at most `concurrency` bodies of max_bytes, and one decoded picture per decoder.
    """

    def __init__(self, client: Client, decoders: Executor, spill: BinaryIO, task: Task) -> None:
        self.client, self.decoders, self.spill, self.task = client, decoders, spill, task
        self.settings = client.settings
        self.attempts = Attempts(self.settings.deadline_s)
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
        async with self.client.turns.slots:
            answer = await _in(self.decoders, _read_from_tar, job, self.settings.max_bytes)
            fetch_s = time.perf_counter() - begun
            result = await self._decode(answer)
        result.tries, result.fetch_s = 1, fetch_s
        return result

    async def _from_web(self, job: dict[str, Any]) -> Result:
        """Ask until there is an answer that is final, or no try is left. A pause holds no slot."""
        begun, tries = time.perf_counter(), Tries(self.settings)
        if is_hopeless(job[EXPECTED], self.settings.expect):
            return Result("hash_malformed", expected=MALFORMED, detail=" ".join(job[EXPECTED])[:300])
        while True:
            visit, answer = self.client.visit(job["url"], job[SIGNALS]), Answer("redirect")
            at = time.perf_counter()
            while answer.outcome == "redirect":
                async with self.client.asking(visit) as answer:
                    is_last = tries.is_last(answer)
                    if answer.outcome != "redirect":
                        self.attempts.add(job["key"], tries.asked, at, visit, answer)
                    if is_last:
                        fetch_s = time.perf_counter() - begun
                        result = await self._decode(answer, job[EXPECTED])
                        result.tries, result.fetch_s = tries.asked, fetch_s
                        result.consent = describe(visit.signals)
                        return result
            await asyncio.sleep(tries.pause_s(answer))

    async def _decode(self, answer: Answer, expected: Sequence[str] = ()) -> Result:
        if answer.outcome != "ok":
            return Result(answer.outcome, answer.status, answer.final_url, detail=answer.detail)
        begun = time.perf_counter()
        result, data = await _in(self.decoders, _examine, answer, self.settings, expected)
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


def _examine(answer: Answer, settings: Fetch, expected: Sequence[str]) -> tuple[Result, bytes]:
    """The result for a body, and the stored picture's bytes, empty where it is no usable picture.

    expected: hashes that it should have, by its list.
    """
    result = Result("ok", answer.status, answer.final_url, len(answer.body))
    result.sha256 = hashlib.sha256(answer.body).digest()
    picture = None
    try:
        picture = decode_image(answer.body, settings)
    except RowError as error:
        result.outcome, result.detail = error.reason, str(error.__cause__ or "")[:300]
    result.expected = judge(expected, answer.body, picture and picture.pdq, settings.expect)
    if picture is None:
        return result, b""
    if (reason := drop_reason(result.expected, settings.expect)) is not None:
        result.outcome = reason
        return result, b""
    data = picture.data
    picture.data = b""
    result.picture = picture
    return result, data
