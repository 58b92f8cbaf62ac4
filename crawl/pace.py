"""How often one host is asked: a few requests at once, and slower where it says 429 or 503.

A refusal holds all of a host's requests up, for as long as its Retry-After says; after it they go one by one,
the interval doubled by each further refusal and shortened by each answer: it stays about what the host bears.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..recipe import Fetch
from .budget import Budget

FIRST_INTERVAL_S = 0.05  # at least, once a host has refused; `backoff_s` where that is longer
UNHEARD_S = 10.0  # patience with a host that has answered nothing yet and names no time
NO_INTERVAL_S = 0.001  # shorter ones are none
SEEKING, KEEPING = (
    0.7,
    0.97,
)  # the interval after an answer: before, and after, a rate is known to be too high


class HostPace:
    """One host's turns, and what its answers say of its limit."""

    def __init__(self, settings: Fetch, budget: Budget | None = None, begun: float = 0.0) -> None:
        """budget: of this task. begun: loop time since when nobody else has asked the host in its stead."""
        budget = budget or Budget(settings.per_host)
        self._settings = settings
        self._at_once = asyncio.Semaphore(budget.at_once)
        self._interval_s = 0.0  # between the beginnings of two requests
        self._least_s = budget.interval_s  # the same, whatever the answers are
        self._slowed = 0.0  # loop time: when the interval was last doubled
        # and when the next may begin: a task that was killed may have asked just before this one came
        self._next = begun + self._least_s if self._least_s else 0.0
        self._factor = SEEKING
        self._rounds = 0  # refused without an answer between
        self._since = 0.0  # loop time at which the first of these was refused
        self._has_answered = False
        self._unexplained: set[str] = (
            set()
        )  # URLs refused with a mere 503 since it was last asked at full speed
        self._failures = 0  # in a row, without any answer between
        self.left_alone = ""  # the outcome of what is not asked any more: it refused, or failed, for too long

    @asynccontextmanager
    async def turn(self, slots: asyncio.Semaphore | None = None) -> AsyncIterator[None]:
        """Wait until the host may be asked; not at all where it is left alone.

        slots: one of them is taken too, to be released by the caller. Whoever waits for a turn holds none.
        """
        async with self._at_once:
            await self._wait()
            while slots is not None:
                await slots.acquire()
                if not self._wait_s() or self.left_alone:
                    break
                slots.release()  # another request of the host began meanwhile
                await self._wait()
            now = asyncio.get_running_loop().time()
            self._next = max(self._next, now + max(self._interval_s, self._least_s))
            yield

    async def _wait(self) -> None:
        while (wait_s := self._wait_s()) and not self.left_alone:
            await asyncio.sleep(wait_s)

    def _wait_s(self) -> float:
        return max(0.0, self._next - asyncio.get_running_loop().time())

    def keep_apart(self, seconds: float) -> None:
        """Let so much time pass from the beginning of a request to that of the next, from now on."""
        self._least_s = max(self._least_s, seconds)
        self._next = max(self._next, asyncio.get_running_loop().time() + self._least_s)

    def failed(self, outcome: str) -> None:
        """A request ended without any answer: after `dead_after` of them in a row the host is dead."""
        self._failures += 1
        if self._failures >= self._settings.dead_after:
            self.left_alone = outcome

    def answered(self, begun: float) -> None:
        """The request that began at loop time `begun` had an answer that is no refusal."""
        self._has_answered, self._failures = True, 0
        if self._interval_s and begun >= self._slowed:
            self._rounds = 0
            self._interval_s *= self._factor
            if self._interval_s < NO_INTERVAL_S:
                self._interval_s = 0.0
                self._unexplained.clear()

    def refused(self, begun: float, pause_s: float | None, bare: str | None = None) -> bool:
        """The request that began at `begun` was refused with 429 or 503. Returns whether for the host's rate.

        pause_s: its Retry-After, if any. bare: its URL, where a 503 without Retry-After says no more: that is
        for the rate where the host refuses others so too, and lets some through.
        """
        now = asyncio.get_running_loop().time()
        self._failures = 0
        if begun >= self._slowed:  # requests that were under way together are one sign
            self._slow_down(now)
        most, until = self._settings.max_pause_s, self._since + self._patience_s(pause_s)
        if pause_s is None and now < until:
            pause_s = min(self._pause_s(), until - now)
        self._next = max(self._next, now + min(most if pause_s is None else pause_s, most))
        if self._rounds and self._next > until:
            self.left_alone = "too_many_requests"
        if bare is None:
            return True
        self._unexplained.add(bare)
        return len(self._unexplained) > 1 and self._has_answered

    def _patience_s(self, pause_s: float | None) -> float:
        """A limit lets something through before it refuses: a host that never did is more likely dead."""
        most = self._settings.patience_s
        return most if self._has_answered or pause_s is not None else min(most, UNHEARD_S)

    def _slow_down(self, now: float) -> None:
        if not self._rounds:
            self._since = now
            if self._interval_s:  # it bore a slower pace, and not this one
                self._interval_s, self._factor = (
                    min(2 * self._interval_s, self._settings.max_pause_s),
                    KEEPING,
                )
            else:
                self._interval_s, self._factor = self._first_s(), SEEKING
        self._rounds += 1
        self._slowed = now

    def _first_s(self) -> float:
        return min(max(self._settings.backoff_s, FIRST_INTERVAL_S), self._settings.max_pause_s)

    def _pause_s(self) -> float:
        """Where the host names none: the interval, or backoff_s doubled for each further round."""
        return max(self._interval_s, self._settings.backoff_s * 2.0 ** min(self._rounds - 1, 30))
