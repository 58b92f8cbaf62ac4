"""How much one host is asked by the whole cluster, and the share of it that one task may use up.

The plan keeps a host's URLs in one shard, whose task has all of its budget. The URLs of a giant host lie in
several shards, which are dealt out to lanes: of one lane no two tasks run at a time, so each task has a part
of the budget for every lane there is, and nobody has to count what the others do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..recipe import Fetch
from ..settings_fetch import HostBudget

SLACK = 1.1  # a request that is held up on its way comes nearer to the next one than it was sent
PUBLIC_RATE = 10.0  # requests a second, where the recipe names no rate and not the host either


@dataclass(frozen=True, slots=True)
class Budget:
    """What one host bears: requests at once, and in any second. per_second: None is no limit."""

    at_once: int
    per_second: float | None = None

    @property
    def interval_s(self) -> float:
        """Between the beginnings of two requests, so that no second has more of them than it may."""
        if not self.per_second:
            return 0.0
        whole = math.floor(self.per_second)
        return SLACK / whole if whole else SLACK / self.per_second

    @property
    def most_lanes(self) -> int:
        """How many tasks can have a share of it that is a whole request, and one a second."""
        return min(self.at_once, max(1, math.floor(self.per_second)) if self.per_second else self.at_once)

    def share(self, lanes: int) -> Budget:
        """The part of one of `lanes` tasks: together they have no more than the whole."""
        rate = None if self.per_second is None else self.per_second / lanes
        return Budget(max(1, self.at_once // lanes), rate)


def budget_of(host: str, settings: Fetch, own: Collection[str] = ()) -> Budget:
    """The budget of a host (no port): its own by the recipe, or that of every host.

    own: hosts that the recipe names, which without a rate of their own have none.
    """
    named = _named(host, settings.hosts)
    rate = settings.per_host_rate
    if rate is None and host not in own:
        rate = PUBLIC_RATE
    if named is None:
        return Budget(settings.per_host, rate)
    return Budget(named.at_once or settings.per_host, named.per_second or rate)


def _named(host: str, budgets: dict[str, HostBudget]) -> HostBudget | None:
    """The entry for a host: by its name, else by the longest of its domains with a star before it."""
    if host in budgets:
        return budgets[host]
    parts = host.split(".")
    return next(
        (budgets[star] for at in range(len(parts)) if (star := "*." + ".".join(parts[at:])) in budgets), None
    )


def own_hosts(settings: Fetch, resolve: Iterable[str]) -> frozenset[str]:
    """Hosts, without their ports, that the recipe itself names."""
    return frozenset(name.rpartition(":")[0] for name in (*settings.allow_hosts, *resolve))


def lanes_of(hosts: Iterable[str], shards: int, settings: Fetch, own: Collection[str]) -> int:
    """How many tasks may ask the giant `hosts`, whose URLs lie in so many shards, at a time."""
    return min([shards, *(budget_of(host, settings, own).most_lanes for host in hosts)])
