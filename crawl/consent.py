"""What whole sites say: robots.txt, tdmrep.json and ai.txt, each asked for once per site and task.

RFC 9309 rules: redirects are followed five times; 4xx means there is no such file; a server that fails or
cannot be reached lets nobody in. What was read serves for a day, and the next tasks of the process too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from ..recipe import Fetch
from .agent import agent_of, names_of_agent
from .answer import Answer
from .reservation import TDMREP, read_tdmrep
from .robots import Robots, decode
from .signal import Signal, decisive, page_signals
from .visit import Visit

LIFE_S = 86_400.0  # RFC 9309, section 2.4: no longer than 24 hours
LIFE_OF_FAULT_S = 3_600.0
MOST_SITES = 100_000  # kept from task to task
DEAD = frozenset({"dns_unknown", "dns_failed", "not_public", "tls", "connection"})
UNREACHABLE = frozenset({"server_error", "too_many_requests", "timeout", "too_big"})


@dataclass(frozen=True, slots=True)
class Site:
    """What one site says to us, and when it was asked (seconds since 1970)."""

    origin: str  # scheme://host, with the port where it is unusual
    outcome: str  # of asking for its robots.txt; '' where that is not read
    status: int | None
    asked_at: float
    robots: Robots | None = None  # None: no such file, and everything is allowed
    tdm: Robots | None = None  # what this does not allow is reserved
    ai: Robots | None = None
    since: float | None = None  # when robots.txt became unreachable, as far as is known
    is_dead: bool = False  # nothing is to be had there: its pictures end with `outcome`, unasked
    is_waived: bool = False  # unreachable for so long that it counts as none

    @property
    def is_unreachable(self) -> bool:
        """Whether robots.txt may be there, and was not to be had."""
        return (
            not self.is_dead
            and self.outcome in UNREACHABLE
            and not (self.status is not None and 400 <= self.status < 429)
        )

    @property
    def until(self) -> float:
        return self.asked_at + (LIFE_OF_FAULT_S if self.is_dead or self.is_unreachable else LIFE_S)


Known = MutableMapping[str, Site]  # by origin


class Consents:
    """The sites of one task."""

    def __init__(
        self,
        settings: Fetch,
        ask: Callable[[str], Awaitable[Answer]],
        slow: Callable[[str, float], None],
        known: Known,
        since: Mapping[str, float] | None = None,
    ) -> None:
        """ask: for a file by its URL. slow: keep requests to the host of an origin so many seconds apart.

        since: when each origin's robots.txt became unreachable, by the logs of earlier tasks.
        """
        self.settings, self._ask, self._slow, self._known = settings, ask, slow, known
        self._since = since or {}
        self._tasks: dict[str, asyncio.Task[Site]] = {}
        agent = agent_of(settings).lower()
        self.names = (agent, *sorted(names_of_agent(settings) - {agent}))
        self._reads = {"robots", "tdm", "ai_txt"} & set(settings.signals)

    @property
    def sites(self) -> list[Site]:
        """Those that this task has asked or made use of, by origin."""
        done = (task for task in self._tasks.values() if task.done() and not task.cancelled())
        return sorted((task.result() for task in done if not task.exception()), key=lambda site: site.origin)

    def close(self) -> None:
        """Ask for nothing further."""
        for task in self._tasks.values():
            task.cancel()

    def of_pages(self, said: Iterable[str]) -> Iterator[Signal]:
        """What the pages said that show a picture, as far as the recipe reads it."""
        if "page" in self.settings.signals:
            for text in said:
                yield from page_signals(text, self.settings, self.names)

    async def judge(self, visit: Visit) -> Answer | None:
        """Note what its site says of a visit's URL. Returns why it is not asked for, None where it may be."""
        respected = self.settings.consent == "respect"
        if respected and (signal := decisive(visit.signals)):
            return _refused(signal)
        if not self._reads or not visit.url.startswith(("http://", "https://")):
            return None
        site = await self._site(origin_of(visit.url))
        if site.is_dead and respected:
            return Answer(site.outcome, detail="robots.txt: its site is not to be had", asked=False)
        found = list(self._signals(site, visit.url))
        visit.signals += found
        signal = decisive(found) if respected else None
        return _refused(signal) if signal else None

    def _signals(self, site: Site, url: str) -> Iterator[Signal]:
        """What speaks against `url`; robots.txt comes first."""
        if site.is_unreachable:
            reason = "" if site.is_waived else "robots_unreachable"
            yield Signal("robots.txt", "unreachable", reason)
        if site.robots is not None:
            if not site.robots.allows(url):
                yield Signal("robots.txt", "disallow", "robots")
            delay_s = site.robots.delay_s
            if delay_s > self.settings.max_crawl_delay_s:
                yield Signal("robots.txt", f"crawl-delay {delay_s:g}", "crawl_delay")
            if site.robots.refuses_training(url):
                yield Signal("robots.txt", "content-usage, no training", "noai")
        if site.tdm is not None and not site.tdm.allows(url):
            yield Signal("tdmrep.json", "reserved", "tdm")
        if site.ai is not None and not site.ai.allows(url):
            yield Signal("ai.txt", "disallow", "ai_txt")

    async def _site(self, origin: str) -> Site:
        task = self._tasks.get(origin)
        if task is None or (task.done() and task.result().until < time.time()):
            task = self._tasks[origin] = asyncio.ensure_future(self._look_up(origin))
        # shielded: it is the answer of all that wait for it
        return await asyncio.shield(task)

    async def _look_up(self, origin: str) -> Site:
        site = self._known.get(origin)
        if site is None or site.until < time.time():
            site = await self._read(origin)
            if len(self._known) >= MOST_SITES:
                self._known.clear()
            self._known[origin] = site
        else:
            self._keep_apart(site)
        return site

    def _keep_apart(self, site: Site) -> None:
        if site.robots is not None and 0 < site.robots.delay_s <= self.settings.max_crawl_delay_s:
            self._slow(site.origin, site.robots.delay_s)

    async def _read(self, origin: str) -> Site:
        """Ask for the site's robots.txt, and for its other files where it lives."""
        now = time.time()
        answer = await self._ask(f"{origin}/robots.txt") if "robots" in self._reads else Answer("")
        robots = Robots(decode(answer.body), self.names) if answer.outcome == "ok" else None
        is_dead = answer.outcome in DEAD or (answer.outcome == "timeout" and not answer.is_reached)
        site = Site(origin, answer.outcome, answer.status, now, robots, is_dead=is_dead)
        if site.is_unreachable:
            return self._outage(site)
        self._keep_apart(site)
        if site.is_dead:
            return site
        tdm, ai = await asyncio.gather(
            self._file(origin + TDMREP, "tdm"), self._file(f"{origin}/ai.txt", "ai_txt")
        )
        return Site(
            origin,
            site.outcome,
            site.status,
            now,
            robots,
            read_tdmrep(tdm) if tdm else None,
            Robots(decode(ai), self.names) if ai else None,
        )

    def _outage(self, site: Site) -> Site:
        since = min(site.asked_at, self._since.get(site.origin, site.asked_at))
        days = self.settings.robots_outage_days
        is_waived = days is not None and site.asked_at - since >= days * 86_400
        return Site(site.origin, site.outcome, site.status, site.asked_at, since=since, is_waived=is_waived)

    async def _file(self, url: str, signal: str) -> bytes:
        """The bytes of a file, empty where there is none or nobody reads it."""
        if signal not in self._reads:
            return b""
        answer = await self._ask(url)
        return answer.body if answer.outcome == "ok" else b""


def _refused(signal: Signal) -> Answer:
    return Answer(signal.reason, detail=str(signal), asked=False)


def origin_of(url: str) -> str:
    """scheme://host[:port] of a canonical URL."""
    end = url.find("/", 8)
    return url if end < 0 else url[:end]
