"""The tasks of fetching, and which of them may run at a time, so that no host is asked too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..recipe import Fetch
from ..runner import Task
from .budget import lanes_of, own_hosts
from .generations import UNKNOWN, generation_of, planned_shards, read_giants, wave_of


def fetch_tasks(out: Path, settings: Fetch, resolve: Iterable[str] = ()) -> list[Task]:
    """One task per planned raw shard, those of later waves included.

    resolve: host:port pairs that stand-ins answer for. The data of a task: `turn`, its wave and generation,
    for those of another one may ask the same hosts; of a shard of giants `lanes`, by which its budgets are to
    be divided, and `lane`, of which no two tasks run at a time.
    """
    own = own_hosts(settings, resolve)
    tasks: list[Task] = []
    turns: dict[tuple[int, int], list[str]] = {}
    for name in planned_shards(out):
        turns.setdefault((wave_of(name), generation_of(name)), []).append(name)
    for (wave, generation), names in turns.items():
        group_of, giants = read_giants(out, wave, generation)
        shards, dealt = Counter(group_of.values()), Counter[int]()
        lanes = {
            group: 1 if group == UNKNOWN else lanes_of(giants.get(group, ()), n, settings, own)
            for group, n in shards.items()
        }
        for name in names:
            data: dict[str, str | int] = {"turn": f"{wave}.{generation}"}
            if (group := group_of.get(name)) is not None:
                lane = dealt[group] % lanes[group]
                dealt[group] += 1
                data |= {"lanes": lanes[group], "lane": f"{group}.{lane}"}
            tasks.append(Task("fetch", name, data))
    return tasks
