"""The tallies of an output folder, added up by stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shards import ledger

PASSED = frozenset(
    {"pair", "kept", "ok"}
)  # what ingest, rules and fetch call a row that goes on; all else is a reason
STAGES = [
    "ingest",
    "dedup",
    "language",
    "frequency",
    "screen",
    "plan-fetch",
    "fetch",
    "reuse",
    "near",
    "choose",
    "tokenizer",
    "bootstrap",
    "embed",
    "near-embedding",
    "noise",
    "decide",
    "plan-write",
    "write",
    "manifest",
    "train",
    "evaluate",
    "report",
]


@dataclass(slots=True)
class StageSum:
    """The tallies of one stage, added up. `seconds` are spent in workers: wall clock times workers."""

    stage: str
    tasks: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def seen(self) -> int:
        return self.counts.total()

    @property
    def passed(self) -> int:
        return sum(self.counts[word] for word in PASSED)

    @property
    def reasons(self) -> Counter[str]:
        return Counter({word: n for word, n in self.counts.items() if word not in PASSED and n})

    def as_json(self) -> dict[str, Any]:
        """Plain values; the rate is per second of one worker."""
        rate = round(self.seen / self.seconds, 1) if self.seconds > 0 else None
        seconds = round(self.seconds, 1)
        return {
            "stage": self.stage,
            "tasks": self.tasks,
            "seen": self.seen,
            "seconds": seconds,
            "per_s": rate,
        }


def stage_sums(out: Path) -> dict[str, StageSum]:
    """Every stage that has a finished task, in the order of the job."""
    found = set(ledger.stages(out))
    order = [stage for stage in STAGES if stage in found] + sorted(found - set(STAGES))
    sums = {}
    for stage in order:
        total = StageSum(stage)
        for tally in ledger.records(out, stage):
            total.tasks += 1
            total.counts.update(tally["counts"])
            total.seconds += tally.get("seconds", 0.0)
        if total.tasks:
            sums[stage] = total
    return sums
