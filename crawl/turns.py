"""Whose turn it is: the paces of all hosts that one task asks, each within the task's share of the budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import yarl

from ..recipe import Fetch
from .budget import Budget, budget_of
from .pace import HostPace


@dataclass(frozen=True, slots=True)
class Shares:
    """What of the hosts' budgets is one task's.

    planned: hosts that its plan has URLs of; None where all are its own. lanes: how many tasks may ask them.
    """

    planned: frozenset[str] | None = None
    lanes: int = 1

    def of(self, host: str, budget: Budget) -> Budget:
        """A host that only a redirect leads to may be asked by others meanwhile: one request at once."""
        if self.planned is None or host in self.planned:
            return budget.share(self.lanes)
        return Budget(1, budget.per_second)


class Turns:
    """The paces of one task's hosts."""

    def __init__(self, settings: Fetch, own: Collection[str], shares: Shares) -> None:
        """own: hosts that the recipe itself names."""
        self._settings, self._own, self._shares = settings, own, shares
        self._begun = 0.0
        self._paces: dict[str, HostPace] = {}
        self.slots = asyncio.Semaphore(settings.concurrency)  # requests in flight, and bodies in memory

    def begin(self) -> None:
        """From now on nobody else asks in the stead of this task."""
        self._begun = asyncio.get_running_loop().time()

    def pace(self, url: str) -> HostPace:
        """The pace of a URL's host."""
        host = host_of(url)
        pace = self._paces.get(host)
        if pace is None:
            budget = self._shares.of(host, budget_of(host, self._settings, self._own))
            pace = self._paces[host] = HostPace(self._settings, budget, self._begun)
        return pace

    def keep_apart(self, url: str, seconds: float) -> None:
        """Let a host's Crawl-delay pass between two requests, whichever tasks they come from."""
        self.pace(url).keep_apart(seconds * self._shares.lanes)

    @asynccontextmanager
    async def take(self, url: str) -> AsyncIterator[HostPace]:
        """A turn at a URL's host and a slot, which stays taken: the caller releases it."""
        pace = self.pace(url)
        async with pace.turn(self.slots):
            yield pace


def host_of(url: str) -> str:
    """The host of a canonical URL, without its port."""
    return yarl.URL(url, encoded=True).raw_host or ""
