"""What `noise` is told, how its pairs are cut into sources, and where their rows lie on their way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from ..recipe import Noise
from ..runner import Stage, Task
from ..shards.exchange import exchange_folder
from ..shards.job import Phase
from ..shards.store import Store, open_store
from .cells import by_language
from .embedded import cut, rows_of_languages, rows_of_shards


@dataclass(frozen=True)
class Plan:
    """What the stage is told."""

    out: Path
    settings: Noise
    memory_mb: int
    rows_per_partition: int

    @property
    def store(self) -> Store:
        return open_store(self.out)

    def sources(self) -> list[list[str]]:
        """Names of the shards of each source."""
        return cut(rows_of_shards(self.out), self.rows_per_partition)

    def language_parts(self) -> list[list[str]]:
        """Names of the parts of the lists whose languages one task reads."""
        if not by_language(self.out, self.settings):
            return []
        return cut(rows_of_languages(self.out), self.rows_per_partition)

    def tasks(self) -> list[Task]:
        """One task per source, named by its first and its last shard, or `all`; none without embeddings."""
        sources = self.sources()
        if len(sources) == 1:
            return [Task("noise", "all", {"shards": sources[0]})]
        mark = _digest([sources, self.language_parts(), self.rows_per_partition])
        return [
            Task("noise", f"{shards[0]}-{shards[-1]}", {"shards": shards, "number": number, "mark": mark})
            for number, shards in enumerate(sources)
        ]


@dataclass(frozen=True)
class Way:
    """Where rows lie between the phases. mark: of how they are cut, for other cuts lie elsewhere."""

    plan: Plan
    mark: str
    parts: int = 0  # partitions of uids
    hearers: int = 0  # partitions of pictures

    @property
    def store(self) -> Store:
        return self.plan.store

    @property
    def key(self) -> str:
        """Of the cut and the settings."""
        return _digest([self.mark, self.plan.settings.model_dump_json(), self.plan.memory_mb])

    def name(self, name: str) -> str:
        """A folder or a file of the store."""
        return exchange_folder("noise", f"{self.key}/{name}")

    def task(self, phase: str, number: int, **data: object) -> Task:
        """A task of a phase; its name bears the key, so that one of another cut is another task."""
        return Task(f"noise.{phase}", f"{self.key}-{number:06d}", {"number": number, **data})

    def phase(self, tasks: Sequence[Task], work: Callable[..., Any], *args: object) -> Phase:
        """A phase whose tasks are done by `work(self, *args, task)`."""
        return tasks, Stage(tasks[0].stage, partial, (work, self, *args))


def _digest(value: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value).encode())
